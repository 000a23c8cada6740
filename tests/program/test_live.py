"""A program holds what is read and nothing else; the proof still knows which call of a layer it compares."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.chips import ingenic
from chipfit.errors import UnsupportedError
from chipfit.program import Program, load_program, lower, run, save_program, verify
from chipfit.program.live import simplified, stacked
from chipfit.program.types import tensor_names
from support.damage import resummed
from witin_nn import HandleNegInType, WitinElementAdd, WitinGru, WitinGruCell, WitinLayerConfig, WitinLinear

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


def config() -> WitinLayerConfig:
    return WitinLayerConfig(1, use_quantization=True, handle_neg_in=HandleNegInType.PN, rounding="wtm2101")


def assert_live(program: Program) -> None:
    """Every node is read or an output, every tensor belongs to a node."""
    for node in program.nodes:
        assert node.name in program.outputs or program.readers(node.name), node.name
    assert set(program.tensors) == {name for node in program.nodes for name in tensor_names(node.op)}


class Sequence(nn.Module):
    """A GRU of which the network takes this or that."""

    def __init__(self, takes: str, **options: Any) -> None:
        super().__init__()
        self.takes = takes
        self.gru = WitinGru(5, 6, batch_first=True, layer_config=config(), **options)
        self.head = WitinLinear(6, 3, layer_config=config())

    def forward(self, x: Tensor) -> Any:
        zero = torch.zeros(len(self.gru.suffixes), x.size(0), 6)
        y, h = self.gru(x, zero) if self.takes == "zero state" else self.gru(x)
        results = {
            "sequence": lambda: y,
            "zero state": lambda: self.head(y[:, -1, :6]),
            "last of the sequence": lambda: self.head(y[:, -1, :6]),
            "last state": lambda: self.head(h[-1]),
            "first state": lambda: self.head(h[0]),
            "both": lambda: (y, h),
            "states": lambda: h,
        }
        return results[self.takes]()


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize(
    "takes", ["sequence", "zero state", "last of the sequence", "last state", "first state", "both", "states"]
)
def test_gru(takes: str, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    net, x = Sequence(takes, **options), torch.randn(30, 4, 5)
    if takes in ("sequence", "both", "states"):
        net.head = nn.Identity()
    chipfit.calibrate(net, [x])
    program = lower(chipfit.set_mode(net, "quant"), x[:2])
    assert_live(program)
    proof = verify(net, program, [x])
    assert proof, proof
    if takes == "sequence":
        assert not any("last" in node.name for node in program.nodes)
    if takes == "last state":
        assert not any("stacked" in node.name for node in program.nodes)
    if takes in ("sequence", "last state"):
        assert proof.codes["gru"] == 30 * 4 * 6 * (1 if takes == "last state" else 1 + ("bidirectional" in options))


@pytest.mark.parametrize("how", ["squeeze", "view", "index", "select", "unbind"])
def test_the_only_state_is_read_as_it_is(how: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = WitinGru(5, 6, batch_first=True, layer_config=config())

        def forward(self, x: Tensor) -> Tensor:
            h = self.gru(x)[1]
            ways = {
                "squeeze": lambda: h.squeeze(0),
                "view": lambda: h.view(-1, 6),
                "index": lambda: h[0],
                "select": lambda: h.select(0, -1),
                "unbind": lambda: h.unbind(0)[0],
            }
            return torch.relu(ways[how]())

    torch.manual_seed(0)
    net, x = Net(), torch.randn(8, 4, 5)
    chipfit.calibrate(net, [x])
    program = lower(net, x[:2])
    assert [node.name for node in program.nodes] == ["gru.l0.x", "gru.l0", "gru.l0.last", "relu", "output"]
    assert verify(net, program, [x])


class Twice(nn.Module):
    """A layer called three times; of the second call nobody reads the result."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.idle = WitinLinear(4, 4, layer_config=config()), WitinLinear(4, 4, layer_config=config())
        self.add = WitinElementAdd(layer_config=config())

    def forward(self, x: Tensor) -> Tensor:
        first = self.fc(x)
        self.fc(first)
        self.idle(first)
        return self.add(first, self.fc(torch.relu(first)))


def test_calls_that_nobody_reads() -> None:
    torch.manual_seed(0)
    net, x = Twice(), torch.randn(50, 4)
    chipfit.calibrate(net, [x])
    program = lower(net, x[:2])
    assert_live(program)
    assert [(node.name, node.call) for node in program.nodes if node.layer == "fc"] == [("fc", 0), ("fc@2", 2)]
    proof = verify(net, program, [x])
    assert proof, proof
    assert list(proof.codes) == ["fc", "add", "output"]
    assert proof.codes["fc"] == 2 * 50 * 4
    wrong = [replace(node, call=1) if node.name == "fc@2" else node for node in program.nodes]
    assert not verify(net, replace(program, nodes=tuple(wrong)), [x])
    missing = [replace(node, call=3) if node.name == "fc@2" else node for node in program.nodes]
    with pytest.raises(UnsupportedError, match="fc: the network calls the layer less often"):
        verify(net, replace(program, nodes=tuple(missing)), [x])


