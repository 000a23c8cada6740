"""The proof: a network's own forward and its integer program, code for code, over a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from chipfit.copying import inside
from chipfit.errors import CalibrationError, UnsupportedError
from chipfit.program.batches import batch_inputs
from chipfit.program.comparing import Comparing
from chipfit.program.evaluation import in_evaluation
from chipfit.program.fast import FastProgram
from chipfit.program.ops import Dequantise
from chipfit.program.reference import trace
from chipfit.program.types import Node, Program, owner_of
from chipfit.vendor import vendor_of

OUTPUT = "output"


@dataclass(frozen=True)
class Mismatch:
    """Where a network and its program first differ.

    Args:
        layer: The layer, or 'output', or 'fast path'.
        codes: How many of its codes differ in the batch that showed it.
        of: How many codes it has there.
        largest: Largest difference in codes.
        index: Index of one differing code, the batch first.
        expected: That code in the network (in the reference, for the fast path).
        got: That code in the program (in the fast path).
        sample: Number of the differing sample within the data set.
    """

    layer: str
    codes: int
    of: int
    largest: int
    index: tuple[int, ...]
    expected: int
    got: int
    sample: int

    def __str__(self) -> str:
        return (
            f"{self.layer}: {self.codes} of {self.of} codes differ, by up to {self.largest}; "
            f"at {self.index} (sample {self.sample}) the network has {self.expected}, the program {self.got}"
        )


@dataclass(frozen=True)
class EngineResult:
    """What a comparison of an engine with the reference found.

    Args:
        name: The engine.
        version: What it is, with the versions that its codes could depend on.
        samples: Samples compared.
        codes: Codes compared, by edge.
        mismatch: The first difference, or None.
    """

    name: str
    version: str
    samples: int
    codes: dict[str, int]
    mismatch: Mismatch | None

    def __str__(self) -> str:
        total = f"{sum(self.codes.values()):,} codes of {len(self.codes)} edges over {self.samples:,} samples"
        said = "all equal" if self.mismatch is None else f"NOT equal. First: {self.mismatch}"
        return f"{self.name} ({self.version}): {total}: {said}"


@dataclass(frozen=True)
class Proof:
    """What `verify` found.

    Args:
        samples: Samples compared.
        codes: Codes compared, by layer in the order of the program, outputs included.
        in_float64: Layers whose forward was computed in float64, because float32 is not sure to be exact there.
        rounding: Rounding rules of the program's array operations.
        trained_otherwise: Layers that the network itself computes with another rounding rule than the program.
        mismatch: The first difference, or None.
        engines: Results of engines.
    """

    samples: int
    codes: dict[str, int]
    in_float64: tuple[str, ...]
    rounding: tuple[str, ...]
    trained_otherwise: tuple[str, ...]
    mismatch: Mismatch | None
    engines: tuple[EngineResult, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether every code was equal."""
        return self.mismatch is None and all(result.mismatch is None for result in self.engines)

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        total = sum(self.codes.values())
        text = f"{total:,} codes of {len(self.codes)} layers over {self.samples:,} samples: "
        text += "all equal" if self.mismatch is None else f"NOT equal. First: {self.mismatch}"
        if self.in_float64:
            text += f". Computed in float64: {', '.join(self.in_float64)}"
        if self.trained_otherwise:
            rules, layers = ", ".join(self.rounding), ", ".join(self.trained_otherwise)
            text += f". The network trains another rounding rule than {rules}: {layers}"
        return "\n".join([text, *map(str, self.engines)])

    def table(self) -> Table:
        """One row a layer, to print with rich."""
        table = Table(title=str(self), title_justify="left")
        for heading in ("layer", "codes", "differing", "forward in"):
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        for layer, count in self.codes.items():
            wrong = str(self.mismatch.codes) if self.mismatch and self.mismatch.layer == layer else "0"
            table.add_row(escape(layer), f"{count:,}", wrong, "float64" if layer in self.in_float64 else "float32")
        return table


