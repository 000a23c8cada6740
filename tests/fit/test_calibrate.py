"""Calibration: every layer's scales from data, for every method; what it refuses; what stays as it was."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import witin_nn as wnn
from chipfit.arithmetic.grid import power_of_two_scale
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.errors import (
    CalibrationError,
    ChipfitWarning,
    InvalidValueError,
    UnknownOptionError,
    UnsupportedError,
)
from chipfit.fit.calibrate import METHODS, ScaleChoice, calibrate
from chipfit.modes import set_mode
from witin_nn import HandleNegInType, WitinLayerConfig

PN = HandleNegInType.PN


def config(**options: Any) -> WitinLayerConfig:
    return WitinLayerConfig(1, **{"use_quantization": True, "handle_neg_in": PN, **options})


class Everything(nn.Module):
    """A network with every Witmem layer."""

    def __init__(self) -> None:
        super().__init__()
        c = config
        self.conv2d = wnn.WitinConv2d(2, 4, 3, padding=1, layer_config=c())
        self.norm = wnn.WitinBatchNorm2d(4, layer_config=c())
        self.prelu = wnn.WitinPReLU(4, layer_config=c())
        self.transposed = wnn.WitinConvTranspose2d(4, 4, 2, 2, layer_config=c())
        self.cln = wnn.WitinClnBn2d(layer_config=c())
        self.mean = wnn.WitinMean(dim=3, layer_config=c())
        self.conv1d = wnn.WitinConv1d(4, 6, 3, layer_config=c())
        self.gelu = wnn.WitinGELU(layer_config=c(gelu_shift_num=0.25))
        self.linear = wnn.WitinLinear(10, 8, layer_config=c())
        self.sigmoid = wnn.WitinSigmoid(layer_config=c(x_clip=2.0))
        self.tanh = wnn.WitinTanh(layer_config=c())
        self.add = wnn.WitinElementAdd(layer_config=c())
        self.shift = wnn.WitinElementAdd(layer_config=c())
        self.mul = wnn.WitinElementMul(layer_config=c())
        self.divide = wnn.WitinElementDivide(layer_config=c(x_left_quant_bits=12))
        self.hypot = wnn.WitinHypot(layer_config=c())
        self.sqrt = wnn.WitinSqrt(layer_config=c())
        self.inv_sqrt = wnn.WitinInvSqrt(layer_config=c())
        self.cat = wnn.WitinCat(dim=-1, layer_config=c())
        self.gru = wnn.WitinGru(16, 5, 2, bidirectional=True, batch_first=True, layer_config=c())
        self.cell = wnn.WitinGruCell(10, 3, layer_config=c())
        self.matmul = wnn.WitinMatMul(layer_config=c())

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.norm(self.conv2d(x)))
        x = self.mean(self.cln(self.transposed(x)))
        x = self.linear(self.gelu(self.conv1d(x)))
        a, b = self.sigmoid(x), self.tanh(x)
        length = self.hypot(a, x2=b)
        x = self.cat(self.divide(self.add(a, x2=b), self.shift(length, 0.5)), self.mul(length, 0.75))
        steps, _ = self.gru(x)
        h = self.cell(steps[:, -1], self.cell(steps[:, 0]))
        root = self.inv_sqrt(self.sqrt(self.shift(length[:, :3, :3], 0.5)))
        return self.matmul(h.unsqueeze(1), root).squeeze(1)


LAYERS = {getattr(wnn, name) for name in wnn.__all__ if name.startswith("Witin") and not name.endswith("Config")}


def data(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(4, 2, 6, 6, generator=generator) * 2, torch.zeros(4)) for _ in range(count)]


def network() -> Any:
    torch.manual_seed(0)
    net = Everything()
    set_mode(net, "float")
    net(data()[0][0])  # running statistics
    return set_mode(net.eval(), "quant")


def scales(net: nn.Module) -> dict[str, float]:
    return {
        f"{name}.{tensor}": observer.scale
        for name, layer in net.named_modules()
        if isinstance(layer, WitinLayer)
        for tensor, observer in layer.observers.items()
    }


def snr(clean: Tensor, got: Tensor) -> float:
    return 10 * math.log10(clean.square().mean().item() / (clean - got).square().mean().item())


@pytest.mark.parametrize("method", METHODS)
def test_every_layer_is_calibrated_and_still_computes(method: str) -> None:
    net = network()
    assert {type(layer) for layer in net.modules() if isinstance(layer, WitinLayer)} == LAYERS
    choices = calibrate(net, data(), method)
    assert {f"{choice.layer}.{choice.tensor}": choice.scale for choice in choices} == scales(net)
    for choice in choices:
        assert math.frexp(choice.scale)[0] == 0.5
        assert choice.sqnr_db > 8, choice
    x = data(4)[3][0]
    quantised = net(x)
    set_mode(net, "float")
    assert snr(net(x), quantised) > 10


def test_max_covers_exactly_what_every_layer_saw() -> None:
    net = network()
    seen: dict[str, float] = {}

    def keep(name: str) -> Any:
        def after(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
            seen[name] = max(seen.get(name, 0.0), inputs[0].abs().max().item())

        return after

    for name in ("conv2d", "norm", "prelu", "transposed", "cln", "mean", "conv1d", "gelu", "linear", "tanh", "cell"):
        getattr(net, name).register_forward_hook(keep(name))
    chosen = {(c.layer, c.tensor): c for c in calibrate(net, data(), "max", measure=False)}
    assert len(seen) == 11
    for name, largest in seen.items():
        choice = chosen[name, "x"]
        assert choice.largest == choice.io_max == largest
        bits = getattr(net, name).observers["x"].q_bit_in
        assert choice.scale == power_of_two_scale(largest, bits)
        assert 2.0 ** (bits - 2) < largest * choice.scale <= 2.0 ** (bits - 1)


@pytest.mark.parametrize(("largest", "scale"), [(2.0, 64.0), (2.01, 32.0), (0.24, 512.0)])
def test_max_is_the_scale_of_the_known_maximum(largest: float, scale: float) -> None:
    layer = wnn.WitinTanh(layer_config=config())
    x = torch.linspace(-largest, largest / 2, 40_001)  # more values than are kept of a batch
    first, second = calibrate(nn.Sequential(layer), [x[:-1], x / 3], "max")
    assert (first.tensor, first.largest, first.scale) == ("x", torch.tensor(largest).item(), scale)
    assert second.tensor == "y"
    assert second.largest == pytest.approx(math.tanh(largest), rel=1e-6)


def test_percentile_and_mse_do_not_serve_an_outlier() -> None:
    torch.manual_seed(0)
    x = torch.randn(10_000)
    x[17] = 100.0
    by_method = {m: calibrate(nn.Sequential(wnn.WitinMean(layer_config=config())), [x], m)[0] for m in METHODS}
    assert by_method["max"].scale == 1.0
    assert by_method["percentile"].scale == 32.0  # 99.9 % of |x| lie below 3.3
    assert by_method["percentile"].io_max == pytest.approx(x.abs().quantile(0.999).item(), rel=1e-3)

    def error(scale: float) -> float:
        return ((x * scale).round().clamp(-128, 127) / scale - x).square().mean().item()

    candidates = [2.0**k for k in range(5)]
    assert by_method["mse"].scale == min(candidates, key=error)


# --- what each layer shows


def tensors_of(layer: Any, *inputs: Any, **named: Any) -> dict[str, ScaleChoice]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Any:
            return self.layer(*inputs, **named)

    return {choice.tensor: choice for choice in calibrate(Net(), [torch.zeros(1)], "max")}


def largest_of(layer: Any, *inputs: Any, **named: Any) -> dict[str, float]:
    return {name: choice.largest for name, choice in tensors_of(layer, *inputs, **named).items()}


def test_hypot_shows_both_operands_as_one() -> None:
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([-5.0, 0.5])
    for inputs, named in (((a, b), {}), ((b, a), {}), ((a,), {"x2": b}), ((), {"x2": a, "x1": b})):
        seen = largest_of(wnn.WitinHypot(layer_config=config()), *inputs, **named)
        assert seen == {"x1": 5.0, "y": pytest.approx(26.0**0.5)}


@pytest.mark.parametrize("running", [True, False])
def test_batch_norm_shows_its_folded_weight(running: bool) -> None:
    layer = wnn.WitinBatchNorm2d(2, track_running_stats=running, layer_config=config())
    x = torch.tensor([[[[0.0, 2.0]], [[0.0, 8.0]]]])  # variances 1 and 16
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([3.0, 2.0]))
        if running:
            layer.running_var.copy_(torch.tensor([4.0, 0.25]))
    seen = largest_of(layer, x)
    assert seen["weight"] == pytest.approx(2 / 0.25001**0.5 if running else 3 / 1.00001**0.5)
    assert seen["x"] == 8.0


def test_batch_norm_without_gamma_has_no_weight() -> None:
    layer = wnn.WitinBatchNorm2d(2, affine=False, layer_config=config())
    assert list(largest_of(layer, torch.randn(3, 2, 4, 4))) == ["x", "y"]
    assert layer.autoscale_weight_obj.io_max.item() == 8.0


def test_gelu_shows_the_lifted_output() -> None:
    x = torch.tensor([-1.0, 1.9])
    top = nn.functional.gelu(x)[1].item()
    choice = tensors_of(wnn.WitinGELU(layer_config=config(gelu_shift_num=0.25)), x)["y"]
    assert choice.largest == pytest.approx(top + 0.25)
    assert choice.scale == 64.0  # 9 bits up to 4, where 1.84 alone would have got 128
    assert tensors_of(wnn.WitinGELU(layer_config=config()), x)["y"].largest == pytest.approx(top)


@pytest.mark.parametrize("kind", [wnn.WitinSigmoid, wnn.WitinTanh])
def test_clips_hold_before_calibration(kind: Any) -> None:
    seen = largest_of(kind(layer_config=config(x_clip=1.5, output_fp_clip=0.5)), torch.tensor([-9.0, 4.0]))
    assert seen == {"x": 1.5, "y": 0.5}
    seen = largest_of(kind(layer_config=config()), torch.tensor([-9.0, 4.0]))
    assert seen["x"] == 9.0
    assert 0.9 < seen["y"] <= 1.0


def test_output_clip_of_the_array_and_of_arithmetic() -> None:
    def conv(kind: Any, **options: Any) -> Any:
        layer = kind(1, 1, 1, layer_config=config(**options))
        nn.init.constant_(layer.weight, 3.0)
        nn.init.zeros_(layer.bias)
        return layer

    x = torch.full((1, 1, 2, 2), 2.0)
    for kind in (wnn.WitinConv2d, wnn.WitinConvTranspose2d):
        assert largest_of(conv(kind), x) == {"x": 2.0, "y": 6.0, "weight": 3.0}
        assert largest_of(conv(kind, output_fp_clip=1.0), x)["y"] == 1.0
    add = wnn.WitinElementAdd(layer_config=config(output_fp_clip=1.0))
    assert largest_of(add, x, x) == {"x1": 2.0, "x2": 2.0, "y": 1.0}


def test_transposed_convolution_with_a_named_output_size() -> None:
    layer = wnn.WitinConvTranspose2d(1, 1, 3, 2, layer_config=config())
    assert largest_of(layer, input=torch.full((1, 1, 4, 4), 2.5), output_size=[10, 10])["x"] == 2.5


@pytest.mark.parametrize("inputs", [(2.0, torch.tensor([-3.0])), (torch.tensor([-3.0]), 2.0)])
@pytest.mark.parametrize("kind", [wnn.WitinElementAdd, wnn.WitinElementMul, wnn.WitinElementDivide])
def test_a_python_number_is_an_operand(kind: Any, inputs: tuple[Any, Any]) -> None:
    seen = largest_of(kind(layer_config=config()), *inputs)
    assert (seen["x1"], seen["x2"]) == tuple(abs(float(v)) for v in inputs)


def test_prelu_mean_and_cat() -> None:
    x = torch.tensor([[-4.0, 1.0]])
    assert largest_of(wnn.WitinPReLU(init=0.5, layer_config=config()), x) == {"x": 4.0, "y": 2.0, "weight": 0.5}
    assert largest_of(wnn.WitinMean(dim=1, layer_config=config()), x) == {"x": 4.0}
    assert largest_of(wnn.WitinCat(layer_config=config()), x, x / 2) == {"x1": 4.0, "x2": 2.0, "y": 4.0}


def test_gru_cell_shows_both_halves_before_activation() -> None:
    torch.manual_seed(0)
    cell = wnn.WitinGruCell(4, 3, layer_config=config())
    x, h = torch.randn(5, 4), torch.rand(5, 3)
    halves = {
        "x": x,
        "y": x @ cell.weight_ih.T + cell.bias_ih,
        "weight": cell.weight_ih,
        "y_hidden": h @ cell.weight_hh.T + cell.bias_hh,
        "weight_hidden": cell.weight_hh,
    }
    want = {name: pytest.approx(v.abs().max().item(), rel=1e-6) for name, v in halves.items()}
    assert largest_of(cell, x, h) == want
    assert largest_of(cell, hx=h, input=x) == want
    assert largest_of(cell, x)["y_hidden"] == pytest.approx(cell.bias_hh.abs().max().item())


@pytest.mark.parametrize("batch_first", [True, False])
def test_gru_shows_the_halves_of_every_layer_and_direction(batch_first: bool) -> None:
    torch.manual_seed(0)
    gru = wnn.WitinGru(4, 3, 2, bidirectional=True, batch_first=batch_first, layer_config=config())
    x, h0 = torch.randn(7, 2, 4), torch.rand(4, 2, 3) * 2 - 1
    want: dict[str, Any] = {}
    layer_input = x
    for layer in range(2):
        outputs = []
        for i, direction in enumerate(("", "_reverse")):
            s = f"_l{layer}{direction}"
            cell = nn.GRU(layer_input.shape[-1], 3)
            cell.load_state_dict(
                {f"{name}_l0": getattr(gru, name + s) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            )
            sequence = layer_input.flip(0) if i else layer_input
            start = h0[2 * layer + i]
            states, _ = cell(sequence, start.unsqueeze(0))
            before = torch.cat([start.unsqueeze(0), states[:-1]])
            want[f"x{s}"] = sequence
            want[f"y{s}"] = sequence @ cell.weight_ih_l0.T + cell.bias_ih_l0
            want[f"weight{s}"] = cell.weight_ih_l0
            want[f"y_hidden{s}"] = before @ cell.weight_hh_l0.T + cell.bias_hh_l0
            want[f"weight_hidden{s}"] = cell.weight_hh_l0
            outputs.append(states.flip(0) if i else states)
        layer_input = torch.cat(outputs, dim=-1)
    seen = largest_of(gru, x.transpose(0, 1) if batch_first else x, h0)
    assert seen == {name: pytest.approx(v.abs().max().item(), rel=1e-5) for name, v in want.items()}


def test_gru_refuses_packed_sequences_as_its_quantised_forward_does() -> None:
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(4, 2, 3), torch.tensor([4, 3]))
    with pytest.raises(UnsupportedError, match="PackedSequence"):
        largest_of(wnn.WitinGru(3, 2, layer_config=config()), packed)


# --- what stays


def test_frozen_scales_survive_training_and_others_do_not() -> None:
    x = data()[0][0]
    net = network()
    calibrate(net, data(), "max")
    before = scales(net)
    net.train()
    net(x * 7)
    assert scales(net) == before
    assert net.conv2d.autoscale_x_obj.io_max.item() == max(batch.abs().max().item() for batch, _ in data())
    calibrate(net, data(), "max", freeze=False)
    assert net.conv2d.autoscale_x_obj.frozen  # freezing is not undone
    free = network()
    calibrate(free, data(), "max", freeze=False)
    assert scales(free) == before
    free.train()
    free(x * 7)
    assert free.conv2d.autoscale_x_obj.io_max.item() == (x * 7).abs().max().item()


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_network_comes_back_the_same(method: str) -> None:
    net = network()
    calibrate(net, data(), method)
    fresh = Everything()
    fresh.load_state_dict(net.state_dict())
    fresh.eval()
    x = data(4)[3][0]
    assert torch.equal(fresh(x), net(x))
    assert scales(fresh) == scales(net)


def test_fixed_scales_are_set_too_and_the_warning_says_what_a_checkpoint_forgets() -> None:
    net = nn.Sequential(wnn.WitinTanh(layer_config=config(use_auto_scale=False)), wnn.WitinTanh(layer_config=config()))
    with pytest.warns(ChipfitWarning, match="^0: without use_auto_scale a checkpoint") as caught:
        calibrate(net, [torch.tensor([3.0, -0.5])], "max")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [net[0].autoscale_x_obj.scale, net[1].autoscale_x_obj.scale] == [32.0, 128.0]
    assert net(torch.tensor([2.01])).item() == pytest.approx(math.tanh(math.tanh(2.01)), abs=0.01)


def test_modes_and_flags_are_as_before() -> None:
    net = nn.Sequential(
        wnn.WitinLinear(2, 3, layer_config=config(noise_level=5)),
        wnn.WitinTanh(layer_config=config(use_quantization=False)),
        wnn.WitinLinear(3, 2, layer_config=config()),
    )
    net[0].set_mode("nat", rounding="wtm2101")
    net.train()
    net[1].eval()
    calibrate(net, [torch.randn(8, 2)])
    assert [layer.mode for layer in net] == ["nat", "float", "quant"]
    assert [layer.training for layer in net] == [True, False, True]
    assert (net[0].noise_level, net[0].rounding) == (5, "wtm2101")
    assert not any(layer._forward_hooks for layer in net)


def test_batches_are_counted_exactly() -> None:
    batches = itertools.count(1)
    calibrate(nn.Sequential(wnn.WitinTanh(layer_config=config())), (torch.ones(2) * k for k in batches), batches=3)
    assert next(batches) == 4


def test_a_network_with_several_inputs() -> None:
    add = wnn.WitinElementAdd(layer_config=config())

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add = add

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.add(x, y)

    choices = calibrate(Net(), [((torch.tensor([2.0]), torch.tensor([-5.0])), torch.zeros(1))], "max")
    assert [choice.largest for choice in choices] == [2.0, 5.0, 3.0]


def test_one_layer_used_twice_sees_both() -> None:
    tanh = wnn.WitinTanh(layer_config=config())
    choice = calibrate(nn.Sequential(tanh, wnn.WitinMean(layer_config=config()), tanh), [torch.tensor([5.0])], "max")[0]
    assert choice.largest == 5.0


# --- what it refuses


def unchanged(net: nn.Module, before: dict[str, float]) -> bool:
    return scales(net) == before and not any(
        observer.frozen for m in net.modules() if isinstance(m, WitinLayer) for observer in m.observers.values()
    )


@pytest.mark.parametrize("method", METHODS)
def test_only_zeros_everywhere_name_the_layer_and_change_nothing(method: str) -> None:
    net = nn.Sequential(wnn.WitinTanh(layer_config=config()), wnn.WitinTanh(layer_config=config()))
    before = scales(net)
    with pytest.raises(CalibrationError, match=r"^0, x: only zeros were seen") as caught:
        calibrate(net, [torch.zeros(5)], method)
    assert "finite values" in str(caught.value)
    assert unchanged(net, before)
    assert [layer.mode for layer in net] == ["quant", "quant"]


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_keeps_its_scale_with_a_warning(method: str) -> None:
    first, last = wnn.WitinTanh(layer_config=config()), wnn.WitinLinear(5, 2, layer_config=config())
    net = nn.Sequential(first, nn.Threshold(9.0, 0.0), last)
    nn.init.zeros_(last.weight)
    with pytest.warns(ChipfitWarning, match=r"^2, x; 2, weight: only zeros were seen") as caught:
        choices = calibrate(net, [torch.randn(5)], method, measure=False)
    assert len(caught) == 1 and caught[0].filename == __file__
    found = {choice.tensor: choice for choice in choices if choice.layer == "2"}
    assert found["x"] == ScaleChoice("2", "x", 0.0, 8.0, 32.0, math.inf)  # 9 bits and no sign: 8 bits a pass
    assert found["weight"] == ScaleChoice("2", "weight", 0.0, 8.0, 16.0, math.inf)
    assert found["y"].largest == last.bias.abs().max().item()
    assert scales(net)["2.x"] == 32.0 and last.observers["x"].frozen


@pytest.mark.parametrize(("options", "scale"), [({"use_auto_scale": False, "scale_x": 512}, 512.0), ({}, 4.0)])
def test_the_scale_that_zeros_keep_is_the_one_in_force(options: dict[str, Any], scale: float) -> None:
    """Without auto-scale that of the configuration, with it the one that follows from io_max."""
    last = wnn.WitinTanh(layer_config=config(**options))
    with torch.no_grad():
        last.observers["x"].io_max.fill_(30.0)
    net = nn.Sequential(wnn.WitinTanh(layer_config=config()), nn.Threshold(9.0, 0.0), last)
    with pytest.warns(ChipfitWarning) as caught:
        choice = calibrate(net, [torch.randn(5)])[2]
    assert "2, x; 2, y: only zeros were seen" in str(caught[-1].message)
    assert (choice.layer, choice.tensor, choice.scale) == ("2", "x", scale) and scales(net)["2.x"] == scale
    with torch.no_grad():
        last.observers["x"].io_max.fill_(0.0)  # an epoch of auto-scale that saw nothing either
    last.use_auto_scale = True
    with pytest.warns(ChipfitWarning, match=r"only zeros were seen"):
        assert calibrate(net, [torch.randn(5)])[2].scale == 16.0


def test_nan_names_the_layer() -> None:
    net = nn.Sequential(wnn.WitinTanh(layer_config=config()))
    with pytest.raises(CalibrationError, match=r"^0, x: NaN or infinite values were seen"):
        calibrate(net, [torch.tensor([1.0, math.nan])])


def test_an_unreached_layer_is_named_and_nothing_changes() -> None:
    net = nn.Sequential(wnn.WitinTanh(layer_config=config()))
    net[0].extra = wnn.WitinLinear(2, 2, layer_config=config())
    before = scales(net)
    with pytest.raises(CalibrationError, match=r"^0\.extra: .*never reached"):
        calibrate(net, [torch.randn(5)])
    assert unchanged(net, before)


def test_no_data_no_layers_no_such_method() -> None:
    net = nn.Sequential(wnn.WitinTanh(layer_config=config()))
    with pytest.raises(CalibrationError, match="calibration data is empty"):
        calibrate(net, [])
    with pytest.raises(CalibrationError, match="no values were seen"):
        calibrate(net, [torch.zeros(0)])
    with pytest.raises(UnsupportedError, match="no chip layers"):
        calibrate(nn.Sequential(nn.Tanh()), [torch.ones(1)])
    with pytest.raises(UnknownOptionError, match="percentile"):
        calibrate(net, [torch.ones(1)], "percentil")
    for percentile in (0.0, 101.0):
        with pytest.raises(InvalidValueError, match="percentile"):
            calibrate(net, [torch.ones(1)], "percentile", percentile=percentile)


def test_no_warning_for_a_plain_network() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(network(), data())
