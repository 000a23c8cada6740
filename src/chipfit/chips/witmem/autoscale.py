"""Auto-scale: watch a tensor's largest magnitude for a few steps, then set its power-of-two scale (manual section 2.6).

One `AutoScale` watches one tensor of one layer. Its life: `train()` starts an epoch and forgets what was seen; for the
first `stat_steps` training forwards the scale in force stays as it is while the maxima are collected; from then on the
scale follows `io_max` and stays. `eval()` always uses the scale that follows from `io_max`. A frozen one (calibrated)
keeps its `io_max` through `train()` too.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chipfit.arithmetic.grid import power_of_two_scale
from chipfit.errors import CalibrationError, ChipfitWarning


class AutoScale(nn.Module):
    """Observer and scale of one tensor.

    Args:
        calibration_mode: 'Max', the only mode there is.
        max_default: `io_max` before anything was seen.
        q_bit: Width for the scale formula: the tensor's own, one more where it is unsigned.
        stat_steps: Training forwards after `train()` that collect statistics.
        scale: Scale in force until statistics replace it, in codes per unit.

    Attributes:
        io_max: Largest magnitude seen in this epoch, a scalar parameter without gradient (so that it is saved).
        feat_list: The maxima that `io_max` is the largest of.
        cnt_train: Training forwards in this epoch, up to the one that set the scale.
        scale: Scale in force.
        frozen: Whether `train()` and training forwards leave `io_max` alone.
        settled: Whether the scale in force is the one that follows from `io_max`.

    Example:
        >>> observer = AutoScale("Max", max_default=8, q_bit=8, stat_steps=2)
        >>> observer.update_statistics(torch.tensor([0.5, -3.0]))
        >>> observer.io_max.item(), observer.get_scales()
        (3.0, 32.0)
    """

    def __init__(
        self,
        calibration_mode: str = "Max",
        max_default: float = 8,
        q_bit: int = 8,
        stat_steps: int = 200,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.calibration_mode = calibration_mode
        self.max_default = max_default
        self.q_bit_in = q_bit
        self.stat_steps = stat_steps
        self.scale = scale
        self.frozen = False
        self.settled = False
        self.cnt_train = 0
        self.feat_list: list[float] = []
        self.io_max = nn.Parameter(torch.tensor(float(max_default)), requires_grad=False)
        self._loaded = False

    @property
    def collecting(self) -> bool:
        """Whether the coming training forward still counts as one that collects statistics."""
        return not self.frozen and self.cnt_train < self.stat_steps

    @property
    def counting(self) -> bool:
        """Whether the coming training forward can still change anything here; counting on would cost compiled code."""
        return not self.frozen and self.cnt_train < max(self.stat_steps, 1)

    def update_statistics(self, x: Tensor) -> None:
        """Take the largest magnitude of `x` into account.

        In a process group the maximum is taken over all ranks, so that every rank trains with the same scale.
        """
        with torch.no_grad():
            largest = x.detach().abs().amax().to(self.io_max)
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            self.feat_list.append(largest.item())
            self.io_max.fill_(max(self.feat_list))
        self._loaded = self.settled = False

    def end_step(self, x: Tensor | None, where: str) -> None:
        """Close a training forward: collect if still collecting, count, and put the new scale in force if it is time.

        Args:
            x: The tensor to watch, or None where this step offers none.
            where: Layer and tensor, for the error message.

        Raises:
            CalibrationError: nothing but zeros was seen.
        """
        if not self.counting:
            return
        if x is not None and self.collecting:
            self.update_statistics(x)
        if self.cnt_train + 1 == max(
            self.stat_steps, 1
        ):  # before counting: whoever skips an all-zero batch gets another try
            self.scale = self.scale_from_io_max(where)
        self.cnt_train += 1

    def settle(self, where: str) -> None:
        """Put the scale that follows from `io_max` in force.

        Compiled code takes a settled scale as a constant that torch.compile guards: reading `io_max` would break its
        graph in every layer. Whoever writes to `io_max` by hand sets `settled` to False.

        Raises:
            CalibrationError: `io_max` is zero or not finite.
        """
        if not (self.settled and torch.compiler.is_compiling()):
            self.scale = self.scale_from_io_max(where)
            self.settled = True

    def scale_from_io_max(self, where: str) -> float:
        """Scale that follows from `io_max`.

        Raises:
            CalibrationError: `io_max` is zero or not finite.
        """
        try:
            return self.get_scales()
        except ValueError as error:
            raise CalibrationError(
                "Unable to determine quant scale, because max_v = 0" if self.io_max == 0 else "no scale covers io_max",
                given=self.io_max.item(),
                allowed="a finite number above 0",
                where=where,
                hint="Look at the data that reaches this layer. Where those are fine, the scales in force are too "
                "coarse for them: start from finer scale_x, scale_weight and scale_y, or call chipfit.calibrate first.",
            ) from error

    def get_scales(self, q_bit: int | None = None) -> float:
        """Power-of-two scale for `io_max` at `q_bit` bits (default: this observer's own width)."""
        return self.get_scale_from_max(self.io_max.item(), self.q_bit_in if q_bit is None else q_bit)

    @staticmethod
    def get_scale_from_max(max_v: float, q_bit: int = 8) -> float:
        """Power-of-two scale whose signed grid of `q_bit` bits just covers `max_v`."""
        return power_of_two_scale(max_v, q_bit)

    def reset_stat(self) -> None:
        """Forget what was seen and start a new epoch; the scale in force stays. A frozen observer does nothing."""
        if self.frozen:
            return
        if self._loaded:
            warnings.warn(
                "train() discards the io_max values that load_state_dict brought, as the vendor's library does; "
                "chipfit.freeze_scales(model) keeps them",
                ChipfitWarning,
                stacklevel=2,
            )
        self.cnt_train = 0
        self.feat_list = []
        self._loaded = self.settled = False
        with torch.no_grad():
            self.io_max.fill_(float(self.max_default))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.settled = False
        self._loaded = prefix + "io_max" in state_dict and self.io_max.item() != float(self.max_default)
        if self.frozen:  # a frozen scale follows what was loaded, in training as well
            self.settle(prefix.rstrip("."))

    def extra_repr(self) -> str:
        """Show the largest value seen and the scale in force."""
        return f"io_max={self.io_max.item():.6g}, scale={self.scale:g}, bits={self.q_bit_in}" + (
            ", frozen" if self.frozen else ""
        )
