"""Reading a Magik file back into a network of chipfit's Ingenic operators.

The nodes of one layer share the first part of their name, which is the layer's place in the network; so the network
that is read has the module names, and the `state_dict`, of the one that was exported.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import fx

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.magik.check.check import refuse_model
from chipfit.chips.ingenic.magik.kit.read import read_kit
from chipfit.chips.ingenic.magik.kit.source import is_kit_file
from chipfit.chips.ingenic.magik.read.layers import KINDS
from chipfit.chips.ingenic.magik.read.moves import REGIONS, alone
from chipfit.chips.ingenic.magik.read.reader import Built, Reader, Unit
from chipfit.chips.ingenic.magik.torch import UNIT, read_back
from chipfit.chips.ingenic.magik.view import View, attributes, json_object
from chipfit.errors import FileFormatError
from chipfit.onnx_file import read_model
from chipfit.reading import reading


def read_magik(path: str | Path) -> fx.GraphModule:
    """Read what `export_magik` wrote.

    Args:
        path: The ONNX file. It is checked first, with `check_magik`.

    Returns:
        A network in evaluation, of the operators of `chipfit.chips.ingenic`, with the module and parameter names of
        the one that was exported. It takes the same inputs and returns its tensors, without the vendor's tuples around
        them: one, or a tuple of several. Its `code` shows what calls what. Names of the file that are more than plain
        words are replaced by `x1`, `unit_1`, ...: `meta["file_names"]` has the file's name for each of those.

    Raises:
        FileFormatError: the file breaks a rule, or holds nodes in a composition that `export_magik` does not write.
    """
    with reading("the Magik file", path):
        model = read_model(path)
        if is_kit_file(model):
            return read_kit(model, path)
        refuse_model(model, path)
        reader = Reader(View(model))
        for unit in reader.units.values():
            if unit.name not in reader.inside:
                _read_unit(reader, unit, path)
        return reader.network()


def _read_unit(reader: Reader, unit: Unit, path: str | Path) -> None:
    try:
        _rule(unit)(reader, unit)
    except FileFormatError:
        raise
    except Exception as error:
        raise FileFormatError(
            "the nodes of this layer cannot be read back", given=str(error), where=f"{path}, {unit.name}"
        ) from error


def _rule(unit: Unit) -> Callable[[Reader, Unit], None]:
    first = unit.nodes[0]
    if unit.name.startswith(UNIT):
        return _function
    if first.op_type == "NOp":
        target = attributes(first)["op_target"]
        region = target.rpartition("_")[0]
        return REGIONS[region] if region in REGIONS and target.endswith("_start") else _marker
    kind = next((kind for kind in KINDS if unit.has(kind)), None)
    return alone(unit) if kind is None else _put(KINDS[kind])


def _put(rule: Callable[[Reader, Unit], Built]) -> Callable[[Reader, Unit], None]:
    def put(reader: Reader, unit: Unit) -> None:
        layer, given, picked = rule(reader, unit)
        reader.call(unit, layer, given, picked=picked)

    return put


def _marker(reader: Reader, unit: Unit) -> None:
    """The file's inputs and outputs, and Preprocess."""
    node = unit.nodes[0]
    a, edge = attributes(node), node.input[0]
    attr = json_object(a["op_attr"])["attr"]
    if a["op_target"] == "preprocess_end":
        layer = chips.Preprocess(attr["mean"], attr["var"], reader.device.name)
        reader.call(unit, layer, reader.values[edge], picked=(0,))
        reader.images[unit.output] = (attr["mean"], attr["var"], attr["clip_min_value"])
        return
    reader.values[node.output[0]] = reader.values[edge]
    if a["op_target"] == "output":
        reader.outputs.append(reader.values[edge])


def _function(reader: Reader, unit: Unit) -> None:
    """A call of plain torch, under the name that it had."""
    function, args, options = read_back(reader.view, unit.nodes, reader.values)
    made = reader.call_function(unit.name.removeprefix(UNIT), function, args, options)
    outputs = list(unit.nodes[-1].output)
    if unit.has("Split"):
        reader.values |= {edge: reader.pick(made, (i,)) for i, edge in enumerate(outputs)}
    else:
        reader.values[outputs[0]] = made
