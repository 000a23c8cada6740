"""The proof finds what is wrong, and the certificate says what is needed; both on whole networks too."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import witin_nn as w
from chipfit import calibrate, freeze_scales, set_mode
from chipfit.arithmetic.bounds import AccumulatorBound
from chipfit.chips.witmem.demo import cnn
from chipfit.chips.witmem.program import ops
from chipfit.chips.witmem.program.ranges import ArrayBounds, array_bounds
from chipfit.errors import CalibrationError, UnsupportedError
from chipfit.fit.data import digits
from chipfit.fit.train import Stage, fit
from chipfit.program import FastProgram, Program, certify, lower, run, trace, verify
from chipfit.program import proof as proof_room
from witin_nn import HandleNegInType, WitinConv2d, WitinLayerConfig, WitinLinear

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
OPTIONS = {"use_quantization": True, "use_auto_scale": False, "scale_x": 32, "scale_weight": 64, "scale_y": 16}


def config(**options: Any) -> WitinLayerConfig:
    return WitinLayerConfig(1, **{**OPTIONS, **options})


def small() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        WitinConv2d(1, 3, 3, padding=1, layer_config=config()),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        WitinLinear(12, 5, layer_config=config()),
    )


def changed(program: Program, name: str, index: tuple[int, ...], by: int) -> Program:
    tensors = dict(program.tensors)
    tensors[name] = tensors[name].clone()
    tensors[name][index] += by
    return replace(program, tensors=tensors)


def test_the_first_difference_is_named() -> None:
    net, x = small(), torch.rand(10, 1, 4, 4) * 4
    program = lower(net, x)
    assert verify(net, program, [x])
    proof = verify(net, changed(program, "0.bias", (1,), 128 * 16), [x[:4], x[4:]])
    assert not proof and proof.mismatch is not None
    found = proof.mismatch
    assert (found.layer, found.index[:2], found.sample, proof.samples) == ("0", (0, 1), 0, 4)
    assert found.of == 4 * 3 * 16 and found.codes <= 4 * 16 and found.largest == 16
    assert found.got - found.expected == 16
    assert "NOT equal. First: 0: " in str(proof)
    later = verify(net, changed(program, "4.bias", (2,), 128), [x])
    assert later.mismatch is not None and later.mismatch.layer == "4" and later.mismatch.index[1] == 2


def test_one_code_of_one_weight_is_found() -> None:
    net, x = small(), torch.rand(200, 1, 4, 4) * 4
    proof = verify(net, changed(lower(net, x[:1]), "0.weight", (0, 0, 1, 1), 1), [x])
    assert proof.mismatch is not None and (proof.mismatch.layer, proof.mismatch.largest) == ("0", 1)


def test_a_wrong_fast_path_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = small(), torch.rand(10, 1, 4, 4)
    program = lower(net, x)
    monkeypatch.setattr(proof_room, "FastProgram", lambda p: lambda *inputs: run(p, *inputs) + 1 / 16)
    proof = verify(net, program, [x])
    assert proof.mismatch is not None
    assert (proof.mismatch.layer, proof.mismatch.codes, proof.mismatch.largest) == ("fast path", 50, 1)


def test_another_rounding_rule_makes_another_network() -> None:
    net, x = small(), torch.randn(50, 1, 4, 4) * 4
    silicon, trained = lower(net, x), lower(net, x, rounding="witin_nn")
    assert not torch.equal(run(silicon, x), run(trained, x))
    assert verify(net, silicon, [x]).trained_otherwise == ("0", "4")
    assert verify(net, trained, [x]).trained_otherwise == ()
    crossed = verify(net, replace(silicon, nodes=tuple(_with_rule(node, "witin_nn") for node in silicon.nodes)), [x])
    assert crossed.equal, "the network follows the program's rule"


def _with_rule(node: Any, rounding: str) -> Any:
    return replace(node, op=replace(node.op, rounding=rounding)) if hasattr(node.op, "rounding") else node


def test_a_program_of_another_network_is_refused() -> None:
    net, x = small(), torch.rand(2, 1, 4, 4)
    with pytest.raises(UnsupportedError, match="not this network's"):
        verify(nn.Sequential(WitinLinear(16, 2, layer_config=config())), lower(net, x), [x])
    with pytest.raises(CalibrationError, match="no sample"):
        verify(net, lower(net, x), [])
    with pytest.raises(CalibrationError, match="no sample"):
        certify(lower(net, x), [])


def test_wide_accumulators_are_compared_in_float64() -> None:
    torch.manual_seed(0)
    layer = WitinLinear(900, 3, layer_config=config(scale_y=1, x_quant_bits=8, scale_weight=128, y_quant_bits=12))
    nn.init.uniform_(layer.weight, 0.8, 1.0)
    net, x = nn.Sequential(layer), torch.rand(400, 900) * 8
    program = lower(net, x[:1])
    assert not program.node("0").exact_in_float32
    proof = verify(net, program, [x])
    assert proof and proof.in_float64 == ("0",) and "Computed in float64: 0" in str(proof)
    certificate = certify(program)
    assert certificate.in_float64 == ("0",)
    (row,) = certificate.rows
    assert row.bits == 26 and not row.exact_in_float32 and row.bound > 1 << 24


def test_the_digital_half_of_a_split_has_seven_bits_more() -> None:
    """Its summands are multiples of 128: float32 is exact up to 2^31."""
    geometry = ops.Geometry("linear")
    split = ops.Split("digital", -128, 127)
    op = ops.Array(geometry, "w", None, "b", "e", "unsigned", 0, 8, "witin_nn", -128, 127, 8, 12, split)
    tensors = {"b": torch.zeros(1, dtype=torch.int64), "digital": torch.zeros(1, dtype=torch.int64)}
    for inputs, exact in ((4403, True), (4404, False)):  # times 127 * 3840
        bounds = array_bounds(op, {**tensors, "w": torch.full((1, inputs), 127)})
        assert bounds.digital is not None and bounds.digital.largest == inputs * 127 * 3840
        assert (bounds.digital.largest <= 1 << 31) is exact
        low = replace(bounds, array=replace(bounds.array, per_channel=torch.tensor([1])))
        assert low.exact_in_float32 is exact


def test_rounding_half_up_needs_room_below_two_to_the_24() -> None:
    bound = AccumulatorBound(torch.tensor([(1 << 24) - 256]))
    assert ArrayBounds(bound, None, 0).exact_in_float32
    assert ArrayBounds(bound, None, 256).exact_in_float32
    assert not ArrayBounds(bound, None, 512).exact_in_float32


def test_certificate_of_a_layer_worked_out_by_hand() -> None:
    layer = WitinLinear(2, 2, layer_config=config(bias_row_N=1))  # G = 32 * 64 / 16 = 128
    layer.weight.data = torch.tensor([[1.0, -0.5], [0.01, 0.0]])  # codes 64, -32; 1, 0
    layer.bias.data = torch.tensor([100.0, 0.02])  # 204,800 (limit 127 * 128 = 16,256), 40.96 (to 0)
    program = lower(layer, torch.zeros(1, 2))
    (row,) = certify(program, [torch.tensor([[0.0, 0.0], [1.0, 0.0], [99.0, -1.0]])]).rows
    assert (row.inputs, row.channels, row.g, row.rounding) == (2, 2, 128.0, "wtm2101")
    assert row.bound == 255 * 96 + 16256 and row.bits == 17 and row.exact_in_float32
    assert row.can_saturate == 1  # 318 codes; the other channel reaches 255 / 128
    assert row.bias_clipped == 1 and row.bias_lost == pytest.approx((204800 - 16256) / 128)
    assert row.weight_code_use == 4 / 256
    assert row.seen is not None
    # outputs 127 0, 143 0, 254.5 2: the second and third of the first channel are clipped; 0, 2 and 127 of 256 codes
    assert row.seen.outputs == 6 and row.seen.clipped == pytest.approx(2 / 6)
    assert row.seen.input_clipped == pytest.approx(2 / 6)  # 99 and -1
    assert row.seen.code_use == 3 / 256
    assert certify(program).as_dicts()[0]["seen"] is None


def test_certificate_of_a_gru_has_both_operations() -> None:
    torch.manual_seed(0)
    gru = w.WitinGru(3, 2, batch_first=True, bidirectional=True, layer_config=config())
    rows = certify(lower(gru, torch.zeros(1, 4, 3)), [torch.randn(6, 4, 3)]).rows
    assert [row.name for row in rows] == [
        f"WitinGru.l0{direction}.{half}" for direction in ("", "_reverse") for half in ("input", "hidden")
    ]
    assert all(row.seen is not None and row.seen.outputs == 6 * 4 * 6 for row in rows)


@pytest.mark.slow
def test_digits_from_training_to_proof() -> None:
    """The demo's CNN, trained in float, calibrated, trained on the chip's grid: no code of 450 images differs."""
    train, test = digits()
    net = cnn(8)
    loader = DataLoader(train, 64, shuffle=True)
    fit(net, loader, Stage("float", "float", 4, 4e-3))
    calibrate(net, loader, batches=5)
    fit(net, loader, Stage("QAT", "quant", 1, 1e-3))
    images, labels = test.tensors
    batches = DataLoader(test, 150)
    accuracy = {}
    for rounding in ("witin_nn", "wtm2101"):
        program = lower(net, images[:1], rounding=rounding)
        proof = verify(net, program, batches)
        assert proof.equal, str(proof)
        assert proof.samples == 450 and proof.in_float64 == ()
        assert list(proof.codes) == ["0", "2", "5", "9", "output"]
        assert proof.codes["0"] == 450 * 16 * 64 and proof.codes["9"] == proof.codes["output"] == 4500
        accuracy[rounding] = (FastProgram(program)(images).argmax(1) == labels).double().mean().item()
        certificate = certify(program, batches)
        assert [row.name for row in certificate.rows] == ["0", "2", "5", "9"]
        assert all(row.exact_in_float32 for row in certificate.rows)
    assert min(accuracy.values()) > 0.9, accuracy


class Keywords(nn.Module):
    """A small keyword net: two convolutions over time, a GRU in both directions, a classifier on its last states."""

    def __init__(self) -> None:
        super().__init__()

        def own(**options: Any) -> WitinLayerConfig:
            return WitinLayerConfig(1, use_quantization=True, handle_neg_in=HandleNegInType.PN, **options)

        self.front = w.WitinConv1d(10, 12, 3, padding=1, layer_config=own())
        self.gelu = w.WitinGELU(layer_config=WitinLayerConfig(1, use_quantization=True))
        self.gru = w.WitinGru(12, 16, num_layers=2, bidirectional=True, batch_first=True, layer_config=own())
        self.head = w.WitinLinear(32, 4, layer_config=own(x_quant_bits=8))

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.gru(self.gelu(self.front(x.transpose(1, 2))).transpose(1, 2))
        return self.head(torch.cat([h[-2], h[-1]], dim=1))


def spoken(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four 'words': rising or falling tracks through ten bands, fast or slow, in noise."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (count,), generator=generator)
    time = torch.arange(20.0)
    speed = torch.where(label < 2, 0.4, 0.8).unsqueeze(1) * torch.where(label % 2 == 0, 1.0, -1.0).unsqueeze(1)
    track = (torch.rand(count, 1, generator=generator) * 10 + speed * time).remainder(10)
    bands = torch.exp(-0.5 * (torch.arange(10.0) - track.unsqueeze(2)) ** 2)
    return bands * 2 - 0.5 + 0.1 * torch.randn(count, 20, 10, generator=generator), label


@pytest.mark.slow
def test_keywords_from_training_to_proof() -> None:
    torch.manual_seed(3)
    net = Keywords()
    x, label = spoken(256, 0)
    data = DataLoader(TensorDataset(x, label), 64)
    set_mode(net, "float")
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(12):
        for batch, target in data:
            optimiser.zero_grad()
            F.cross_entropy(net(batch), target).backward()
            optimiser.step()
    calibrate(net, data)
    set_mode(net, "quant")
    freeze_scales(net)
    unseen, truth = spoken(300, 1)
    program = lower(net, unseen[:2])
    proof = verify(net, program, DataLoader(TensorDataset(unseen, truth), 100))
    assert proof.equal, str(proof)
    assert proof.samples == 300 and list(proof.codes) == ["front", "gelu", "gru", "head", "output"]
    assert proof.codes["gru"] == 300 * 20 * 32
    right = (run(program, unseen).argmax(1) == truth).double().mean().item()  # type: ignore[union-attr]
    assert right > 0.5, right


def test_the_trace_holds_every_edge() -> None:
    net, x = small(), torch.rand(2, 1, 4, 4)
    program = lower(net, x)
    edges = trace(program, x)
    assert list(edges) == ["input_1", "0.input", "0", "1", "2", "3", "4.input", "4", "output"]
    assert all(edges[node.name].dtype == torch.int64 for node in program.nodes[:-1])
    for node in program.nodes[:-1]:
        assert node.output.lo <= int(edges[node.name].min()) and int(edges[node.name].max()) <= node.output.hi
    assert torch.equal(edges["output"], edges["4"] / 16)
    assert torch.equal(copy.deepcopy(FastProgram(program))(x), edges["output"])


def test_an_activation_in_place_does_not_hide_what_the_layer_gave():
    torch.manual_seed(0)
    net = nn.Sequential(WitinLinear(6, 8, layer_config=config()), nn.ReLU(inplace=True))
    proof = verify(net, lower(net, torch.randn(2, 6)), [torch.randn(50, 6)])
    assert proof, proof
