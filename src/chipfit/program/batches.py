"""One convention for batches, wherever a verb takes data.

A batch is the input of a network, or a tuple or list that begins with its inputs, or with a tuple of them; labels may
follow. It may be a dictionary, too, of inputs by the names that the network's forward gives them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from chipfit.errors import ShapeError

LABELS = ("target", "targets", "label", "labels", "y")
"""Names of what is compared with the output, in a batch that is a dictionary."""


def input_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the inputs that a network's forward must be given.

    Example:
        >>> input_names(nn.Bilinear(2, 2, 1)), input_names(nn.Sequential(nn.ReLU()))
        (('input1', 'input2'), ('input',))
    """
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    graph = getattr(model, "graph", None)
    if graph is not None and hasattr(graph, "nodes"):
        given = [node for node in graph.nodes if node.op == "placeholder"]
        return tuple(str(node.target).lstrip("*") for node in given if not node.args)
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    )


def batch_inputs(batch: Any, names: int | Sequence[str], where: str = "the loader") -> tuple[Any, ...]:
    """The inputs in a batch.

    Args:
        batch: See this module.
        names: Names of the network's inputs, or how many there are.
        where: Who asks, for the error.

    Raises:
        ShapeError: the batch has fewer tensors than the network has inputs, or not these names.

    Example:
        >>> import torch
        >>> a, b, label = torch.zeros(1), torch.ones(1), torch.tensor([2.0])
        >>> [len(batch_inputs(x, 2)) for x in ((a, b), (a, b, label), ((a, b), label), ((a, b),), [a, b])]
        [2, 2, 2, 2, 2]
        >>> batch_inputs({"b": b, "label": label, "a": a}, ["a", "b"])
        (tensor([0.]), tensor([1.]))
    """
    known = () if isinstance(names, int) else tuple(names)
    count = names if isinstance(names, int) else max(len(known), 1)
    parts: Any = batch
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], (tuple, list, Mapping)):
        parts = batch[0]
    if isinstance(parts, Mapping):
        if all(name in parts for name in known) and len(known) == count:
            return tuple(parts[name] for name in known)
        rest = [value for name, value in parts.items() if name not in LABELS]
        if count == 1 and len(rest) == 1:
            return (rest[0],)
        raise ShapeError(
            "the batch has other names than the network's inputs",
            given=", ".join(map(str, parts)),
            allowed=", ".join(known) or f"{count} inputs",
            where=where,
        )
    given = tuple(parts) if isinstance(parts, (tuple, list)) else (parts,)
    if len(given) < count or not all(isinstance(x, Tensor) for x in given[:count]):
        raise ShapeError(
            "the batch does not begin with the network's inputs",
            given=", ".join(type(x).__name__ for x in given) or "nothing",
            allowed=f"{count} tensor(s), labels after them: a tensor, (a, b), ((a, b), label) or a dictionary by name",
            where=where,
        )
    return given[:count]


def batch_target(batch: Any, where: str = "evaluate") -> Any:
    """What a batch says that the output should be: its last part, or what a dictionary calls so.

    Raises:
        ShapeError: it says nothing.

    Example:
        >>> batch_target(("inputs", 3)), batch_target({"x": "inputs", "label": 3})
        (3, 3)
    """
    if isinstance(batch, Mapping):
        found = [batch[name] for name in LABELS if name in batch]
        if found:
            return found[0]
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[-1]
    raise ShapeError(
        "the batch has no target",
        given=", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__,
        allowed=f"(input, target), or a dictionary with one of {', '.join(LABELS)}",
        where=where,
    )
