"""GRU networks as users write them, from training or calibration through chained scales to the compiler's files."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

import chipfit
from chipfit.chips.witmem.mapper.side import read_side_text
from chipfit.errors import ChipfitWarning, UnsupportedError
from chipfit.export import check_mapper
from witin_nn import HandleNegInType, WitinGlobalConfig, WitinGru, WitinGruCell, WitinLayerConfig, WitinLinear

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
LAST_ONLY, STATE_OUT, LAST_STATE, SEQUENCE = "last only", "state out", "last state", "sequence"


def config(**options: Any) -> WitinLayerConfig:
    return WitinLayerConfig(1, use_quantization=True, handle_neg_in=HandleNegInType.PN, **options)


class Keywords(nn.Module):
    """A keyword network of a GRU and a classifier, under the global configuration as in the vendor's manual."""

    def __init__(self, takes: str = LAST_ONLY, layers: int = 1) -> None:
        super().__init__()
        self.takes = takes
        self.gru = WitinGru(10, 16, layers, batch_first=True, layer_config=config())
        self.fc = WitinLinear(16, 4, layer_config=config()) if takes != SEQUENCE else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        y, h = self.gru(x)
        if self.takes == SEQUENCE:
            return y
        if self.takes == STATE_OUT:
            return self.fc(y[:, -1]), h
        return self.fc(y[:, -1] if self.takes == LAST_ONLY else h[-1])


def silicon(total: np.ndarray, g: int) -> np.ndarray:
    v = total / g
    return np.clip(np.where(v >= 0, np.floor(v + 0.5), np.trunc(v - 0.25)), -128, 127)


