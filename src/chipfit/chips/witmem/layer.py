"""What every Witmem layer shares: its captured options, its mode, its observers, its name in an error."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.witmem.autoscale import AutoScale
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import NoiseModel
from chipfit.chips.witmem.config.options import OPTIONS
from chipfit.chips.witmem.rounding import rule_named
from chipfit.errors import (
    ChipfitWarning,
    InvalidTypeError,
    InvalidValueError,
    NonFiniteError,
    ShapeError,
    UnknownOptionError,
    nearest,
)

MODES = ("float", "quant", "nat")
"""Float arithmetic; the chip's arithmetic; the chip's arithmetic with analog noise."""


@dataclass(frozen=True)
class Watched:
    """One tensor of a layer that auto-scale watches.

    Args:
        name: Short name, as in `autoscale_<name>_obj`: 'x', 'x1', 'x2', 'y' or 'weight'.
        scale: Scale in force at first, in codes per unit.
        bits: Width for the scale formula (the tensor's own, plus one where it is unsigned).
        io_max: Largest magnitude assumed before anything was seen.
    """

    name: str
    scale: float
    bits: int
    io_max: float = 8.0


class WitinLayer(nn.Module):
    """Base of all Witmem layers: captured options, mode, observers.

    A layer copies its configuration when it is built; `layer_config` stays the object that was given. What changes
    afterwards is the mode, through `chipfit.set_mode`.

    Attributes:
        layer_config: The configuration given.
        index: Running number of that configuration.
        mode: One of `MODES`.
        noise_level: Level of the analog noise in mode 'nat', 0 to 9.
        rounding: Rounding rule of the array's output.
        observers: The layer's observers, its children `autoscale_<name>_obj`, by short name.
        layer_name: Name within the network, filled in by chipfit's functions that walk a network; used in errors.
    """

    layer_config: WitinLayerConfig
    index: int
    mode: str
    noise_level: float
    noise_model: NoiseModel
    use_auto_scale: bool
    auto_scale_updata_step: int
    debug_mode: bool
    rounding: str
    layer_name: str
    observers: dict[str, AutoScale]

    def capture(self, config: WitinLayerConfig | None) -> WitinLayerConfig:
        """Copy the options that every layer has, once the torch base class is initialised.

        Raises:
            InvalidValueError: no configuration, or a bit width or scale that the layer cannot compute with.
        """
        kind = type(self).__name__
        if config is None:
            raise InvalidValueError(
                f"{kind} layer_config is None",
                allowed="a WitinLayerConfig",
                hint="Pass layer_config=LayerConfigFactory.get_default_config().",
            )
        if not isinstance(config, WitinLayerConfig):
            raise InvalidTypeError(
                "layer_config has the wrong type", given=config, allowed="WitinLayerConfig", where=kind
            )
        _check_computable(config, f"{kind} (index {config.index})")
        self.layer_config = config
        self.index = config.index
        self.layer_name = ""
        self.observers = {}
        self.noise_model = config.noise_model
        self.noise_level = config.noise_level
        self.mode = "float" if not config.use_quantization else "nat" if config.noise_level > 0 else "quant"
        self.use_auto_scale = config.use_auto_scale
        self.auto_scale_updata_step = config.auto_scale_updata_step
        self.debug_mode = config.debug_mode
        self.rounding = config.rounding
        return config

    def watch(self, *watched: Watched) -> None:
        """Add an observer `autoscale_<name>_obj` for each tensor."""
        for tensor in watched:
            observer = AutoScale("Max", tensor.io_max, tensor.bits, self.auto_scale_updata_step, tensor.scale)
            self.add_module(f"autoscale_{tensor.name}_obj", observer)
            self.observers[tensor.name] = observer

    @property
    def use_quantization(self) -> bool:
        """Whether the layer computes in the chip's arithmetic. Read only: `chipfit.set_mode` changes it."""
        return self.mode != "float"

    @use_quantization.setter
    def use_quantization(self, value: bool) -> None:
        warnings.warn(
            "setting use_quantization on a layer has no effect, as in the vendor's library; use chipfit.set_mode",
            ChipfitWarning,
            stacklevel=3,
        )

    def set_mode(self, mode: str, level: float | None = None, rounding: str | None = None) -> None:
        """Choose what the layer computes from now on.

        Args:
            mode: 'float', 'quant' or 'nat'.
            level: Noise level for 'nat', above 0 up to 9; None keeps the one in force.
            rounding: Rounding rule of the array, 'witin_nn' or 'wtm2101'; None keeps the one in force. The digital unit
                has one rule only and ignores it.

        Raises:
            UnknownOptionError: no such mode or rounding rule.
            InvalidValueError: the level is outside its range, or 'nat' has none.
        """
        if mode not in MODES:
            raise UnknownOptionError(
                "unknown mode", given=mode, allowed=", ".join(MODES), where=self.where, hint=nearest(mode, MODES)
            )
        if level is not None:
            OPTIONS["noise_level"].check("noise_level", level)
        new_level = self.noise_level if level is None else level
        if mode == "nat" and not new_level > 0:
            raise InvalidValueError(
                "mode 'nat' needs a noise level", given=new_level, allowed="above 0, up to 9", where=self.where
            )
        if rounding is not None:
            rule_named(rounding)
            self.rounding = rounding
        self.mode, self.noise_level = mode, new_level

    @property
    def where(self) -> str:
        """The layer as an error message names it: its name in the network where known, else class and index."""
        return f"{self.layer_name or type(self).__name__} (index {self.index})"

    def train(self, mode: bool = True) -> WitinLayer:
        """Set training mode; `train(True)` starts an auto-scale epoch, which forgets the statistics so far."""
        super().train(mode)
        if mode:
            for observer in self.observers.values():
                observer.reset_stat()
        return self

    def freeze_scales(self, frozen: bool = True) -> None:
        """Keep the scales that follow from `io_max` through training, or let `train()` find them anew."""
        for name, observer in self.observers.items():
            observer.frozen = frozen
            if frozen:
                observer.settle(f"{self.where}, {name}")

    def calibration_tensors(self, inputs: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
        """The watched tensors of a float forward by short name, for calibration.

        Args:
            inputs: The forward's arguments in the order of its signature, defaults included.
            output: What it returned.

        Returns:
            What each grid has to hold. A tensor that the layer does not use as configured is left out.
        """
        tensors = {"x": inputs[0], "y": output, "weight": getattr(self, "weight", None)}
        return {name: tensors[name] for name in self.observers}

    def scales_in_force(self) -> dict[str, float]:
        """Scales that the coming forward uses, by tensor name: in `eval()` those that follow from `io_max`."""
        observers = self.observers
        if self.use_auto_scale and not self.training:
            for name, observer in observers.items():
                observer.settle(f"{self.where}, {name}")
        return {name: observer.scale for name, observer in observers.items()}

    @property
    def observing(self) -> bool:
        """Whether the coming forward takes part in auto-scale at all."""
        return self.use_auto_scale and self.training and self.mode != "float"

    def observe(self, **tensors: Tensor | None) -> None:
        """Close a training forward of all observers.

        Args:
            **tensors: The watched tensors by short name; one that is left out is not collected.
        """
        for name, observer in self.observers.items():
            if observer.counting:
                observer.end_step(tensors.get(name), f"{self.where}, {name}")

    def check_input(self, x: Any, name: str = "input") -> Tensor:
        """Refuse what the layer cannot take; in debug mode also NaN and infinity.

        Raises:
            ShapeError: not a floating-point tensor.
            NonFiniteError: NaN or infinity, in debug mode.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ShapeError(
                f"{name} must be a floating-point tensor",
                given=x.dtype if isinstance(x, Tensor) else type(x).__name__,
                allowed="float16, bfloat16, float32, float64",
                where=self.where,
            )
        if self.debug_mode and not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).sum())
            raise NonFiniteError(
                f"{name} holds NaN or infinity", given=f"{bad} of {x.numel()} values", where=self.where
            )
        return x


def _check_computable(config: WitinLayerConfig, where: str) -> None:
    unusual: list[str] = []
    for name in OPTIONS:
        value = getattr(config, name)
        if name.endswith("quant_bits"):
            if isinstance(value, bool) or value < 1:
                raise InvalidValueError(f"{name} is no bit width", given=value, allowed="a positive int", where=where)
            chip_widths = {"weight_quant_bits": range(8, 9), "mean_sum_quant_bits": range(1, 56)}
            if value not in chip_widths.get(name, range(8, 13)):
                unusual.append(f"{name}={value}")
        elif name.startswith("scale_") and not 0 < value < math.inf:
            raise InvalidValueError(f"{name} is no scale", given=value, allowed="a finite number above 0", where=where)
    if unusual and config.use_quantization:
        warnings.warn(
            f"{', '.join(unusual)}: the chip has 8 to 12 bits for inputs and outputs and 8 for weights; "
            "trained as asked, but this does not map to it",
            ChipfitWarning,
            stacklevel=4,
        )
