"""Every option of the vendor's configuration: its default, and what it accepts (manual table 2).

The checks are those of the vendor's setters (spec/witmem-array.md, section 2). They are looser than the chip: a width
of 13 bits is accepted here because the vendor accepts it. What a layer cannot compute with is refused when the layer
is built, in `layer.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import Enum
from typing import Any

import torch

from chipfit.chips.witmem.config.enums import HandleNegInType, HardwareType, NoiseModel, TargetPlatform
from chipfit.chips.witmem.rounding import RULES
from chipfit.errors import ChipfitWarning, InvalidTypeError, InvalidValueError, UnsupportedError, nearest


@dataclass(frozen=True)
class Option:
    """One option of a configuration.

    Args:
        default: Value in a fresh global configuration.
        is_type: Whether a value has an acceptable type.
        type_text: The acceptable types, in words.
        is_allowed: Whether a value of that type is acceptable.
        allowed_text: The acceptable values, in words.
        shown_as: Name in the printed global table, where the vendor's differs.
    """

    default: Any
    is_type: Callable[[Any], bool]
    type_text: str
    is_allowed: Callable[[Any], bool] = lambda _: True
    allowed_text: str = ""
    shown_as: str = ""

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that the option cannot take.

        Raises:
            InvalidTypeError: wrong type.
            InvalidValueError: right type, outside what is allowed.
        """
        if not self.is_type(value):
            raise InvalidTypeError(f"{name} type error", given=value, allowed=self.type_text, where="configuration")
        if not self.is_allowed(value):
            raise InvalidValueError(
                f"{name} value error", given=value, allowed=self.allowed_text, where="configuration"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _one_of(kind: type[Enum], default: Enum) -> Option:
    return Option(default, lambda v: isinstance(v, kind), f"a {kind.__name__}")


def _flag(default: bool, shown_as: str = "") -> Option:
    return Option(default, lambda v: isinstance(v, bool), "True or False", shown_as=shown_as)


def _integer(default: int) -> Option:
    return Option(default, lambda v: isinstance(v, int), "an int")


def _number(default: float) -> Option:
    return Option(default, _is_number, "an int or a float")


def _clip() -> Option:
    return Option(None, lambda v: v is None or _is_number(v), "None, an int or a float")


def _split_unavailable(value: Any) -> bool:
    raise UnsupportedError("'conv2d_split_N' is unavailable currently", given=value, where="configuration")


OPTIONS: dict[str, Option] = {
    "target_platform": _one_of(TargetPlatform, TargetPlatform.ANKE),
    "hardware": _one_of(HardwareType, HardwareType.ARRAY),
    "w_clip": _clip(),
    "bias_row_N": Option(
        8, lambda v: isinstance(v, int), "an int", lambda v: 1 <= v <= 32, "1 to 32 rows (the chip has 16 logical ones)"
    ),
    "use_quantization": _flag(False),
    "noise_model": _one_of(NoiseModel, NoiseModel.NORMAL),
    "noise_level": Option(0, _is_number, "an int or a float", lambda v: 0 <= v <= 9, "0 to 9"),
    "to_linear": _flag(False, shown_as="use_to_linear"),
    "use_auto_scale": _flag(True),
    "auto_scale_updata_step": _integer(2),
    "scale_x": _number(1),
    "scale_y": _number(1),
    "scale_weight": _number(1),
    "scale_x_left": _number(1),
    "scale_x_right": _number(1),
    "handle_neg_in": _one_of(HandleNegInType, HandleNegInType.FALSE),
    "shift_num": _number(1.0),
    "x_quant_bits": _integer(8),
    "y_quant_bits": _integer(8),
    "weight_quant_bits": _integer(8),
    "x_left_quant_bits": _integer(8),
    "x_right_quant_bits": _integer(8),
    "bias_d": Option(torch.tensor(0), lambda v: isinstance(v, torch.Tensor), "a tensor, scalar or one value a channel"),
    "conv2d_split_N": Option(1000000, _split_unavailable, ""),
    "output_fp_clip": _clip(),
    "x_clip": _clip(),
    "debug_mode": _flag(False),
    "cln_simple": _flag(False),
    "mean_sum_quant_bits": _integer(55),
    "sqrt_left_shift_bits": Option(8, lambda v: isinstance(v, int) and v % 2 == 0, "an even int"),
    "gelu_shift_num": _clip(),
    "rounding": Option(
        "witin_nn", lambda v: isinstance(v, str), "a str", lambda v: v in RULES, " or ".join(map(repr, RULES))
    ),
}
"""All options by name. `rounding` is chipfit's own; the others are the vendor's, spelling included."""

_MEANT = {"use_to_linear": "to_linear", "auto_scale_update_step": "auto_scale_updata_step", "Hardware": "hardware"}


def meant_option(name: str) -> str | None:
    """Correct a mistyped option name, warning about it.

    A name is corrected only where one option is clearly meant: it is a known confusion, or differs from exactly one
    option by a letter or two at the most. `scale_w` could be three options, so it stays uncorrected.

    Args:
        name: An attribute name that is no option.

    Returns:
        The option that was meant, or None.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     meant_option("x_quant_bit")
        'x_quant_bits'
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     meant_option("scale_w") is None
        True
    """
    known = [option for option in OPTIONS if option != "conv2d_split_N"]
    ranked = sorted(((SequenceMatcher(None, name, option).ratio(), option) for option in known), reverse=True)
    clear = ranked[0][0] >= 0.9 and ranked[1][0] < ranked[0][0] - 0.02
    meant = _MEANT.get(name) or (ranked[0][1] if clear else None)
    if name == "use_noise":  # the manual's section 2.7 speaks of it
        text = "the configuration has no option 'use_noise'; a noise_level above 0 turns noise on"
    elif meant:
        text = f"the configuration has no option {name!r}; it is taken as {meant!r}, please write that"
    else:
        text = f"the configuration has no option {name!r}; the assignment has no effect. {nearest(name, known)}"
    warnings.warn(text, ChipfitWarning, stacklevel=3)
    return meant
