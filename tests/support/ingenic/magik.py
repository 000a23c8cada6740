"""What the tests of the `magik` files share: the way there and back, and a look into a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.magik.write.writer import magik_model
from chipfit.export import check_magik, export_magik, read_magik
from chipfit.program import lower
from chipfit.program.types import Program


def leaves(results: Any) -> list[Tensor]:
    """The tensors that a network returns, without the widths and signs around them."""
    if isinstance(results, dict):
        results = list(results.values())
    if isinstance(results, (tuple, list)):
        return [leaf for part in results for leaf in leaves(part)]
    return [results] if isinstance(results, Tensor) else []


def assert_same_program(one: Program, other: Program, names: bool = True) -> None:
    """Equal operations on equal tensors; the names too, where the network has no plain torch in it."""
    label = {node.name: str(i) for i, node in enumerate(one.nodes)}
    again = {node.name: str(i) for i, node in enumerate(other.nodes)}
    assert [node.output for node in one.nodes] == [node.output for node in other.nodes]
    if names:
        assert one.nodes == other.nodes and one.inputs == other.inputs and one.outputs == other.outputs
    else:
        assert [type(node.op) for node in one.nodes] == [type(node.op) for node in other.nodes]
        first = [[label.get(x, x) for x in node.inputs] for node in one.nodes]
        assert first == [[again.get(x, x) for x in node.inputs] for node in other.nodes]
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


def round_trip(net: nn.Module, folder: Path, *batches: Any, names: bool = True, lowers: bool = True) -> nn.Module:
    """Export, check, read back: equal outputs bit for bit, equal parameters, the same program."""
    first = batches[0]
    path = export_magik(net, first, folder / "model.onnx")
    check_magik(path)
    again = read_magik(path)
    net.eval()
    with torch.no_grad():
        for batch in batches:
            inputs = batch if isinstance(batch, tuple) else (batch,)
            wanted, found = leaves(net(*inputs)), leaves(again(*inputs))
            assert len(wanted) == len(found) > 0
            assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    if lowers:
        assert_same_program(lower(net, first), lower(again, first), names)
    return again


def same_state(net: nn.Module, again: nn.Module) -> bool:
    """Equal parameters and statistics; clips and factors are arguments of what was read, and in the program."""
    one, other = ({k: v for k, v in each.state_dict().items() if ".scales." not in k} for each in (net, again))
    counted = {key for key in one if key.endswith("num_batches_tracked")}
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one.keys() - counted)


def nodes(net: nn.Module, example: Any) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in magik_model(net, example).graph.node}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def fields(node: onnx.NodeProto) -> dict[str, Any]:
    return json.loads(attributes(node)["param_str"])
