"""What the converter and a vendor's folder say to each other: an operation of a network, and what the chip makes of it.

A vendor's `map_operation(operation, chip)` answers for each operation of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from chipfit.hardware import Chip
from chipfit.vendor import vendor_of

if TYPE_CHECKING:
    from chipfit.convert.preparing import Preparation

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """What a tensor looked like on the example.

    Args:
        shape: Its shape, the batch first.
        lowest: Its smallest value.
        largest: Its largest magnitude.
        smallest: Its smallest magnitude.
        batched: Whether axis 0 grows with the batch of the input.
        highest: Its greatest value.
        steps: Of an input, the least of 1, 128 and 255 whose inverse all its values are multiples of; 0 for none.
        counts: Whether it holds integers or truth values instead of floating-point numbers.
    """

    shape: Shape
    lowest: float = 0.0
    largest: float = 0.0
    smallest: float = 0.0
    batched: bool = True
    highest: float = 0.0
    steps: int = 0
    counts: bool = False


@dataclass(frozen=True)
class Operation:
    """One operation of a network.

    Args:
        name: The user's name of the module, or the module's name and the function's.
        kind: What it computes, for instance 'conv2d', 'add', 'mean'; one name for module, function and method.
        inputs: The tensors that it reads; a Python number stands for itself.
        output: What it gives; of several tensors the first.
        nonnegative: Whether each input has no negative values, which the graph shows.
        options: Its other arguments by torch's names, for instance `dim`.
        module: The user's module, where it is one.
        activation: The activation behind it, where the chip has that inside its operator.
        norm: The batch norm behind it, where the chip has that inside its operator.
        first: It reads an image that the chip's own operator prepared.
        last: No operator of the chip reads its result.
        readers: Kinds of the operations that read its result.
        approximate: The chip's nearest operator may stand for it.
        bits: Width wanted for its result.
        weight_bits: Width wanted for its weight.
    """

    name: str
    kind: str
    inputs: tuple[Seen | float, ...]
    output: Seen
    nonnegative: tuple[bool, ...]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    module: nn.Module | None = None
    activation: Operation | None = None
    norm: nn.Module | None = None
    first: bool = False
    last: bool = False
    readers: tuple[str, ...] = ()
    approximate: bool = False
    bits: int = 8
    weight_bits: int = 8

    @property
    def shape(self) -> Shape:
        """Shape of the first tensor that it reads."""
        return next(x.shape for x in self.inputs if isinstance(x, Seen))


@dataclass(frozen=True)
class Mapped:
    """What a chip makes of an operation.

    Args:
        operator: The chip's operator, or what stays of torch's.
        unit: 'array', 'digital', 'npu' or 'cpu'.
        build: Makes the module that takes the operation's place; None where torch's own stays.
        reason: Why it runs on the CPU core.
        problems: Limits of the chip that it breaks.
        suggestions: What to do about either.
        rows: Rows of the analog array, where it has one.
        columns: Columns of the analog array.
        reads: How many of the inputs the module takes; None for all.
        feature: Of a chip whose operators pass features, what it gives; None where that is a tensor.
    """

    operator: str
    unit: str
    build: Callable[[], nn.Module] | None = None
    reason: str = ""
    problems: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    rows: int = 0
    columns: int = 0
    reads: int | None = None
    feature: FeatureOut | None = None


@dataclass(frozen=True)
class FeatureOut:
    """What an operator does with features.

    Args:
        form: 'new': it gives codes of a range of its own; 'kept': the codes that it was given, or means and products of
            them, so that they keep their unit; 'sum': codes of a sum, whose unit follows from the inputs; 'table': a
            function of each value by itself, on the CPU core.
        signed: Whether there are negative codes; None as in the inputs.
        joins: Whether it takes its inputs as one list.
        alike: What its inputs must agree in: 'sign', 'unit'.
        several: Whether it gives a list.
        passes: Whether it takes a tensor as well as a feature, and gives back what it took.
        begins: Whether it may read an input of the network as an image.
    """

    form: str = "new"
    signed: bool | None = None
    joins: bool = False
    alike: frozenset[str] = frozenset()
    several: bool = False
    passes: bool = False
    begins: bool = False


@dataclass(frozen=True)
class FeatureRules:
    """What a chip adds to its rules whose operators pass features (a tensor, its width and sign), no tensors.

    Args:
        absorbs: Whether the chip has an activation inside the operator of the operation before it.
        keeps_norm: Whether the chip has a batch norm inside the operator of a layer; may rewrite both, to the same
            function.
        image: Makes the operator that prepares an input of the network for its first layers: of the input, whether it
            is signed, the chip, and how the network itself prepares it.
        enter: Makes the module from tensor to feature, of a tensor, its kind of source, whether it is signed, and bits.
        leave: Makes the module from feature to tensor.
        requantise: Makes the module that gives a feature a sign and a range of its own; it takes shape, sign and bits.
        check_bits: Refuses widths that the chip has not.
        sums_are_fixed: Whether the chip divides a sum by a fixed number.
        stand_ins: The chip's nearest kind of operation for kinds that it has not.
        finish: Told the converted network, last of all.
    """

    absorbs: Callable[[Operation, Chip], bool]
    keeps_norm: Callable[[nn.Module, nn.Module], bool]
    image: Callable[[Seen, bool, Chip, Preparation], nn.Module]
    enter: Callable[[Seen, str, bool, int, Chip], nn.Module]
    leave: Callable[[Seen, Chip], nn.Module]
    requantise: Callable[[Shape, bool, int, Chip], nn.Module]
    check_bits: Callable[[int, str, Chip], None]
    sums_are_fixed: Callable[[Chip], bool]
    stand_ins: Mapping[str, str]
    finish: Callable[[nn.Module], None] = lambda network: None


def on_cpu(reason: str, suggestion: str = "") -> Mapped:
    """Leave an operation to torch, on the chip's CPU core.

    Args:
        reason: Why the chip does not compute it.
        suggestion: What to do about it; empty for nothing.
    """
    return Mapped("", "cpu", None, reason, (), (suggestion,) if suggestion else ())


MapOperation = Callable[[Operation, Chip], Mapped]


def rules_of(chip: Chip) -> MapOperation:
    """The conversion rules of a chip.

    Example:
        >>> from chipfit.vendor import chip
        >>> rules_of(chip("wtm2101")).__name__
        'map_operation'
    """
    return vendor_of(chip).map_operation


def feature_rules_of(chip: Chip) -> FeatureRules | None:
    """What a chip adds whose operators pass features; None for a chip whose operators pass tensors.

    Example:
        >>> from chipfit.vendor import chip
        >>> feature_rules_of(chip("wtm2101")) is None, feature_rules_of(chip("t40")) is None
        (True, False)
    """
    return vendor_of(chip).features
