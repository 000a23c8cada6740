"""What `lower` refuses: networks that were never calibrated, numbers that are none, codes that cannot be proven."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import chipfit
from chipfit.errors import CalibrationError, NonFiniteError, UnsupportedError
from support.conversion import CHIPS, quantised
from witin_nn import WitinLayerConfig, WitinLinear


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


@pytest.mark.parametrize("target", CHIPS)
def test_a_network_that_was_never_calibrated(target: str) -> None:
    x = torch.rand(4, 32)
    converted = chipfit.set_mode(chipfit.convert(net(), target, x), "quant")
    with pytest.raises(CalibrationError, match=r"never calibrated.*Call chipfit.calibrate\(net, loader\) first"):
        chipfit.lower(converted, x)
    with pytest.raises(CalibrationError, match="never calibrated"):
        chipfit.lower(nn.Sequential(converted), x)
    chipfit.calibrate(converted, [x])
    assert chipfit.verify(converted, chipfit.lower(converted, x), [x])


@pytest.mark.parametrize("target", CHIPS)
def test_a_network_with_a_calibrated_state_is_calibrated(target: str) -> None:
    x = torch.rand(4, 32)
    again = chipfit.convert(net(), target, x)
    again.load_state_dict(quantised(net(), target, x).state_dict())
    chipfit.lower(chipfit.set_mode(again, "quant"), x)


@pytest.mark.parametrize("target", CHIPS)
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_parameters_that_are_no_numbers(target: str, number: float) -> None:
    x = torch.rand(4, 32)
    converted = quantised(net(), target, x)
    parameters = dict(converted.named_parameters())
    name = next(name for name, value in parameters.items() if value.requires_grad)
    with torch.no_grad():
        parameters[name].view(-1)[0] = number
    with pytest.raises(NonFiniteError, match=f"NaN or infinity.*{name}"):
        chipfit.lower(converted, x)


@pytest.mark.parametrize("bits", [24, 25, 32])
@pytest.mark.filterwarnings("ignore:.*the chip has 8 to 12 bits")
def test_codes_that_float32_does_not_count(bits: int) -> None:
    options: dict[str, Any] = {"x_quant_bits": bits, "y_quant_bits": bits, "scale_weight": 64}
    config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, **options)
    config.scale_x, config.scale_y = 2.0 ** (bits - 10), 2.0 ** (bits - 6)
    wide = nn.Sequential(WitinLinear(8, 4, layer_config=config))
    if bits <= 24:
        x = torch.randn(50, 8)
        assert chipfit.verify(wide, chipfit.lower(wide, x), [x])
    else:
        with pytest.raises(UnsupportedError, match=rf"wider than float32 counts.*0 \({bits} bits\).*up to 24 bits"):
            chipfit.lower(wide, torch.zeros(1, 8))
