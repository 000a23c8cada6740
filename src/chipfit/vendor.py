"""The contract: what a chip's folder has to say, and how it is found.

A vendor is one frozen `Vendor`. `chipfit/chips/<folder>/vendor.py` holds one under the name `VENDOR`, and so may any
other package that names it in its entry points:

    [project.entry-points."chipfit.chips"]
    mychip = "mychip.vendor:VENDOR"

Nothing else in chipfit knows a vendor. Every verb asks `vendor_of(...)` who is meant and goes by what the record says;
a part that a chip does not have keeps its default, and the verb that would need it says so. docs/add-a-chip.md walks
through a whole one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from chipfit.errors import InvalidValueError, UnknownOptionError, UnsupportedError, nearest

if TYPE_CHECKING:
    from chipfit.convert.words import FeatureRules, Mapped, Operation
    from chipfit.export.formats import Format
    from chipfit.fit.contract import Fitting
    from chipfit.hardware import Chip
    from chipfit.program.comparing import Comparing
    from chipfit.program.dialect import Dialect
    from chipfit.program.lowering.rules import Lowering
    from chipfit.program.types import Program

ENTRY_POINTS = "chipfit.chips"


@dataclass(frozen=True)
class Option:
    """An option of a verb that only some chips have.

    Args:
        default: What holds where it is not given.
        allowed: The values that it may have; None for any, which the vendor then checks itself.
        help: One line for people.
        noun: What its values are called in an error; '' for its name.
    """

    default: Any = None
    allowed: tuple[Any, ...] | None = None
    help: str = ""
    noun: str = ""


@dataclass(frozen=True)
class Vendor:
    """One vendor's chips, and how they are converted to, trained, lowered, proven and written.

    Args:
        name: Name of the folder or package.
        chips: Descriptions of the chips.
        layers: Base classes of the layers; a module that is an instance of one is this vendor's.
        map_operation: What a chip makes of an operation of a plain network.
        features: Conversion rules of chips whose operators pass features (a tensor with its width and sign); None where
            they pass tensors.
        fitting: How scales are calibrated, biases corrected, layers compared; None where nothing is chosen from data.
        dialect: The operations of its programs beyond the core ones, each with its meanings; None for no own ones.
        lowering: From layers to operations.
        comparing: How a layer's output is read as codes when a network is compared with its program.
        formats: Files that its programs can be written as, beyond those of every chip.
        functions: Functions that `chipfit.export` and `chipfit` hand out for it, as 'module:function' by name.
        options: Options of verbs ('lower', 'calibrate', 'convert', 'set_mode') that only this vendor has, by verb, then
            name.
        rank: Whose chip a command takes that is given none: the lowest.
        demos: What runs `chipfit demo --chip NAME`, as 'module:function' by the chip's name.
    """

    name: str
    chips: tuple[Chip, ...]
    layers: tuple[type[nn.Module], ...]
    map_operation: Callable[[Operation, Chip], Mapped]
    features: FeatureRules | None = None
    fitting: Fitting | None = None
    dialect: Dialect | None = None
    lowering: Lowering | None = None
    comparing: Comparing | None = None
    formats: tuple[Format, ...] = ()
    functions: Mapping[str, str] = field(default_factory=dict, hash=False)
    options: Mapping[str, Mapping[str, Option]] = field(default_factory=dict, hash=False)
    demos: Mapping[str, str] = field(default_factory=dict, hash=False)
    rank: int = 100

    def owns(self, module: nn.Module) -> bool:
        """Whether a module is one of this vendor's layers."""
        return isinstance(module, self.layers)

    def layers_of(self, model: nn.Module) -> dict[str, nn.Module]:
        """This vendor's layers in a network by qualified name, those inside others included."""
        return {name: module for name, module in model.named_modules() if self.owns(module)}


@functools.cache
def vendors() -> Mapping[str, Vendor]:
    """Every vendor by name: the folders under `chipfit/chips`, then other packages' entry points.

    Raises:
        InvalidValueError: an entry point holds no `Vendor`, or two vendors or two chips have one name.

    Example:
        >>> "example" in vendors()
        True
    """
    from chipfit import chips

    found: dict[str, Vendor] = {}
    owner: dict[str, str] = {}
    for vendor in (*_folders(chips.__path__), *_packages()):
        if vendor.name in found:
            raise InvalidValueError("two vendors of one name", given=vendor.name, where=ENTRY_POINTS)
        for chip in vendor.chips:
            if chip.name in owner:
                given = f"{chip.name} of {owner[chip.name]} and {vendor.name}"
                raise InvalidValueError("two chips of one name", given=given, where=ENTRY_POINTS)
            owner[chip.name] = vendor.name
        found[vendor.name] = vendor
    return found


