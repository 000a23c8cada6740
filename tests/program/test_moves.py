"""Borders and maxima: moves of codes, equal to torch's on every code, and what the exports make of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.errors import UnsupportedError
from chipfit.program import load_program, lower, run, save_program, verify
from chipfit.program.ops import Max, Pad
from witin_nn import HandleNegInType, WitinConv2d, WitinLayerConfig

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
OPTIONS = {"use_quantization": True, "use_auto_scale": False, "scale_x": 32, "scale_weight": 64, "scale_y": 16}


def config(**options: Any) -> WitinLayerConfig:
    return WitinLayerConfig(1, **{**OPTIONS, **options})


class Around(nn.Module):
    """A convolution before a function, and one behind it."""

    def __init__(self, function: Any, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.before = WitinConv2d(2, 3, 2, layer_config=config())
        self.function, self.behind = function, behind or nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.behind(self.function(self.before(x)))


X = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0)) * 4
PADS = {
    "zeros": lambda x: F.pad(x, (1, 2, 0, 1)),
    "cut": lambda x: F.pad(x, (-1, 2)),
    "channels": lambda x: F.pad(x, (0, 0, 0, 0, 2, 1)),
    "number": lambda x: F.pad(x, (1, 1), value=-1.5),
    "beyond": lambda x: F.pad(x, (1, 1), "constant", 100.0),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (0, 2, 1, 1), "replicate"),
    "circular": lambda x: F.pad(x, (1, 1, 1, 1), "circular"),
    "ZeroPad2d": nn.ZeroPad2d((1, 0, 2, 0)),
    "ConstantPad2d": nn.ConstantPad2d(1, 0.5),
    "ReflectionPad2d": nn.ReflectionPad2d(1),
    "ReplicationPad2d": nn.ReplicationPad2d(1),
    "CircularPad2d": nn.CircularPad2d(1),
}
MAXIMA = {
    "amax": lambda x: torch.amax(x, (2, 3)),
    "method": lambda x: x.amax(1, keepdim=True),
    "axes": lambda x: x.amax(dim=(-1, 1)),
    "first": lambda x: torch.max(x, 1)[0],
    "values": lambda x: x.max(dim=2, keepdim=True).values,
    "named": lambda x: torch.max(x, dim=-1, keepdim=True)[0],
}


@pytest.mark.parametrize("name", [*PADS, *MAXIMA])
def test_codes_are_those_of_the_network(name: str, tmp_path: Any) -> None:
    net = Around((PADS | MAXIMA)[name])
    program = lower(net, X[:2])
    (op,) = [node.op for node in program.nodes if isinstance(node.op, (Pad, Max))]
    assert isinstance(op, Pad) is (name in PADS)
    proof = verify(net, program, [X])
    assert proof.equal and sum(proof.codes.values()) > 100
    save_program(tmp_path, program)
    assert torch.equal(run(load_program(tmp_path), X), run(program, X))


def test_the_border_is_a_code_and_the_grid_holds_it() -> None:
    zeros = lower(Around(PADS["zeros"]), X[:1])
    assert zeros.node("pad").op == Pad((1, 2, 0, 1), "constant", 0)
    assert lower(Around(PADS["number"]), X[:1]).node("pad").op == Pad((1, 1), "constant", -24)
    beyond = lower(Around(PADS["beyond"]), X[:1])
    assert beyond.node("pad").op == Pad((1, 1), "constant", 1600) and beyond.type("pad").bits == 12
    assert lower(Around(lambda x: F.pad(x, (0, 0, 1, 1, 0, 0))), X[:1]).node("pad").op.pads == (0, 0, 1, 1)
    assert [node.name for node in lower(Around(lambda x: F.pad(x, (0, 0))), X[:1]).nodes][-2:] == ["before", "output"]


@pytest.mark.parametrize("negative", [HandleNegInType.Shift, HandleNegInType.PN, HandleNegInType.FALSE])
@pytest.mark.parametrize("first", [True, False])
def test_a_border_before_a_layer_that_lifts_its_codes(negative: HandleNegInType, first: bool) -> None:
    """The border is zero before the layer lifts it: code 0 of the network, code 48 of the layer."""
    conv = WitinConv2d(3, 2, 3, layer_config=config(handle_neg_in=negative, shift_num=1.5))
    net: nn.Module = nn.Sequential(nn.ZeroPad2d(1), conv) if first else Around(nn.ZeroPad2d(1), conv)
    x = torch.randn(5, 3, 4, 4) if first else X
    program = lower(net, x[:1])
    assert next(node.op for node in program.nodes if isinstance(node.op, Pad)).value == 0
    proof = verify(net, program, [x])
    assert proof.equal and sum(proof.codes.values()) > 100


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: F.pad(x, (1, 1), value=0.3), "no code of the tensor's grid; got 0.3; allowed: multiples of 1/16"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1)), "a border along the batch"),
        (lambda x: x.amax(0), "a maximum over the batch"),
        (lambda x: x.max(), "a maximum over the batch"),
        (lambda x: torch.max(x, 1), "returns something that is no tensor"),
        (lambda x: torch.max(x, 1).indices.float(), "places of maxima are no codes"),
        (lambda x: torch.max(x, x), r"Write a \+ relu\(b - a\)"),
        (lambda x: x.argmax(1), "Leave it to the code that reads the outputs"),
        (lambda x: x.mT, "the attribute mT of a tensor"),
    ],
)
def test_what_codes_cannot_do_is_refused(function: Any, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        lower(Around(function), X[:1])


def test_a_border_of_real_numbers_is_whole() -> None:
    with pytest.raises(UnsupportedError, match="whole numbers before the first chip layer"):
        lower(nn.Sequential(nn.ConstantPad2d(1, 0.5), WitinConv2d(2, 2, 1, layer_config=config())), X[:1])
    net = nn.Sequential(nn.ConstantPad2d(1, 2.0), WitinConv2d(2, 2, 1, layer_config=config()))
    assert verify(net, lower(net, X[:1]), [X])
