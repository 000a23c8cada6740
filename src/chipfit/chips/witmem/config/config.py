"""The vendor's two configurations: one global, one per layer (manual section 2.3).

A layer's configuration copies the global one when it is made; a layer copies its configuration when it is built.
Later changes upstream reach neither. `chipfit.set_mode` changes layers that exist.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, ClassVar

import torch

from chipfit.chips.witmem.config.enums import (
    HandleNegInType,
    HardwareType,
    NoiseModel,
    ParamType,
    TargetPlatform,
)
from chipfit.chips.witmem.config.options import OPTIONS, meant_option
from chipfit.errors import InvalidValueError, UnknownOptionError, nearest


class _Options:
    """Attributes that are checked as they are set; see `options.OPTIONS` for each one's default and range."""

    target_platform: TargetPlatform
    hardware: HardwareType
    w_clip: float | None
    bias_row_N: int
    use_quantization: bool
    noise_model: NoiseModel
    noise_level: float
    to_linear: bool
    use_auto_scale: bool
    auto_scale_updata_step: int
    scale_x: float
    scale_y: float
    scale_weight: float
    scale_x_left: float
    scale_x_right: float
    handle_neg_in: HandleNegInType
    shift_num: float
    x_quant_bits: int
    y_quant_bits: int
    weight_quant_bits: int
    x_left_quant_bits: int
    x_right_quant_bits: int
    bias_d: torch.Tensor
    conv2d_split_N: int
    output_fp_clip: float | None
    x_clip: float | None
    debug_mode: bool
    cln_simple: bool
    mean_sum_quant_bits: int
    sqrt_left_shift_bits: int
    gelu_shift_num: float | None
    rounding: str

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in OPTIONS and not name.startswith("_") and name not in ("index", "G_algo"):
            meant = meant_option(name)
            if meant is None:
                object.__setattr__(self, name, value)
                return
            name = meant
        if name in OPTIONS:
            OPTIONS[name].check(name, value)
        object.__setattr__(self, name, value)

    def validation_checker(self) -> None:
        """Check every option again.

        Raises:
            InvalidTypeError: an option's type is wrong.
            InvalidValueError: an option is out of range, or noise is asked for without quantisation.
        """
        for name, option in OPTIONS.items():
            if name != "conv2d_split_N":
                option.check(name, getattr(self, name))
        if self.noise_level > 0 and not self.use_quantization:
            raise InvalidValueError(
                "When noise_level > 0, use_quantization must be true!",
                given=self.noise_level,
                allowed="0 while use_quantization is False",
                where="noise_level",
            )

    def _rows(self, names: dict[str, str]) -> list[str]:
        return [f"{shown + ':':<22} {getattr(self, name)}" for name, shown in names.items()]


class SingletonMeta(type):
    """Metaclass of classes that have one object in the process, kept in `_instances` (the vendor's names).

    Example:
        >>> class Settings(metaclass=SingletonMeta):
        ...     pass
        >>> Settings() is Settings()
        True
    """

    _instances: ClassVar[dict[type, Any]] = {}

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the class's one object, made at the first call."""
        if cls not in SingletonMeta._instances:
            SingletonMeta._instances[cls] = super().__call__(*args, **kwargs)
        return SingletonMeta._instances[cls]


class WitinGlobalConfig(_Options, metaclass=SingletonMeta):
    """Defaults for all layers built afterwards: one object in the process.

    Source:
        Manual section 2.3; defaults as the vendor's library has them (spec/witmem-array.md, section 2).

    Example:
        >>> WitinGlobalConfig() is WitinGlobalConfig()
        True
    """

    def __init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, copy.deepcopy(option.default))

    def __reduce__(self) -> tuple[type[WitinGlobalConfig], tuple[()]]:
        """Pickle as a reference: loading something that holds it leaves the one configuration as it is."""
        return WitinGlobalConfig, ()

    def __str__(self) -> str:
        rows = self._rows({name: option.shown_as or name for name, option in OPTIONS.items()})
        return "\n".join(["------------ WitinGlobalConfig ------------", *rows])


_index = itertools.count()


class WitinLayerConfig(_Options):
    """Options of one layer. Any option of manual table 2 can be given as a keyword.

    Args:
        G_algo: Reserved by the vendor; any value.
        **options: Options by name. One that is left out, or given as `ParamType.WITIN_GLOBAL`, takes the global
            configuration's value of this moment.

    Raises:
        UnknownOptionError: a keyword is no option (a `TypeError`).
        InvalidTypeError, InvalidValueError: an option cannot take its value.

    Example:
        >>> config = WitinLayerConfig(G_algo=1, x_quant_bits=9, scale_x=32)
        >>> config.x_quant_bits, config.y_quant_bits
        (9, 8)
    """

    index: int
    G_algo: Any

    def __init__(self, G_algo: Any, **options: Any) -> None:
        for name in options:
            if name not in OPTIONS:
                raise UnknownOptionError(
                    "unexpected keyword", given=name, where="WitinLayerConfig", hint=nearest(name, OPTIONS)
                )
        shared = WitinGlobalConfig()
        self.G_algo = G_algo
        self.index = next(_index)
        for name in OPTIONS:
            value = options.get(name, ParamType.WITIN_GLOBAL)
            if value is ParamType.WITIN_GLOBAL:
                object.__setattr__(self, name, copy.deepcopy(getattr(shared, name)))
            else:
                setattr(self, name, value)
        if options.get("noise_level", ParamType.WITIN_GLOBAL) is not ParamType.WITIN_GLOBAL:
            self.validation_checker()

    def __str__(self) -> str:
        rows = self._rows({name: name for name in ("index", "G_algo", *OPTIONS)})
        return "\n".join(["------------ WitinLayerConfig ------------", *rows])