def _folders(path: Iterable[str]) -> list[Vendor]:
    names = sorted(folder.name for folder in pkgutil.iter_modules(path) if folder.ispkg)
    return [importlib.import_module(f"chipfit.chips.{name}.vendor").VENDOR for name in names]


def _packages() -> list[Vendor]:
    loaded = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            vendor = entry.load()
        except Exception as error:
            raise InvalidValueError(
                "a chip's package cannot be imported", given=str(error), where=entry.value
            ) from error
        if not isinstance(vendor, Vendor):
            raise InvalidValueError("no chipfit.vendor.Vendor", given=type(vendor).__name__, where=entry.value)
        loaded.append(vendor)
    return loaded


def known_chips() -> dict[str, Chip]:
    """Every known chip by its name.

    Example:
        >>> "wtm2101" in known_chips()
        True
    """
    return {chip.name: chip for vendor in vendors().values() for chip in vendor.chips}


def chip(name: str | Chip) -> Chip:
    """Look up a chip; a `Chip` is handed through, so that a name is enough wherever a chip is asked for.

    Args:
        name: Short name, in any case.

    Raises:
        UnknownOptionError: no chip has this name.

    Example:
        >>> chip("WTM2101").weight_bits
        (8,)
    """
    if not isinstance(name, str):
        return name
    known = known_chips()
    if name.lower() not in known:
        raise UnknownOptionError("unknown chip", given=name, where="chipfit.chip", hint=nearest(name.lower(), known))
    return known[name.lower()]


def vendor_of(what: nn.Module | Program | Chip | str) -> Vendor:
    """Whose a network, a program or a chip is.

    Args:
        what: A network with chip layers, a program, a chip or its name.

    Raises:
        UnsupportedError: a network has no chip layers, or those of several vendors.
        UnknownOptionError: the chip of a program is not known here.
    """
    if isinstance(what, nn.Module):
        owners = [vendor for vendor in vendors().values() if any(vendor.owns(module) for module in what.modules())]
        if len(owners) == 1:
            return owners[0]
        if owners:
            given = ", ".join(vendor.name for vendor in owners)
            raise UnsupportedError("the network has layers of several vendors", given=given, allowed="one vendor's")
        raise without_layers(what)
    named: Any = getattr(what, "chip", what)  # a program names its chip
    found = chip(named)
    return vendors()[found.vendor]


def without_layers(model: nn.Module) -> UnsupportedError:
    """What is said of a network that has no chip layers."""
    return UnsupportedError(
        "the network has no chip layers",
        given=type(model).__name__,
        hint="Convert it first: net = chipfit.convert(net, chip, example), or write it with a chip's layers.",
    )


def default_chip(several_widths: bool = False) -> Chip:
    """The chip that a command takes when it is given none: the first of the vendor of the lowest rank that has such.

    Args:
        several_widths: It must have weights of several widths.

    Example:
        >>> default_chip().name, default_chip(several_widths=True).name
        ('wtm2101', 't40')
    """
    ranked = sorted(vendors().values(), key=lambda vendor: vendor.rank)
    fitting = [c for vendor in ranked for c in vendor.chips if len(c.weight_bits) > 1 or not several_widths]
    shown = [c for c in fitting if c.name in vendors()[c.vendor].demos]
    return (shown or fitting)[0]


def vendor_function(name: str) -> Any:
    """A function that a vendor hands out under a name; None where there is none.

    Example:
        >>> vendor_function("no_such_function") is None
        True
    """
    for vendor in vendors().values():
        if name in vendor.functions:
            module, _, attribute = vendor.functions[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
    return None


def options_of(vendor: Vendor, verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A vendor's own options of a verb, checked, with defaults for those that were not given.

    Args:
        vendor: The vendor.
        verb: 'lower', 'calibrate', 'convert' or 'set_mode'.
        given: What the user gave by name.

    Raises:
        UnknownOptionError: the vendor has no such option, or not this value of it; with the nearest one.
    """
    known = vendor.options.get(verb, {})
    for name, value in given.items():
        if name not in known:
            raise UnknownOptionError(
                "unknown option",
                given=name,
                allowed=", ".join(known) or f"none for {vendor.name}",
                where=verb,
                hint=nearest(name, known),
            )
        allowed = known[name].allowed
        if allowed is not None and value not in allowed:
            raise UnknownOptionError(
                f"unknown {known[name].noun or name}",
                given=value,
                allowed=", ".join(map(str, allowed)),
                where=verb,
                hint=nearest(str(value), [str(entry) for entry in allowed]),
            )
    return {name: given.get(name, option.default) for name, option in known.items()}
