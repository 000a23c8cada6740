"""Running data through a network for calibration, and keeping a sample of what passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.errors import CalibrationError
from chipfit.fit.ranks import each
from chipfit.program.batches import batch_inputs, input_names

_KEPT_PER_BATCH = 1 << 14


class Sample:
    """A sample of the values of many tensors, by layer and tensor name; the largest magnitude is always among them.

    Example:
        >>> sample = Sample()
        >>> sample.keep("fc", "x", torch.tensor([1.0, -2.0]))
        >>> sample.values("fc")["x"]
        tensor([ 1., -2.])
    """

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, list[Tensor]]] = {}
        self._gathered: dict[str, dict[str, Tensor]] = {}
        self._generator = torch.Generator().manual_seed(0)

    def keep(self, layer: str, tensor: str, value: Tensor) -> None:
        """Take values of any shape in."""
        self._gathered.pop(layer, None)
        flat = value.detach().flatten().float().cpu()
        if flat.numel() > _KEPT_PER_BATCH:
            picked = torch.randint(flat.numel(), (_KEPT_PER_BATCH,), generator=self._generator)
            flat = torch.cat([flat[picked], flat[flat.abs().argmax()].view(1)])
        self._parts.setdefault(layer, {}).setdefault(tensor, []).append(flat)

    def values(self, layer: str) -> dict[str, Tensor]:
        """All values of a layer on all ranks, by tensor; every rank must ask for it.

        Raises:
            CalibrationError: the layer was never reached, on no rank.
        """
        if layer in self._gathered:
            return self._gathered[layer]
        found: dict[str, list[Tensor]] = {}
        for own in each({tensor: torch.cat(parts) for tensor, parts in self._parts.get(layer, {}).items()}):
            for tensor, values in own.items():
                found.setdefault(tensor, []).append(values)
        if not found:
            raise CalibrationError(
                "the layer was never reached by the calibration data",
                where=layer,
                hint="Give data that reaches it, or take the layer out of the network.",
            )
        self._gathered[layer] = {tensor: torch.cat(parts) for tensor, parts in found.items()}
        return self._gathered[layer]


def inputs_of(batch: Any, model: nn.Module) -> tuple[Any, ...]:
    """The network's positional inputs out of a batch, on its device; see `chipfit.program.batches`."""
    inputs = batch_inputs(batch, input_names(model), type(model).__name__)
    parameter = next(model.parameters(), None)
    return inputs if parameter is None else tuple(x.to(parameter.device) for x in inputs)


def first_tensor(output: Any) -> Tensor:
    """The tensor in what a layer returns: itself, or what a tuple begins with."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(f"a layer returned {type(output).__name__}")
    return output


def tensors_of(output: Any) -> list[Tensor]:
    """The real tensors in what a network returns, in order: itself, or those in tuples, lists and dictionaries.

    Example:
        >>> [t.item() for t in tensors_of({"a": torch.tensor(1.0), "b": (torch.tensor(2.0), None)})]
        [1.0, 2.0]
    """
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    return [tensor for entry in output for tensor in tensors_of(entry)] if isinstance(output, (tuple, list)) else []


def samples_in(batch: Any) -> int:
    """How many samples a batch has, by its first real tensor.

    Example:
        >>> samples_in((torch.zeros(3, 2), torch.zeros(5))), samples_in(torch.zeros(3, dtype=torch.long))
        (3, 1)
    """
    first = tensors_of(batch)[:1]
    return len(first[0]) if first and first[0].dim() else 1


class Kept:
    """Batches that keep their first ones while they are run through, for another look.

    Args:
        loader: Batches.
        batches: Largest number of batches; None for all.

    Attributes:
        first: The first batches, of at most `MOST_SAMPLES` samples together.

    Example:
        >>> kept = Kept(iter([torch.zeros(2), torch.ones(2)]), 1)
        >>> len(list(kept)), kept.first
        (1, [tensor([0., 0.])])
    """

    MOST_SAMPLES = 256

    def __init__(self, loader: Iterable[Any], batches: int | None = None) -> None:
        self._loader, self._batches = loader, batches
        self.first: list[Any] = []
        self._samples = 0

    def __iter__(self) -> Iterator[Any]:
        """Give the batches, once more if the loader can."""
        self.first, self._samples = [], 0
        for batch in itertools.islice(self._loader, self._batches):
            if self._samples < self.MOST_SAMPLES:
                self.first.append(batch)
                self._samples += samples_in(batch)
            yield batch


def run_batches(model: nn.Module, loader: Iterable[Any], batches: int | None) -> Iterator[Any]:
    """Run each batch through the network and give its output.

    Raises:
        CalibrationError: there is no batch.
    """
    count = 0
    for batch in itertools.islice(loader, batches):
        yield model(*inputs_of(batch, model))
        count += 1
    if not count:
        raise CalibrationError("the calibration data is empty", where="calibrate", hint="Give at least one batch.")
