"""What the operators have in common that compute differently when they are quantised: a mode, as a state."""

from __future__ import annotations

from torch import nn

from chipfit.chips.ingenic.operators.blocks import QuantizeFeature, QuantizeWeight
from chipfit.errors import UnknownOptionError, UnsupportedError, nearest

MODES = ("float", "quant", "nat")
"""Modes of a network; a digital chip has no noise, so that 'nat' is 'quant'."""


class Operator(nn.Module):
    """Base of the operators that `chipfit.set_mode` reaches.

    In mode 'float' an operator computes as torch would: weights as they are, the activation that was given, borders of
    zero, no rounding and no clip. An output whose clip was calibrated stays divided by it, since the weights behind it
    expect that. An operator that was built without `quantize` computes the same in every mode.

    Attributes:
        mode: 'quant' from the start, as in the vendor's kit.
        layer_name: Name in the network, where known.
        converted: Whether `chipfit.convert` made it, so that its state may hold more than the vendor's names.
    """

    mode: str = "quant"  # also for what old pickled checkpoints hold
    layer_name: str = ""
    converted: bool = False

    @property
    def floating(self) -> bool:
        """Whether the operator is in mode 'float'."""
        return self.mode == "float"

    def set_mode(self, mode: str, level: float | None = None, rounding: str | None = None) -> None:
        """Choose what the operator computes from now on.

        Args:
            mode: 'float', 'quant', or 'nat', which equals 'quant' here.
            level: Not used: there is no noise.
            rounding: None; the chips have one rule.

        Raises:
            UnknownOptionError: No such mode.
            UnsupportedError: A rounding rule was given.

        Example:
            >>> from chipfit.chips.ingenic import Conv2D
            >>> conv = Conv2D(32, 32, quantize=True, weight_bitwidth=8, output_bitwidth=8, target_device="T40")
            >>> conv.set_mode("float")
            >>> conv.Conv2d.QuantizeWeight.floating
            True
        """
        where = self.layer_name or type(self).__name__
        if mode not in MODES:
            raise UnknownOptionError(
                "unknown mode", given=mode, allowed=", ".join(MODES), where=where, hint=nearest(mode, MODES)
            )
        if rounding is not None:
            raise UnsupportedError("Ingenic chips have one rounding rule", given=rounding, allowed="None", where=where)
        self.mode = mode
        for module in self.modules():
            if isinstance(module, (QuantizeWeight, QuantizeFeature)):
                module.floating = self.floating

    def freeze_scales(self, frozen: bool = True) -> None:
        """Do nothing: clips do not follow the data of training."""