def verify(model: nn.Module, program: Program, loader: Iterable[Any]) -> Proof:
    """Compare a network's forward with its program, every code of every chip layer and of the outputs.

    A layer whose result nobody reads is not in the program, and not compared.

    The network runs in evaluation, without noise, on its own device and in the state that the program was made in (its
    rounding rules, for instance); layers whose node is not `exact_in_float32` run in float64. The program runs on the
    CPU, in the reference and in the fast path, which must agree too.

    Args:
        model: The network that was lowered. It is not changed.
        program: Its program.
        loader: Batches, as for `chipfit.calibrate`: a tensor, a tuple that begins with the inputs or with a tuple of
            them (labels may follow), or a dictionary by the names of forward.

    Returns:
        The proof; it ends at the first batch with a difference.

    Raises:
        CalibrationError: the loader gives no batch.
        UnsupportedError: the network's layers are not the program's.

    Example:
        >>> from chipfit.program.lowering.engine import lower
        >>> from witin_nn import WitinLayerConfig, WitinLinear
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=64, scale_weight=64)
        >>> config.scale_y = 32
        >>> net = nn.Sequential(WitinLinear(2, 1, layer_config=config), nn.ReLU())
        >>> print(verify(net, lower(net, torch.zeros(1, 2)), [torch.randn(100, 2)]))
        200 codes of 2 layers over 100 samples: all equal. The network trains another rounding rule than wtm2101: 0
    """
    model = inside(model)
    vendor = vendor_of(model)
    if vendor_of(program) is not vendor:
        raise UnsupportedError(
            "the program is not this network's", given=f"a program for {program.chip}", where="verify"
        )
    comparing = vendor.comparing or Comparing()
    root = in_evaluation(model, vendor)
    nodes = nodes_by_layer(program, vendor.layers_of(root))
    settled = comparing.settle(root, program)
    layers = list(vendor.layers_of(root))
    inexact = (owner_of(node, layers) for node in program.nodes if not node.exact_in_float32)
    wide = tuple(dict.fromkeys(name for name in inexact if name)) if comparing.widens else ()
    with torch.no_grad(), _recorded(root, {*nodes, *wide}, wide) as seen:
        pairs = partial(_pairs, program, comparing, nodes, seen)
        samples, counts, mismatch = _compared(root, program, loader, seen, pairs, list(nodes))
    return Proof(samples, counts, wide, settled.rounding, settled.trained_otherwise, mismatch)


Compared = Iterator[tuple[str, Tensor, Tensor]]
"""Layer, what was expected, what came."""


def _compared(
    root: nn.Module,
    program: Program,
    loader: Iterable[Any],
    seen: Mapping[str, list[Tensor]],
    pairs: Callable[[dict[str, Tensor], list[Tensor], list[Tensor]], Compared],
    layers: list[str],
) -> tuple[int, dict[str, int], Mismatch | None]:
    """Run a network on its own device and its program on the CPU, to the first batch with a difference.

    Args:
        root: The network, in evaluation.
        program: Its program.
        loader: Batches.
        seen: What the network's layers gave, call by call; emptied before each batch.
        pairs: What is compared, from the program's edges, the network's outputs and those of the fast path.
        layers: The layers whose codes are counted, besides the outputs.

    Returns:
        Samples, codes by layer, and the first difference.

    Raises:
        CalibrationError: the loader gives no batch.
    """
    fast, counts, samples = FastProgram(program), dict.fromkeys([*layers, OUTPUT], 0), 0
    device = next((tensor.device for tensor in root.parameters()), torch.device("cpu"))
    for batch in loader:
        inputs = batch_inputs(batch, [i.name for i in program.inputs], "verify")
        for calls in seen.values():
            calls.clear()
        result = tensors_of(root(*(x.to(device) for x in inputs)))
        inputs, mismatch = tuple(x.cpu() for x in inputs), None
        for name, expected, got in pairs(trace(program, *inputs), result, tensors_of(fast(*inputs))):
            if name in counts:
                counts[name] += expected.numel()
            mismatch = mismatch or difference(name, expected, got, samples)
        samples += len(inputs[0])
        if mismatch:
            return samples, counts, mismatch
    if not samples:
        raise CalibrationError("the loader gave no sample", where="verify")
    return samples, counts, None


def tensors_of(results: Any) -> list[Tensor]:
    """The tensors in what a network or a program gave, in order."""
    if isinstance(results, dict):
        results = list(results.values())
    if isinstance(results, (tuple, list)):
        return [tensor for part in results for tensor in tensors_of(part)]
    return [results] if isinstance(results, Tensor) else []


