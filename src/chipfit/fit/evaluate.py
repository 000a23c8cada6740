"""The manual's evaluation matrix: a network evaluated as float, quantised, and quantised with noise on many chips."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.errors import CalibrationError, InvalidValueError
from chipfit.fit.collect import inputs_of
from chipfit.fit.methods import sqnr
from chipfit.modes import chip_layers, kept_modes, set_mode
from chipfit.noise.chips import kept_generators, simulated_chip
from chipfit.program.batches import batch_target

if TYPE_CHECKING:
    from torchmetrics import Metric

MetricLike = Union["Metric", Callable[[Tensor, Tensor], float | Tensor]]


@dataclass(frozen=True)
class Score:
    """Loss and metric of one column of the matrix, over the chips that it was measured on.

    Args:
        losses: Loss on each chip; one entry without noise.
        metrics: Metric on each chip.
        higher_is_better: Which way the metric points; decides what the worst chip is.

    Example:
        >>> score = Score((0.1, 0.2), (0.98, 0.96), True)
        >>> round(score.metric, 3), score.worst
        (0.97, 0.96)
    """

    losses: tuple[float, ...]
    metrics: tuple[float, ...]
    higher_is_better: bool = True

    @property
    def loss(self) -> float:
        """Mean loss."""
        return statistics.fmean(self.losses)

    @property
    def metric(self) -> float:
        """Mean metric."""
        return statistics.fmean(self.metrics)

    @property
    def std(self) -> float:
        """Standard deviation of the metric over the chips; 0 for one."""
        return statistics.stdev(self.metrics) if len(self.metrics) > 1 else 0.0

    @property
    def worst(self) -> float:
        """Metric of the worst chip."""
        return min(self.metrics) if self.higher_is_better else max(self.metrics)

    @property
    def percentile5(self) -> float:
        """Metric that 95 % of the chips reach."""
        values = torch.tensor(self.metrics, dtype=torch.float64)
        return torch.quantile(values, 0.05 if self.higher_is_better else 0.95).item()


@dataclass(frozen=True)
class Evaluation:
    """One row of the matrix.

    Args:
        in_float: Evaluated in float.
        quantised: Evaluated in the chip's arithmetic.
        noisy: Evaluated in the chip's arithmetic with noise, by noise level.
        sqnr_db: Signal to quantisation-noise ratio of the output in dB: the chip's arithmetic against float.
    """

    in_float: Score
    quantised: Score
    noisy: dict[float, Score]
    sqnr_db: float = math.nan

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for a JSON file."""
        columns = {"float": self.in_float, "quant": self.quantised}
        columns |= {f"noise_{level:g}": score for level, score in self.noisy.items()}
        plain: dict[str, Any] = {
            name: {
                "loss": score.loss,
                "metric": score.metric,
                "std": score.std,
                "percentile5": score.percentile5,
                "worst": score.worst,
                "per_chip": asdict(score),
            }
            for name, score in columns.items()
        }
        plain["quant"]["sqnr_db"] = self.sqnr_db
        return plain


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of samples whose largest logit is the target's.

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    return (logits.argmax(1) == target).float().mean().item()


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    metric: MetricLike = accuracy,
    *,
    chips: int = 20,
    level: float | tuple[float, ...] = 4,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    higher_is_better: bool = True,
    first_seed: int = 1000,
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate a network as float, quantised, and quantised with noise on simulated chips (manual section 2.7).

    Args:
        model: Network with chip layers; its modes, and torch's generators, are as before afterwards.
        loader: Batches `(input, target)`, as for `chipfit.calibrate`; it is run through once for each column and chip.
        metric: A torchmetrics metric, or a function of all outputs and all targets.
        chips: Simulated chips per noise level. Chip i draws its noise from seed `first_seed + i`. On a digital chip
            they are all alike, the quantised network, which then is run only once.
        level: Noise level, or several.
        loss: Function of outputs and targets, averaged over samples.
        higher_is_better: Which way the metric points.
        first_seed: Seed of the first chip.
        progress: Called after each column and chip.

    Returns:
        The row of the matrix that belongs to this network.

    Raises:
        InvalidValueError: fewer than one chip, or a level outside 0 to 9.
        CalibrationError: the loader is empty.
        UnsupportedError: the network has no chip layers.
    """
    if chips < 1:
        raise InvalidValueError("at least one chip is needed", given=chips, allowed="1 or more", where="evaluate")
    levels = level if isinstance(level, tuple) else (level,)

    outputs = torch.empty(0)

    def one() -> tuple[float, float]:
        nonlocal outputs
        outputs, *result = _run(model, loader, metric, loss)
        progress()
        return result[0], result[1]

    def score(runs: list[tuple[float, float]]) -> Score:
        return Score(tuple(run[0] for run in runs), tuple(run[1] for run in runs), higher_is_better)

    with kept_modes(model), kept_generators(model), torch.no_grad():
        model.eval()
        set_mode(model, "float")
        as_float, clean = score([one()]), outputs
        set_mode(model, "quant")
        quantised = one()
        as_quant, sqnr_db = score([quantised]), sqnr(clean, outputs)
        analog = any(hasattr(layer, "noise_level") for layer in chip_layers(model).values())
        noisy: dict[float, Score] = {}
        for value in levels:
            set_mode(model, "nat", level=value)
            runs = []
            for i in range(chips):
                if not analog:
                    runs.append(quantised)
                    progress()
                    continue
                with simulated_chip(model, first_seed + i):
                    runs.append(one())
            noisy[value] = score(runs)
    return Evaluation(as_float, as_quant, noisy, sqnr_db)


def _run(
    model: nn.Module, loader: Iterable[Any], metric: MetricLike, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, float, float]:
    outputs, targets = [], []
    for batch in loader:
        outputs.append(model(*inputs_of(batch, model)).cpu())
        targets.append(batch_target(batch))
    if not outputs:
        raise CalibrationError("the loader is empty", where="evaluate", hint="Give at least one batch.")
    output, target = torch.cat(outputs), torch.cat(targets)
    if _is_metric(metric):
        metric = metric.cpu()
        metric.reset()
        metric.update(output, target)
        return output, loss(output, target).item(), float(metric.compute())
    return output, loss(output, target).item(), float(metric(output, target))


def _is_metric(metric: object) -> TypeGuard[Metric]:
    """Whether this is a torchmetrics metric; whoever has one has imported the package, which takes most of a second."""
    package = sys.modules.get("torchmetrics")
    return package is not None and isinstance(metric, package.Metric)
