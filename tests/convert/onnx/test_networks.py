"""Whole networks of the kinds that run at the edge, and of pytorchcv, exported by torch's two exporters."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import chipfit
from support.onnx_files import by_onnxruntime, difference
from support.onnx_networks import KINDS, built

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters, on tracing and on old opsets
OPSETS = [17, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (9, 11, 13, 20))]
SCRIPTED = pytest.mark.skipif(
    importlib.util.find_spec("onnxscript") is None, reason="torch's newer exporter needs the package onnxscript"
)


def exported(net: nn.Module, x: Tensor, path: Path, opset: int, free: bool, dynamo: bool = False) -> Any:
    options: dict[str, Any] = {"opset_version": opset, "input_names": ["input"], "dynamo": dynamo}
    if free and dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("n")},)
    elif free:
        options["dynamic_axes"] = {"input": {0: "n"}}
    torch.onnx.export(net, (x,), path, verbose=False, **options)
    return onnx.load(path)


def compare(net: nn.Module, x: Tensor, path: Path, model: Any, batch: int) -> None:
    """The numbers of onnxruntime, and for another batch than the file's those of the network."""
    again = chipfit.load_onnx(path)
    with torch.no_grad():
        name = model.graph.input[0].name
        assert difference(again(x[:batch]), by_onnxruntime(model, {name: x[:batch].numpy()})) <= 1e-5
        more = torch.cat([x, x.flip(0), x[:1]])
        expected = net(more)
        assert difference(again(more), expected if isinstance(expected, tuple) else (expected,)) <= 1e-5
    assert next(iter(again.meta["shapes"].values()))[0] is None


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind: str, opset: int, free: bool, tmp_path: Path) -> None:
    net, x = built(kind)
    path = tmp_path / "model.onnx"
    model = exported(net, x[:1], path, opset, free)
    compare(net, x, path, model, 2 if free else 1)


@SCRIPTED
@pytest.mark.parametrize("opset, free", [(18, False), (18, True), (20, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_kind_by_the_newer_exporter(kind: str, opset: int, free: bool, tmp_path: Path) -> None:
    net, x = built(kind)
    path = tmp_path / "model.onnx"
    model = exported(net, x, path, opset, free, dynamo=True)
    compare(net, x, path, model, 2)


ZOO = ("resnet10", "mobilenet_wd4", "mobilenetv3_small_w7d20", "shufflenetv2_wd2", "squeezenet_v1_0", "ghostnet")


@pytest.mark.parametrize("name", ZOO)
def test_pytorchcv(name: str, tmp_path: Path) -> None:
    zoo = pytest.importorskip("pytorchcv.model_provider", reason="pytorchcv 0.0.67 is installed with --no-deps")
    torch.manual_seed(0)
    net, x = zoo.get_model(name, pretrained=False).eval(), torch.randn(2, 3, 224, 224)
    path = tmp_path / "model.onnx"
    compare(net, x, path, exported(net, x[:1], path, 13, free=False), 1)


@pytest.mark.parametrize("kind", ["keyword", "mobilenet", "vit", "mixer", "tcn", "autoencoder"])
def test_the_state_has_the_names_of_the_network(kind: str, tmp_path: Path) -> None:
    """Exporters fold batch norms and lose the names of what they transpose; the calls say which layer it was."""
    net, x = built(kind)
    path = tmp_path / "model.onnx"
    exported(net, x[:1], path, 17, free=True)
    again = chipfit.load_onnx(path)
    known = set(net.state_dict())
    folded = {name.replace("weight", "bias") for name in known}  # of convolutions that had none
    assert set(again.state_dict()) <= known | folded
    assert all(isinstance(parameter, nn.Parameter) for parameter in again.parameters())


@pytest.mark.parametrize("chip", ["wtm2101", "t40"])
@pytest.mark.parametrize("kind", ["ds-cnn", "resnet-8", "tiny-yolo"])
def test_onto_a_chip(kind: str, chip: str, tmp_path: Path) -> None:
    """A file through every step, with the result of each that the network itself has."""
    net, x = built(kind)
    path = tmp_path / "model.onnx"
    exported(net, x[:1], path, 17, free=False)
    data = [torch.randn(8, *x.shape[1:]) for _ in range(2)]
    again = chipfit.load_onnx(path)
    assert chipfit.check(again, chip, data[0]).ok == chipfit.check(net, chip, data[0]).ok
    converted = chipfit.convert(again, chip, data[0])
    chipfit.calibrate(converted, data)
    chipfit.set_mode(converted, "quant")
    program = chipfit.lower(converted, data[0])
    assert chipfit.verify(converted, program, data)


def test_it_trains(tmp_path: Path) -> None:
    net, x = built("resnet-8")
    path = tmp_path / "model.onnx"
    exported(net, x[:1], path, 17, free=False)
    again = chipfit.load_onnx(path).train()
    again(torch.cat([x, x])).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())
