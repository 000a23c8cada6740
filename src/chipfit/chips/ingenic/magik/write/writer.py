"""A network of Ingenic operators in the node conventions of the vendor's Magik converter.

The file holds the float weights as trained, with batch normalisation unfolded, and names the widths, clips and targets
from which the converter quantises: so it is made from the network, not from its integer program. The converter itself
was never run on such a file.

Source: spec/ingenic.md, sections 1, 3 and 5.
"""

from __future__ import annotations

import json
import operator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from chipfit.chips.ingenic.devices import Device
from chipfit.chips.ingenic.magik.check.check import model_problems
from chipfit.chips.ingenic.magik.graph import UNWRITTEN, Edge, MagikGraph, Written, samples
from chipfit.chips.ingenic.magik.rules import IR_VERSION, METADATA, OPSET
from chipfit.chips.ingenic.magik.torch import holds_edge, plain, values_of
from chipfit.chips.ingenic.magik.write.activations import check_activations
from chipfit.chips.ingenic.magik.write.regions import LAYERS
from chipfit.chips.ingenic.network import computes_otherwise, network_target, warn_of_strangers
from chipfit.chips.ingenic.program.lowering.layers import LAYERS as LOWERED
from chipfit.chips.ingenic.program.lowering.table import ingenic_layers
from chipfit.copying import copied, inside
from chipfit.errors import ChipfitError, UnsupportedError
from chipfit.export.onnx.graph import write_model
from chipfit.onnx_file import need_onnx
from chipfit.program.live import simplified
from chipfit.program.lowering.engine import lower
from chipfit.program.lowering.example import run_on_example, traced
from chipfit.program.types import Program


def export_magik(model: nn.Module, example: Any, path: str | Path) -> Path:
    """Write a network of Ingenic operators for the vendor's converter.

    Args:
        model: Network of quantised Ingenic operators, in float32. It is not changed; what it computes in `eval()` is
            written, also where the integer program is not known (LSTM, attention).
        example: An input batch, or a tuple of the network's inputs, axis 0 the batch. A mean of a signed feature has
            to see a negative value in it, or to have seen one before.
        path: The ONNX file to write.

    Returns:
        The file.

    Raises:
        UnsupportedError: something cannot be written; the error lists each call, its layer and the reason. So does what
            breaks a rule of `check_magik`, channel multiples for instance.

    Example:
        >>> import tempfile
        >>> from chipfit.chips import ingenic as ops
        >>> options = {"quantize": True, "weight_bitwidth": 8, "output_bitwidth": 8, "target_device": "T40"}
        >>> net = nn.Sequential(ops.Preprocess(0, 255.0, "T40"), ops.Conv2D(3, 32, first_layer=True, **options))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_magik(net, torch.zeros(1, 3, 8, 8), f"{folder}/net.onnx")
        ...     path.name
        'net.onnx'
    """
    need_onnx()
    path = Path(path)
    write_model(magik_model(model, example), path)
    return path


def magik_model(model: nn.Module, example: Any) -> Any:
    """What `export_magik` writes, an `onnx.ModelProto` that passed the checks. Arguments and errors as there."""
    examples = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    model = inside(model)
    root = copied(model) if "" not in ingenic_layers(model) else nn.Sequential(copied(model))
    root.eval()
    odd = {str(tensor.dtype) for tensor in (*root.parameters(), *root.buffers()) if tensor.is_floating_point()}
    if odd - {"torch.float32"}:
        raise UnsupportedError(
            "the file holds float32", given=", ".join(sorted(odd)), where="magik", hint="Call model.float() first."
        )
    network, _ = traced(root, (*LAYERS, *LOWERED), examples, type(model).__name__)
    target = network_target(ingenic_layers(network), "magik")
    if target is None:
        raise UnsupportedError("a file is for one target", given=None, allowed="one target", where="magik")
    with torch.no_grad():
        run_on_example(fx.Interpreter(network), examples)  # means find out here whether their input is signed
        single = tuple(x[:1] for x in examples)
        once = _Writer(network, target).written(single)
        twice = _Writer(network, target).written(tuple(torch.cat([x, x]) for x in single))
    then = "the file names the network's target, and the converter computes that"
    warn_of_strangers(once.strangers, target, then, stacklevel=3)
    _free_the_batch(once.file, twice.file)
    made = once.model()
    problems = model_problems(made)
    if problems:
        raise UnsupportedError(f"the network breaks {len(problems)} rules of the file format:" + _listed(problems))
    return made


def check_same_network(program: Program, model: nn.Module, samples: Any) -> Any:
    """Check that a program is a network's own, so that the file holds what was proven.

    Args:
        program: From `chipfit.lower`.
        model: The network.
        samples: Its inputs, or None.

    Returns:
        The samples, or an input of zeros where there are none.

    Raises:
        UnsupportedError: the network lowers to another program, or to none.
    """
    example = samples if samples is not None else tuple(torch.zeros(1, *(x.type.shape or ())) for x in program.inputs)
    given = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    again, program = lower(model, given), simplified(program)
    same = (program.chip, program.nodes, program.inputs) == (again.chip, again.nodes, again.inputs)
    if not same or not all(torch.equal(tensor, again.tensors[name]) for name, tensor in program.tensors.items()):
        raise UnsupportedError(
            "the program is not that of the network",
            given=f"a program for {program.chip}",
            where="magik",
            hint="Lower the network again, with the samples as the example.",
        )
    return given


def _listed(problems: list[str]) -> str:
    return "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, 1))


