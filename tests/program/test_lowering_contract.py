"""Lowering and proof know no vendor: a chip that exists only here is lowered and proven by its record alone."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipfit
from chipfit import vendor as contract
from chipfit.errors import UnknownOptionError, UnsupportedError
from chipfit.hardware import Chip
from chipfit.program import lower, ops, verify
from chipfit.program.comparing import Comparing, Settled
from chipfit.program.lowering.builder import Builder, Call, Value, grid
from chipfit.program.lowering.rules import MOVING, Lowering
from chipfit.vendor import Option, Vendor


class Doubled(nn.Module):
    """Twice the 8-bit codes of its input at 16 a unit, plus `extra` codes."""

    mode = "quant"

    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        codes = (x * 16).round().clamp(-128, 127)
        return (2 * codes + self.extra).clamp(-128, 127) / 16


class Oracle(nn.Module):
    """A layer that has no integers."""

    mode = "quant"

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def doubled(b: Builder, call: Call, layer: Doubled, x: Value) -> Value:
    on = grid(8, True, 16.0)
    q = b.on_grid(f"{call.name}.input", x, on)
    if call.options["extra"] is not None:
        extra = b.add(f"{call.name}.extra", ops.Constant(b.keep("extra", torch.tensor(call.options["extra"]))), (), on)
        q2 = b.add(f"{call.name}.twice", ops.Add(0, -1024, 1023), (q, q), grid(11, True, 16.0))
        return b.add(call.name, ops.Add(0, -128, 127), (q2, extra), on, layer=call.layer)
    return b.add(call.name, ops.Add(0, -128, 127), (q, q), on, layer=call.layer)


LOWERING = Lowering({Doubled: doubled}, {Oracle: "nobody knows"}, advice={"sin": "Ask the oracle."})


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A vendor beside the real ones; what a test changes of it is registered anew."""

    def register(**changes: Any) -> Vendor:
        chip = Chip("toy1", "toy", "A toy", (8,), (8,))
        made = Vendor("toy", (chip,), (Doubled, Oracle), lambda *_: None, lowering=LOWERING)  # type: ignore[arg-type,return-value]  # converts nothing
        made = replace(made, options={"lower": {"extra": Option(None, (None, 0, 1), "codes to add")}}, **changes)
        known = {**real, "toy": made}
        monkeypatch.setattr(contract, "vendors", lambda: known)
        return made

    real = dict(contract.vendors())
    register()
    return register


class Net(nn.Module):
    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


X = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)) * 4


def test_a_chip_that_nobody_knows_is_lowered_and_proven(toy: Any) -> None:
    net = Net(lambda s, x: F.relu(s.b(s.a(x))).flatten(1), a=Doubled(), b=Doubled())
    program = lower(net, X)
    assert program.chip == "toy1"
    proof = verify(net, program, [X])
    assert proof.equal and proof.codes == {"a": 48, "b": 48, "output": 48}
    assert (proof.rounding, proof.trained_otherwise, proof.in_float64) == ((), (), ())
    wrong = verify(Net(net.function, a=Doubled(), b=Doubled(1)), program, [X])
    assert wrong.mismatch is not None and wrong.mismatch.layer == "b"


def test_what_is_settled_is_said(toy: Any) -> None:
    def settle(root: nn.Module, program: Any) -> Settled:
        root.a.extra = 0
        return Settled(("up",), ("a",))

    toy(comparing=Comparing(settle))
    net = Net(lambda s, x: s.a(x), a=Doubled(1))
    proof = verify(net, lower(net, X), [X])
    assert proof.equal and proof.rounding == ("up",) and "another rounding rule than up: a" in str(proof)
    assert net.a.extra == 1


def test_options_are_the_vendors(toy: Any) -> None:
    net = Net(lambda s, x: s.a(x), a=Doubled(1))
    assert verify(net, lower(net, X, extra=1), [X]).equal
    with pytest.raises(UnknownOptionError, match=r"unknown option; got 'extro'; allowed: extra. Did you mean 'extra'"):
        lower(net, X, extro=1)
    with pytest.raises(UnknownOptionError, match="unknown extra; got 7; allowed: None, 0, 1"):
        lower(net, X, extra=7)


def test_an_option_by_position_is_deprecated(toy: Any) -> None:
    net = Net(lambda s, x: s.a(x), a=Doubled(1))
    with pytest.warns(DeprecationWarning, match=r"write extra=1"):
        program = lower(net, X, 1)
    assert program.nodes == lower(net, X, extra=1).nodes
    with pytest.raises(UnknownOptionError, match="options have names"):
        lower(net, X, 1, 2)


