"""Modes of hand-written Ingenic networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import chipfit
from chipfit.chips import ingenic as ops
from chipfit.errors import UnknownOptionError, UnsupportedError

WIDTHS = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8, "auto_bitwidth": False}


class Written(nn.Module):
    """A network as the vendor's manual writes them."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.prepare = ops.Preprocess(0, 255.0, target)
        common = {**WIDTHS, "target_device": target}
        self.first = ops.Conv2D(3, 32, padding=1, first_layer=True, enable_batch_norm=True, **common)
        self.signed = ops.Conv2D(32, 32, stride=2, padding=1, activation_fn=ops.LeakyReLU(0.1, target), **common)
        self.depthwise = ops.DepthwiseConv2D(32, padding=1, activation_fn=ops.Hswish(32, target), **common)
        self.add = ops.Shortcut(32, quantize=True, input_bitwidth=8, output_bitwidth=8, target_device=target)
        self.pool = ops.AdaptiveAvgpool2D(32, False, True, 8, 8, target_device=target)
        self.head = ops.FullConnected(32, 4, activation_fn=None, last_layer=True, **{**common, "output_bitwidth": 32})

    def forward(self, x: Tensor) -> Tensor:
        y = self.signed(self.first(self.prepare(x)))
        return self.head(self.pool(self.add([y, self.depthwise(y)])))


@pytest.mark.parametrize("target", ["T40", "Txx"])
def test_modes_go_forth_and_back(target: str) -> None:
    net, x = Written(target).eval(), torch.randint(256, (2, 3, 6, 6)).float() / 255
    with torch.no_grad():
        quant = net(x)
        floating = chipfit.set_mode(net, "float")(x)
        again = chipfit.set_mode(net, "quant")(x)
        assert torch.equal(quant, again) and not torch.equal(quant, floating)
        assert torch.equal(chipfit.set_mode(net, "nat")(x), quant)


def test_mode_float_computes_what_torch_does() -> None:
    conv = ops.Conv2D(32, 32, padding=1, activation_fn=ops.LeakyReLU(0.1, "T40"), **WIDTHS, target_device="T40")
    x = torch.randn(1, 32, 4, 4) * 10  # beyond every clip
    conv.set_mode("float")
    y, bits, minimum = conv((x, 8, -1.0))
    expected = F.leaky_relu(F.conv2d(x, conv.Conv2d.weight, conv.Conv2d.bias, padding=1), 0.1)
    torch.testing.assert_close(y, expected)
    assert (bits, minimum < 0) == (8, True)


def test_mode_float_leaves_what_was_never_quantised_alone() -> None:
    conv = ops.Conv2D(32, 32, target_device="T40").eval()
    x = torch.rand(1, 32, 4, 4)
    before = conv(x)[0]
    conv.set_mode("float")
    assert torch.equal(conv(x)[0], before)


def test_wrong_modes() -> None:
    net = Written("T40")
    with pytest.raises(
        UnknownOptionError, match=r"first: unknown mode; got 'quants'; allowed: float, quant, nat.*quant"
    ):
        chipfit.set_mode(net, "quants")
    with pytest.raises(UnknownOptionError, match="set_mode: unknown option; got 'rounding'; allowed: none for ingenic"):
        chipfit.set_mode(net, "quant", rounding="wtm2101")


def test_a_network_in_mode_float_is_not_lowered() -> None:
    net, x = Written("T40").eval(), torch.randint(256, (2, 3, 6, 6)).float() / 255
    net(x)  # from it the pool learns that its input has negative values
    chipfit.set_mode(net, "float")
    with pytest.raises(UnsupportedError, match=r"layers in mode 'float' have no codes; got 'first'"):
        chipfit.lower(net, x)
    chipfit.lower(chipfit.set_mode(net, "quant"), x)
