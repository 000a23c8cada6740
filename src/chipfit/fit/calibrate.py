"""Post-training quantisation: run data through the float network and set every scale from what it saw."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from chipfit.errors import CalibrationError, ChipfitWarning, UnsupportedError
from chipfit.fit.collect import Kept
from chipfit.fit.contract import CalibrationRequest, Fitting, ScaleChoice
from chipfit.fit.figures import measure as measured
from chipfit.fit.inputs import refusing_negatives
from chipfit.fit.methods import METHODS, check_method
from chipfit.fit.ranks import agree
from chipfit.fit.report import CalibrationReport, Finding, findings_of, not_finite
from chipfit.vendor import Vendor, options_of, vendor_of

__all__ = ["METHODS", "CalibrationReport", "ScaleChoice", "calibrate", "fitting_of", "restore"]


def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    method: str = "mse",
    *,
    percentile: float = 99.9,
    batches: int | None = None,
    freeze: bool = True,
    strict: bool = False,
    measure: bool = True,
    **options: Any,
) -> CalibrationReport:
    """Set the scales of all chip layers from data (PTQ).

    The network runs in float. They are set when all are known: on an error every layer keeps its own. A tensor that
    only ever was zero (an activation that the data never pass, a weight of zeros) determines no scale: it keeps the
    scale, clip or factor that it has, and a warning names it.

    What is set is the chip's: powers of two on one, clips and factors on another, whose weights are then changed so
    that the network keeps its function. docs/calibration.md says it for each. Where a checkpoint does not bring the
    scales back, keep the choices and give them to `restore`; a warning names such layers.

    In a process group (DDP) every rank calls it with its own share of the data; all shares count, and all ranks end
    with the same scales and weights.

    Args:
        model: Network with chip layers; changed in place, its mode stays as it is.
        loader: Batches: the input, or a tuple that begins with the network's inputs or with a tuple of them (labels may
            follow), or a dictionary of inputs by the names of forward. All verbs take batches so.
        method: 'max' covers the largest magnitude seen; 'percentile' the given one; 'mse' takes the range with the
            smallest mean squared error, so that a few outliers do not cost everybody else a bit; 'kl' the one that
            keeps most of the distribution of the magnitudes (Kullback-Leibler divergence of histograms).
        percentile: Share of magnitudes that 'percentile' covers, in percent.
        batches: Largest number of batches to use; None for all.
        freeze: Keep these scales through training. Otherwise the next `train()` starts to find them anew, as the
            vendor's library does.
        strict: Raise an error where a warning would name something severe: before any scale is set a parameter that is
            not finite; when all are set an output below 15 dB, a bias that is clipped, negative values at an input that
            takes none.
        measure: Run up to 256 samples once more, in float and in the chip's arithmetic, for the report's figures.
        **options: The chip's own, for instance `trained_as`; docs/calibration.md lists them.

    Returns:
        A report: a sequence with one entry per tensor, in network order, that prints what quantisation cost, as a whole
        and per layer, worst first, and why. What it finds wanting is said in a warning too.

    Raises:
        UnknownOptionError: no such method or option.
        InvalidValueError: a percentile outside its range.
        CalibrationError: no data, nothing but zeros or NaN in them, negative values at an input that `convert` took for
            unsigned, or a layer that was never reached; it is named. With `strict`, what else was found.
        UnsupportedError: the network has no chip layers, or none whose scales are set from data; or what lies between
            them does not keep proportions, on a chip that needs that.

    Example:
        >>> import torch
        >>> from witin_nn import LayerConfigFactory, WitinLinear
        >>> net = nn.Sequential(WitinLinear(2, 1, layer_config=LayerConfigFactory.get_default_config()))
        >>> choice = calibrate(net, [torch.tensor([[0.5, 3.0]])], "max")[0]
        >>> choice.layer, choice.tensor, choice.io_max, choice.scale
        ('0', 'x', 3.0, 64.0)
    """
    check_method(method, percentile)
    vendor = vendor_of(model)
    own = options_of(vendor, "calibrate", options)
    request = CalibrationRequest(method, percentile, batches, freeze, own)
    fitting, damaged = fitting_of(vendor), not_finite(model)
    if damaged:
        _tell(findings_of(math.inf, (), damaged), strict)
    data = Kept(loader, batches)
    with refusing_negatives(model, "calibrate"):
        choices = fitting.calibrate(model, data, request)
    choices = agree(model, choices, fitting.restore)
    _warn_of_zeros(choices)
    if not measure:
        return CalibrationReport(tuple(choices))
    sqnr_db, layers, samples = measured(model, fitting, data.first)
    findings = findings_of(sqnr_db, layers, ())
    _tell(findings, strict)
    return CalibrationReport(tuple(choices), sqnr_db, tuple(layers), findings, samples)


def _tell(findings: Sequence[Finding], strict: bool) -> None:
    """Warn of what was found; an error where it is severe and the user is strict."""
    severe = [finding for finding in findings if finding.severe]
    if strict and severe:
        raise CalibrationError(" ".join(map(str, severe)), where="calibrate(strict=True)")
    if findings:
        warnings.warn("\n".join(map(str, findings)), ChipfitWarning, stacklevel=3)


def restore(model: nn.Module, choices: Iterable[ScaleChoice]) -> None:
    """Give the layers of a network the choices of an earlier calibration.

    For a network that was built anew and has loaded a calibrated network's `state_dict`.

    Args:
        model: Network of chip layers; changed in place.
        choices: What `calibrate` returned.

    Raises:
        InvalidValueError: A layer is not there, or a choice is not one of such a network.
        UnsupportedError: the chip's networks bring their scales with their state.
    """
    vendor = vendor_of(model)
    given = fitting_of(vendor).restore
    if given is None:
        raise UnsupportedError(
            "nothing to restore: the scales come with the state_dict", given=vendor.name, where="restore"
        )
    given(model, choices)


def fitting_of(vendor: Vendor) -> Fitting:
    """How a vendor's networks are fitted to data.

    Raises:
        UnsupportedError: they are not.
    """
    if vendor.fitting is None:
        raise UnsupportedError("no scale of this chip is chosen from data", given=vendor.name, where="calibrate")
    return vendor.fitting


def _warn_of_zeros(choices: list[ScaleChoice]) -> None:
    names = "; ".join(f"{choice.layer}, {choice.tensor}" for choice in choices if choice.largest == 0)
    if names:
        warnings.warn(
            f"{names}: only zeros were seen, which determine no scale, so the one before stays (of a layer that "
            "shares its range, the others' range). Look at the data that reaches these layers.",
            ChipfitWarning,
            stacklevel=3,
        )