def test_files_of_before_calls_had_numbers(tmp_path: Any) -> None:
    class Once(Twice):
        def forward(self, x: Tensor) -> Tensor:
            first = self.fc(x)
            return self.add(first, self.fc(torch.relu(first)))

    torch.manual_seed(0)
    net, x = Once(), torch.randn(20, 4)
    net.idle = nn.Identity()
    chipfit.calibrate(net, [x])
    program = lower(net, x[:2])
    save_program(tmp_path, program)
    assert load_program(tmp_path).nodes == program.nodes
    content = json.loads((tmp_path / "program.json").read_text())
    for node in content["nodes"]:
        del node["call"], node["share"]
    (tmp_path / "program.json").write_text(json.dumps(content))
    resummed(tmp_path)
    old = load_program(tmp_path)
    assert [node.call for node in old.nodes if node.layer == "fc"] == [0, 1]
    assert verify(net, old, [x])


def test_ingenic_networks_too() -> None:
    options: dict[str, Any] = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}
    options |= {"target_device": "T40", "padding": 1, "enable_bias": True, "activation_fn": None}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.preprocess = ingenic.Preprocess(0, 255.0, target_device="T40")
            self.first = ingenic.Conv2D(1, 32, first_layer=True, **options)
            self.second, self.idle = ingenic.Conv2D(32, 32, **options), ingenic.Conv2D(32, 32, **options)

        def forward(self, image: Tensor) -> Any:
            x = self.first(self.preprocess(image))
            self.idle(x)
            self.second(self.second(x))
            return self.second(x)

    torch.manual_seed(0)
    net, image = Net().eval(), torch.randint(0, 256, (3, 1, 6, 6)) / 255
    program = lower(net, image[:1])
    assert_live(program)
    assert not any(node.name.startswith("idle") for node in program.nodes)
    assert [node.call for node in program.nodes if node.layer == "second"] == [2]
    proof = verify(net, program, [image])
    assert proof, proof
    assert list(proof.codes) == ["first", "second", "output"]


def test_an_input_that_nobody_reads_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = WitinLinear(4, 3, layer_config=config())

        def forward(self, x: Tensor, unread: Tensor) -> Tensor:
            return self.fc(x)

    net, inputs = Net(), (torch.randn(5, 4), torch.randn(5, 2))
    chipfit.calibrate(net, [(inputs,)])
    program = lower(net, inputs)
    assert [given.name for given in program.inputs] == ["x", "unread"]
    assert verify(net, program, [inputs])


def test_a_stack_is_known_by_its_shape() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = WitinLinear(6, 6, layer_config=config())

        def forward(self, x: Tensor) -> Any:
            y = self.fc(x)
            both = torch.stack([y, torch.relu(y)])
            merged = y.view(1, -1, 3)  # rows of half a sample: no stack
            return both[1], merged[0], both

    net, x = Net(), torch.randn(10, 6)
    chipfit.calibrate(net, [x])
    program = lower(net, x[:2])
    assert_live(program)
    assert [stacked(program, program.node(name).inputs[0]) for name in program.outputs] == [(), (), ("fc", "relu")]
    assert program.node(program.outputs[0]).inputs == ("relu",)
    results: Any = run(program, x)
    with torch.no_grad():
        expected = net.eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert simplified(program) == program


class WithState(nn.Module):
    """A GRU that goes on from a state: given to the network, or made in it."""

    def __init__(self, made: bool, cell: bool) -> None:
        super().__init__()
        kind: Any = WitinGruCell if cell else WitinGru
        self.made, self.cell = made, cell
        self.gru = kind(5, 6, layer_config=config(), **({} if cell else {"batch_first": True}))
        self.start = WitinLinear(5, 6, layer_config=config())
        self.head = WitinLinear(6, 3, layer_config=config())

    def forward(self, x: Tensor, h: Tensor) -> Any:
        h = torch.relu(self.start(x[:, 0])) if self.made else h
        if self.cell:
            h = self.gru(x[:, 0], h)
            return self.head(h), h
        y, h = self.gru(x, h.unsqueeze(0))
        return self.head(y[:, -1]), h


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("cell", [False, True])
def test_state_in_and_state_out(made: bool, cell: bool) -> None:
    torch.manual_seed(2)
    net = WithState(made, cell)
    inputs = torch.randn(40, 4, 5), torch.rand(40, 6) * 2 - 1
    if not made:
        net.start = nn.Identity()
    chipfit.calibrate(net, [(inputs,)])
    program = lower(net, inputs)
    assert_live(program)
    proof = verify(net, program, [inputs])
    assert proof, proof
    gru = next(node for node in program.nodes if node.name.startswith("gru") and len(node.inputs) == 2)
    assert program.type(gru.inputs[1]).scale == 128
    if not made:
        head, state = (float(out.abs().sum()) for out in run(program, *inputs))
        other, moved = (float(out.abs().sum()) for out in run(program, inputs[0], -inputs[1]))
        assert head != other and state != moved


def test_zeros_are_a_first_state_and_nothing_else() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.add = WitinLinear(4, 4, layer_config=config()), WitinElementAdd(layer_config=config())

        def forward(self, x: Tensor) -> Tensor:
            return self.add(self.fc(x), torch.zeros_like(x))

    with pytest.raises(UnsupportedError, match="a tensor that does not depend on the input"):
        lower(Net(), torch.randn(2, 4))