def test_every_call_is_listed(toy: Any) -> None:
    net = Net(lambda s, x: s.b(torch.sin(s.oracle(s.a(x).exp()))), a=Doubled(), b=Doubled(), oracle=Oracle())
    with pytest.raises(UnsupportedError) as caught:
        lower(net, X)
    text = str(caught.value)
    assert text.startswith("Net: 3 call(s) cannot be lowered:")
    assert "exp: exp has no integer form" in text
    assert "oracle (layer oracle): Oracle cannot be lowered: nobody knows" in text
    assert "sin: sin has no integer form. Ask the oracle." in text


def test_what_may_stand_between_layers_is_the_vendors(toy: Any) -> None:
    net = Net(lambda s, x: F.relu(s.a(x)).flatten(1), a=Doubled())
    assert verify(net, lower(net, X), [X]).equal
    toy(lowering=replace(LOWERING, plain=MOVING, between="toys", hint="Play."))
    with pytest.raises(UnsupportedError, match=r"relu: relu has no integer form between toys\. Play\."):
        lower(net, X)
    moving = Net(lambda s, x: s.flat(s.a(x).transpose(1, 2)), a=Doubled(), flat=nn.Flatten())
    assert verify(moving, lower(moving, X), [X]).equal


def test_calls_that_nothing_depends_on_are_not_in_the_program(toy: Any) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        torch.sin(net.b(net.oracle(y)))  # an auxiliary head of training
        F.relu(y)
        return net.a(y)

    net = Net(forward, a=Doubled(), b=Doubled(), oracle=Oracle())
    program = lower(net, X)
    assert [node.name for node in program.nodes if isinstance(node.op, ops.Relu)] == []
    assert verify(net, program, [X]).equal


def test_a_layers_unused_calls_do_not_shift_the_others(toy: Any) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        net.a(x.sin())  # cannot be lowered, and nothing reads it
        return net.a(net.a(x))

    net = Net(forward, a=Doubled())
    program = lower(net, X)
    assert [node.name for node in program.nodes if node.layer] == ["a@1", "a@2"]
    assert verify(net, program, [X]).equal


@pytest.mark.parametrize(
    "change", [lambda v: v.relu_(), torch.relu_, lambda v: F.relu(v, inplace=True), nn.ReLU(inplace=True)]
)
def test_what_is_changed_in_place_is_read_changed(toy: Any, change: Any) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        change(y) if not isinstance(change, nn.Module) else net.change(y)
        return net.b(y)

    layers = {"change": change} if isinstance(change, nn.Module) else {}
    net = Net(forward, a=Doubled(), b=Doubled(), **layers)
    program = lower(net, X)
    assert any(isinstance(node.op, ops.Relu) for node in program.nodes)
    assert verify(net, program, [X]).equal


def test_plain_networks_are_sent_to_convert(toy: Any) -> None:
    for verb in (lambda net: lower(net, X), lambda net: verify(net, lower(Doubled(), X), [X])):
        with pytest.raises(UnsupportedError, match=r"no chip layers.*chipfit\.convert"):
            verb(nn.Linear(4, 4))


def test_a_program_of_another_vendor_is_refused(toy: Any) -> None:
    program = lower(Doubled(), X)
    with pytest.raises(UnsupportedError, match="not this network's; got 'a program for wtm2101'"):
        verify(Doubled(), replace(program, chip="wtm2101"), [X])


def test_a_network_in_float_has_no_codes(toy: Any) -> None:
    net = Net(lambda s, x: s.b(s.a(x)), a=Doubled(), b=Doubled())
    net.a.mode = "float"
    with pytest.raises(UnsupportedError, match=r"1 call.*\n  a \(layer a\): the layer is in mode 'float'"):
        lower(net, X)
    net.b.mode = "float"
    with pytest.raises(UnsupportedError, match="layers in mode 'float' have no codes; got 'a'"):
        lower(net, X)


def test_the_rounding_of_the_array_is_an_option_of_its_vendor() -> None:
    from witin_nn import WitinLayerConfig, WitinLinear

    config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=64, scale_weight=64, scale_y=32)
    net = WitinLinear(4, 2, layer_config=config)
    x = torch.randn(3, 4)
    with pytest.warns(DeprecationWarning, match="rounding='witin_nn'"):
        old = chipfit.lower(net, x, "witin_nn")
    assert old.nodes == chipfit.lower(net, x, rounding="witin_nn").nodes != chipfit.lower(net, x).nodes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chipfit.lower(net, x, rounding=None).nodes == old.nodes