def shifted(v: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(v * 2.0**bits)


def computed(model: onnx.ModelProto, codes: np.ndarray) -> list[np.ndarray]:
    """What a file of Gru2Array, Gemm and moves gives, by what the attributes are said to mean, for many samples."""
    edges = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    edges[model.graph.input[0].name] = codes.astype(np.float64).reshape(-1, *sizes)
    for node in model.graph.node:
        x, *operands = (edges[name] for name in node.input)
        a = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type == "Gru2Array":
            y = gru2array(x, operands, a)
        elif node.op_type == "Gemm":
            y = x @ operands[0] + operands[1]
        elif node.op_type == "Scale":
            y = silicon(x, round(1 / a["scale"]))
        elif node.op_type == "Slice":
            start, stop, axis, step = (int(v[0]) for v in operands)
            y = x[(slice(None),) * axis + (slice(start, None if stop > 2**40 else stop, step),)]
        elif node.op_type == "Reshape":
            y = x.reshape(-1, *operands[0].astype(int)[1:])
        else:
            raise AssertionError(node.op_type)
        edges[node.output[0]] = y
    return [edges[value.name] for value in model.graph.output]


def gru2array(x: np.ndarray, operands: list[np.ndarray], a: dict[str, Any]) -> np.ndarray:
    w_ih, w_hh, b_ih, b_hh = operands
    assert (a["activate_type"], a["input_offset"], a["clean_ht"]) == ([b"sigmoid", b"tanh"], 0, 0)
    sigmoid, tanh = numpy_helper.to_array(a["activate_table"]).astype(np.float64)
    gate, reset, candidate, state = a["shift_bits"]
    size = w_hh.shape[0]
    h, states = np.zeros((len(x), size)), []

    def look_up(table: np.ndarray, index: np.ndarray) -> np.ndarray:
        return table[np.clip(index, -512, 511).astype(int) % 1024]

    for step in range(x.shape[1]):
        inputs = silicon(x[:, step] @ w_ih + b_ih, a["scale_input"])
        hidden = silicon(h @ w_hh + b_hh, a["scale_hidden"])
        left = 2.0 ** a["hidden_shift_bit"]
        gates = shifted(inputs[:, : 2 * size] + hidden[:, : 2 * size] * left, gate)
        r, z = np.split(look_up(sigmoid, gates), 2, axis=1)
        product = shifted(r * hidden[:, 2 * size :], reset)
        n = look_up(tanh, shifted(inputs[:, 2 * size :] + product * left, candidate))
        h = np.clip(shifted((a["scale_ones"] - z) * n + z * h, state), -128, 127)
        states.append(h)
    return np.stack(states, axis=1)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("takes", [LAST_ONLY, STATE_OUT, LAST_STATE, SEQUENCE])
def test_from_calibration_to_the_compilers_files(takes, layers, tmp_path):
    torch.manual_seed(layers)
    net, x = Keywords(takes, layers), torch.randn(160, 12, 10)
    chipfit.calibrate(net, [x])
    with pytest.raises(UnsupportedError, match=r"chipfit.chain_scales\(model, example\)"):
        chipfit.lower(net, x[:1]).export(tmp_path, ["witin_mapper"], samples=x)
    assert chipfit.chain_scales(net, x)
    assert chipfit.chain_scales(net, x) == {}
    program = chipfit.lower(net, x[:1])
    assert chipfit.verify(net, program, [x])
    path, side, data = program.export(tmp_path, ["witin_mapper"], samples=x)
    kinds = check_mapper(path)
    assert kinds["Gru2Array"] == layers
    assert kinds.get("Gemm", 0) == (takes != SEQUENCE)
    entries = read_side_text(side.read_text())
    assert {entry.signed_input for entry in entries.values()} == {1}
    model = onnx.load(path)
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    assert all(name in read for node in model.graph.node for name in node.output)
    outputs = (
        [out for out in chipfit.program.run(program, x)] if takes == STATE_OUT else [chipfit.program.run(program, x)]
    )
    scales = [program.type(program.node(name).inputs[0]).scale for name in program.outputs]
    reals = [out * scale for out, scale in zip(outputs, scales, strict=True)]
    expected = [reals[0], *reals[1]] if takes == STATE_OUT else reals  # h_n is one output a cell
    found = computed(model, np.load(data))
    assert len(found) == len(expected)
    for own, reference in zip(found, expected, strict=True):
        assert np.array_equal(own, reference.numpy())
        assert len(np.unique(own)) > 20


def test_a_script_as_in_the_manual(tmp_path):
    """QAT with auto-scale as the vendor's library has it: no calibration of ours, scales from training."""
    torch.manual_seed(0)
    settings = WitinGlobalConfig()
    kept = {name: getattr(settings, name) for name in ("use_quantization", "handle_neg_in", "scale_x", "scale_y")}
    kept |= {name: getattr(settings, name) for name in ("scale_weight", "auto_scale_updata_step", "use_auto_scale")}
    try:
        settings.use_quantization, settings.use_auto_scale = True, True
        settings.handle_neg_in = HandleNegInType.PN
        settings.scale_x, settings.scale_weight, settings.scale_y = 32, 128, 32
        settings.auto_scale_updata_step = 3

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gru = WitinGru(10, 24, batch_first=True, layer_config=WitinLayerConfig(1))
                self.fc = WitinLinear(24, 4, layer_config=WitinLayerConfig(1))

            def forward(self, x: Tensor) -> Tensor:
                output, _ = self.gru(x, torch.zeros(1, x.size(0), 24))
                return self.fc(output[:, -1, :])

        net = Net()
    finally:
        for name, value in kept.items():
            setattr(settings, name, value)
    x = torch.randn(128, 12, 10)
    label = (x[:, :, 0].sum(1) > 0).long() + 2 * (x[:, :, 1].sum(1) > 0).long()
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
    net.train()
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = F.cross_entropy(net(x), label)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    net.eval()
    chipfit.chain_scales(net, x)
    program = chipfit.lower(net, x[:1])
    assert chipfit.verify(net, program, [x])
    right = (chipfit.program.run(program, x).argmax(1) == label).float().mean()
    assert right > 0.6, right
    kinds = check_mapper(program.export(tmp_path, "witin_mapper", samples=x)[0])
    assert kinds == {"Gru2Array": 1, "Slice": 1, "Reshape": 1, "Gemm": 1, "Scale": 1}


def test_a_converted_gru(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.fc = nn.GRU(10, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.gru(x)[1][-1])

    torch.manual_seed(5)
    x = torch.randn(120, 8, 10)
    net = chipfit.convert(Net().eval(), chipfit.chip("wtm2101"), x[:2])
    chipfit.calibrate(net, [x])
    chipfit.chain_scales(net, x)
    program = chipfit.lower(chipfit.set_mode(net, "quant"), x[:1])
    assert chipfit.verify(net, program, [x])
    assert check_mapper(program.export(tmp_path, "witin_mapper", samples=x)[0])["Gru2Array"] == 1


def refused(net: nn.Module, x: Any, words: str, tmp_path: Any) -> None:
    inputs = x if isinstance(x, tuple) else (x,)
    chipfit.calibrate(net, [(inputs,)])
    chipfit.chain_scales(net, x)
    program = chipfit.lower(net, x)
    assert chipfit.verify(net, program, [inputs])
    with pytest.raises(UnsupportedError, match=words):
        program.export(tmp_path, "witin_mapper", samples=inputs)
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_given_has_no_place(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = WitinGru(6, 6, batch_first=True, layer_config=config(scale_y=32))

        def forward(self, x: Tensor) -> Tensor:
            first = self.gru(x)[1]
            return self.gru(x, first)[0]

    refused(Net(), torch.randn(120, 5, 6), r"gru.l0@1: it starts from a state that is given.*Leave hx out", tmp_path)


def test_a_cell_in_a_loop_starts_from_states(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = WitinGruCell(6, 8, layer_config=config())

        def forward(self, x: Tensor) -> Tensor:
            h = None
            for _ in range(3):
                h = self.cell(x, h)
            return h

    refused(Net(), torch.randn(120, 6), r"cell.cell@1: it starts from a state that is given", tmp_path)


def test_one_step_of_a_cell(tmp_path):
    cell, x = WitinGruCell(6, 8, layer_config=config()), torch.randn(120, 6)
    chipfit.calibrate(cell, [x])
    chipfit.chain_scales(cell, x)
    program = chipfit.lower(cell, x[:1])
    assert chipfit.verify(cell, program, [x])
    path, _, data = program.export(tmp_path, "witin_mapper", samples=x)
    assert check_mapper(path)["Gru2Array"] == 1
    assert np.array_equal(computed(onnx.load(path), np.load(data))[0], 128 * chipfit.program.run(program, x).numpy())


def test_both_ways_and_time_first(tmp_path):
    class Net(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.gru = WitinGru(6, 8, layer_config=config(), **options)
            self.swap = not options.get("batch_first")

        def forward(self, x: Tensor) -> Tensor:
            y = self.gru(x.transpose(0, 1) if self.swap else x)[0]
            return y[-1] if self.swap else y[:, -1]

    refused(Net(batch_first=True, bidirectional=True), torch.randn(120, 5, 6), "from its end", tmp_path)
    refused(Net(), torch.randn(120, 5, 6), r"must stay the first axis.*batch_first=True", tmp_path)


def test_input_that_has_no_sign_stays_uint8(tmp_path):
    torch.manual_seed(1)
    net, x = Keywords(), torch.rand(120, 12, 10)
    chipfit.calibrate(net, [x], "max")
    chipfit.chain_scales(net, x)
    program = chipfit.lower(net, x[:1])
    path, side, data = program.export(tmp_path, "witin_mapper", samples=x)
    check_mapper(path)
    assert read_side_text(side.read_text())["gru.l0"].signed_input == 0
    assert np.load(data).max() > 127


def test_warning_of_the_rounding_is_the_only_one(tmp_path):
    net, x = Keywords(), torch.randn(120, 12, 10)
    chipfit.calibrate(net, [x])
    chipfit.chain_scales(net, x)
    with pytest.warns(ChipfitWarning, match="rounds as 'witin_nn'") as seen:
        chipfit.lower(net, x[:1], rounding="witin_nn").export(tmp_path, "witin_mapper", samples=x)
    assert len(seen) == 1