def nodes_by_layer(program: Program, known: Collection[str]) -> dict[str, list[Node]]:
    """The nodes that give a layer's output, by the layer.

    Raises:
        UnsupportedError: some are of a layer that the network has not, or no node belongs to any.
    """
    nodes: dict[str, list[Node]] = {}
    for node in program.nodes:
        if node.layer:
            nodes.setdefault(node.layer, []).append(node)
    strangers = [name for name in nodes if name not in known]
    if strangers or not any(owner_of(node, known) for node in program.nodes):
        raise UnsupportedError("the program is not this network's", given=sorted(strangers), where="verify")
    return nodes


@contextmanager
def _recorded(model: nn.Module, names: Iterable[str], wide: tuple[str, ...]) -> Iterator[dict[str, list[Tensor]]]:
    """Keep the outputs of layers' calls, and compute some layers in float64."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = []
    for name, calls in seen.items():
        module: Any = model.get_submodule(name)

        def keep(_: nn.Module, __: Any, output: Any, calls: list[Tensor] = calls) -> None:
            # a copy: an in-place activation behind the layer would overwrite what it gave
            calls.append(tensors_of(output)[0].detach().clone())

        handles.append(module.register_forward_hook(keep))
        if name in wide:
            module.double()
            handles.append(module.register_forward_pre_hook(lambda _, args: _cast(args, torch.float64)))
            handles.append(module.register_forward_hook(lambda _, __, output: _cast(output, torch.float32)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _cast(values: Any, dtype: torch.dtype) -> Any:
    if isinstance(values, tuple):
        return tuple(_cast(value, dtype) for value in values)
    return values.to(dtype) if isinstance(values, Tensor) and values.is_floating_point() else values


def _pairs(
    program: Program,
    comparing: Comparing,
    nodes: dict[str, list[Node]],
    seen: dict[str, list[Tensor]],
    edges: dict[str, Tensor],
    result: list[Tensor],
    quick: list[Tensor],
) -> Compared:
    """What is compared: layer, the network's codes, the program's, in the program's order."""
    for name, own in nodes.items():
        for node, output in _calls_of(name, own, seen[name]):
            yield name, comparing.codes(output, node.output), edges[node.name]
    made = {node.name: node for node in program.nodes}
    for edge, network, other in zip(program.outputs, result, quick, strict=True):
        if edge not in made:
            continue  # an input handed through
        # codes that were only turned into numbers are compared as codes
        read = made[edge].inputs[0] if isinstance(made[edge].op, Dequantise) else edge
        kind = program.type(read)
        yield OUTPUT, comparing.codes(network, kind), edges[read]
        yield "fast path", edges[read], comparing.codes(other, kind)


def _calls_of(name: str, nodes: list[Node], outputs: list[Tensor]) -> Iterator[tuple[Node, Tensor]]:
    """A layer's nodes, each with what the network's layer gave in that call, of which it may be a share.

    Raises:
        UnsupportedError: the network calls the layer less often than the program.
    """
    for node in nodes:
        if node.call >= len(outputs):
            raise UnsupportedError(
                "the network calls the layer less often than its program",
                given=len(outputs),
                allowed=f"at least {node.call + 1} calls",
                where=name,
            )
        index, count = node.share
        output = outputs[node.call]
        yield node, output if count == 1 else output.chunk(count, -1)[index]


def difference(layer: str, expected: Tensor, got: Tensor, before: int) -> Mismatch | None:
    """The first difference between two tensors, or None; `before` samples came before them.

    Raises:
        UnsupportedError: they differ in shape.
    """
    if expected.shape != got.shape:
        raise UnsupportedError(
            "the program's codes have another shape than the network's",
            given=tuple(got.shape),
            allowed=str(tuple(expected.shape)),
            where=layer,
        )
    expected, got = expected.to(torch.float64), got.to(torch.float64)
    if torch.equal(expected, got):
        return None
    gap = (expected - got).abs()
    gap = torch.where(gap.isnan(), torch.inf, gap)
    wrong = gap.nonzero()
    index = tuple(int(i) for i in wrong[0])
    at = gap.amax()
    return Mismatch(
        layer,
        len(wrong),
        expected.numel(),
        int(at.clamp(max=2.0**62)),
        index,
        int(expected[index].nan_to_num()),
        int(got[index].nan_to_num()),
        before + index[0] if index else before,
    )
