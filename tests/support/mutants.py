"""Mutants: one line of the training arithmetic changed, which `verify` has to notice.

A program that took anything from the arithmetic that trains would change along with it, and the proof would say
"equal" of a network that is wrong. So each mutant is a change of one line of a training function; under it a network is
built, lowered and compared. The program must stay what it was, bit for bit, and the proof must not hold (or the network
is refused).

A chip's test file gives cases (a network, its batches) and mutants, and calls `check_case` and `check_mutant`:

    CASES = {"dense": Case(dense, (x,))}
    MUTANTS = [Mutant("the weight's sign", "mychip.rule:codes", "w * scale", "-w * scale", "dense")]
"""

from __future__ import annotations
import __future__

import functools
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.errors import ChipfitError
from chipfit.program import Program, lower, verify

SEED = 5


@dataclass(frozen=True)
class Case:
    """A small network on which mutants are tried.

    Args:
        network: Builds it; random numbers start from one seed each time. It is called under the mutant.
        batches: What it is compared on; the first one is the example.
        options: Options of `lower`.
    """

    network: Callable[[], nn.Module]
    batches: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def example(self) -> Any:
        return self.batches[0]

    def built(self) -> nn.Module:
        torch.manual_seed(SEED)
        return self.network()


@dataclass(frozen=True)
class Mutant:
    """One changed line.

    Args:
        what: The mistake.
        where: The function, as 'module:name' or 'module:Class.method'; a property by its name.
        old: Text that occurs once in the function's source, within a line.
        new: What stands there instead.
        case: Name of the case that exercises it.
    """

    what: str
    where: str
    old: str
    new: str
    case: str

    def __str__(self) -> str:
        return f"{self.where.rpartition(':')[2]}: {self.what}"


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Run the mutant's line in place of the function's own, for whoever holds the function."""
    function, cached = _function(mutant.where)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(mutant.old) == 1, f"{mutant}: {mutant.old!r} occurs {source.count(mutant.old)} times"
    assert "\n" not in mutant.old + mutant.new, f"{mutant}: more than one line"
    original = function.__code__
    function.__code__ = _code(source.replace(mutant.old, mutant.new), original)
    _clear(cached)
    try:
        yield
    finally:
        function.__code__ = original
        _clear(cached)


def _function(where: str) -> tuple[FunctionType, Any]:
    """The plain function of a name, and what is wrapped around it."""
    module, _, name = where.partition(":")
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    found = inspect.getattr_static(owner, last)
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    function = inspect.unwrap(found)
    assert isinstance(function, FunctionType), where
    return function, found


def _clear(cached: Any) -> None:
    if hasattr(cached, "cache_clear"):
        cached.cache_clear()


def _code(source: str, original: CodeType) -> CodeType:
    """The compiled body of the function in a source text."""
    if "__class__" in original.co_freevars:  # super() is bound to the class that the source stands in
        source = "class _Of:\n" + textwrap.indent(source, "    ")
    flags = __future__.annotations.compiler_flag
    pending = [compile(source, original.co_filename, "exec", flags, dont_inherit=True)]
    while pending:
        code = pending.pop()
        if code.co_name == original.co_name:
            assert code.co_freevars == original.co_freevars, f"{original.co_name} is a closure"
            return code
        pending += [part for part in code.co_consts if isinstance(part, CodeType)]
    raise AssertionError(f"no function {original.co_name} in its own source")


@functools.cache
def _unchanged(case: Case) -> Program:
    return lower(case.built(), case.example, **case.options)


def check_case(case: Case) -> None:
    """The network and its program are equal as long as nothing is changed, and codes are compared at all."""
    proof = verify(case.built(), _unchanged(case), case.batches)
    assert proof.equal, str(proof)
    assert all(proof.codes.values()), proof.codes


def check_mutant(mutant: Mutant, cases: Mapping[str, Case]) -> str:
    """The mutant is noticed; returns what was said of it."""
    case = cases[mutant.case]
    before = _unchanged(case)
    with applied(mutant):
        net = case.built()
        try:
            program = lower(net, case.example, **case.options)
            proof = verify(net, program, case.batches)
        except ChipfitError as refused:
            return f"refused: {refused}"
    assert same_program(before, program), f"{mutant}: the program follows the training arithmetic"
    assert not proof.equal, f"{mutant}: {proof}"
    return str(proof)


def same_program(one: Program, other: Program) -> bool:
    """Whether two programs are equal in every node and number."""
    if (one.chip, one.nodes, one.inputs, one.outputs) != (other.chip, other.nodes, other.inputs, other.outputs):
        return False
    names = one.tensors.keys() | other.tensors.keys()
    return names == one.tensors.keys() == other.tensors.keys() and all(_same(one, other, name) for name in names)


def _same(one: Program, other: Program, name: str) -> bool:
    first, second = one.tensors[name], other.tensors[name]
    return first.dtype == second.dtype and torch.equal(first, second)


def ramp(*shape: int, low: float = -1.0, high: float = 1.0, step: float = 0.0) -> Tensor:
    """Numbers that cover a range evenly, in an order of their own; with a `step` half of them lie on its multiples.

    Example:
        >>> sorted(ramp(1, 3).flatten().tolist())
        [-1.0, 0.0, 1.0]
    """
    count = int(torch.tensor(shape).prod())
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    values = torch.linspace(low, high, count)[order]
    if step:
        values[::2] = (values[::2] / step).round() * step
    return values.view(shape)