class _Writer(fx.Interpreter):
    """Runs the network on one sample with edges in place of tensors, and writes nodes call by call."""

    def __init__(self, network: fx.GraphModule, target: Device) -> None:
        super().__init__(network)
        self.file, self.problems = MagikGraph(target), list[str]()
        self.inputs: list[Edge] = []
        self.outputs: list[Edge] = []
        self.strangers: list[str] = []

    def written(self, inputs: tuple[Tensor, ...]) -> _Writer:
        """Run, and report what could not be written."""
        run_on_example(self, inputs)
        if self.problems:
            raise UnsupportedError(
                f"{len(self.problems)} call(s) cannot be written:" + _listed(self.problems), where="magik"
            )
        return self

    def run_node(self, n: fx.Node) -> Written:
        """One call of the trace."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "placeholder":
            return self._input(n)
        if n.op == "output":
            return self._output(args[0])
        if n.op in ("call_module", "call_function", "call_method") and holds_edge([args, kwargs]):
            return self._call(n, args, kwargs)
        return super().run_node(n)

    def _call(self, n: fx.Node, args: Any, kwargs: Any) -> Written:
        if n.target is operator.getitem and not isinstance(args[0], Edge):
            return args[0][args[1]]  # of the vendor's tuples
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        result = values_of(layer if layer is not None else n.target, args, kwargs)
        try:
            if layer is None:
                made = plain(self.file, n.name, n.target, args, kwargs, result)
            else:
                _check_mode(layer)
                check_activations(self.file, layer)
                if computes_otherwise(layer, args[0] if args else None, self.file.target):
                    self.strangers.append(str(n.target))
                made = _rule(layer)(self.file, str(n.target), layer, *args, *kwargs.values())
            return _with_samples(made, result)
        except ChipfitError as error:
            where = f" (layer {n.target})" if layer is not None else ""
            self.problems.append(f"{n.name}{where}: {error}")
            return _unwritten(result)

    def _input(self, n: fx.Node) -> Edge:
        x = Edge(str(n.target), next(self.args_iter))
        self.inputs.append(x)
        self.file.shapes[x.name] = tuple(x.sample.shape)
        return self.file.marker(f"{x.name}/input", "input", f"input_index_{len(self.inputs)}", x)

    def _output(self, results: Written) -> Written:
        for edge in _edges(results):
            number = len(self.outputs) + 1
            end = self.file.marker(f"output_{number}", "output", f"index_{number}", edge)
            self.outputs.append(end)
        return samples(results)

    def model(self) -> Any:
        """The file."""
        from onnx import TensorProto, helper

        graph = self.file

        def value(name: str) -> Any:
            kind = TensorProto.INT64 if name in graph.integers else TensorProto.FLOAT
            return helper.make_tensor_value_info(name, kind, graph.shapes[name])

        ends = [[value(edge.name) for edge in edges] for edges in (self.inputs, self.outputs)]
        known = {edge.name for edge in (*self.inputs, *self.outputs)}
        about = f"chipfit: a network for {graph.target.name}, float weights, quantised by the vendor's converter."
        model = graph.builder.model("chipfit", *ends, opset=OPSET, ir_version=IR_VERSION, about=about)
        model.graph.value_info.extend(value(name) for name in graph.shapes if name not in known)
        notes = {"layers": graph.layers, "edges": graph.edges}
        helper.set_model_props(model, {METADATA: json.dumps(notes)})
        return model


def _check_mode(layer: nn.Module) -> None:
    if any(getattr(part, "floating", False) for part in layer.modules()):
        raise UnsupportedError(
            "the layer is in mode 'float'; a file holds quantised networks", hint="chipfit.set_mode(model, 'quant')."
        )


def _rule(layer: nn.Module) -> Any:
    for kind in type(layer).__mro__:
        if kind in LAYERS:
            return LAYERS[kind]
    raise UnsupportedError(
        f"{type(layer).__name__} has no nodes in the file", hint="Write it with the operators of the chip."
    )


def _with_samples(made: Written, result: Any) -> Written:
    """What a rule made, with the values that the layer computes."""
    if isinstance(made, Edge):
        return replace(made, sample=result)
    if isinstance(made, (tuple, list)):
        return type(made)(_with_samples(a, b) for a, b in zip(made, result, strict=True))
    return made


def _unwritten(result: Any) -> Written:
    if isinstance(result, (tuple, list)):
        return type(result)(_unwritten(part) for part in result)
    return Edge(UNWRITTEN, result) if isinstance(result, Tensor) else result


def _edges(results: Written) -> list[Edge]:
    if isinstance(results, dict):
        results = list(results.values())
    if isinstance(results, (tuple, list)):
        return [edge for part in results for edge in _edges(part)]
    return [results] if isinstance(results, Edge) else []


def _free_the_batch(once: MagikGraph, twice: MagikGraph) -> None:
    """Put -1 where a Reshape's size depends on the batch.

    Raises:
        UnsupportedError: more than one of its sizes do, or something else depends on the batch.
    """
    from onnx import numpy_helper

    one, two = once.builder, twice.builder
    if one.nodes != two.nodes:
        raise UnsupportedError("the network's operations depend on the size of the batch", where="magik")
    for name in one.constants:
        if not name.endswith("/shape"):
            continue
        sizes, doubled = (numpy_helper.to_array(b.constants[name]).copy() for b in (one, two))
        free = sizes != doubled
        if free.sum() > 1 or (free.any() and (sizes == -1).any()):
            raise UnsupportedError("several sizes of a shape depend on the batch", where=name)
        sizes[free] = -1
        one.constant(sizes, name)
