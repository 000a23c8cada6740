"""GRU, LSTM and RNN of files, with all that the operators say, against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chipfit.errors import UnsupportedError
from support.onnx_files import by_onnxruntime, difference, loaded, made, node, numbers

T, B, I, H = 5, 2, 3, 4  # noqa: E741  # steps, batch, inputs, hidden: the manual's letters
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def model_of(kind: str, states: int = 0, bias: bool = True, layout: int = 0, **attributes: Any) -> tuple[Any, Any]:
    """A file with one recurrent node, and its input; initial states are constants, different for each feature."""
    both = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[kind] * H
    constants = {"w": numbers(both, rows, I), "r": numbers(both, rows, H, seed=1) / 2}
    inputs = ["x", "w", "r"]
    if bias or states:
        constants["b"] = numbers(both, 2 * rows, seed=2) if bias else np.zeros((both, 2 * rows), np.float32)
        inputs.append("b")
    if states:
        inputs.append("")
    for i in range(states):
        start = np.repeat(numbers(both, 1, H, seed=3 + i), B, 1)
        constants[f"h{i}"] = start.swapaxes(0, 1).copy() if layout else start
        inputs.append(f"h{i}")
    if layout:
        attributes["layout"] = layout
    count = 3 if kind == "LSTM" else 2
    made_node = node(kind, *inputs, outputs=count, hidden_size=H, **attributes)
    x = numbers(B, T, I, seed=7) if layout else numbers(T, B, I, seed=7)
    if not layout:  # the batch first in the file's input, as exporters have it
        turn = node("Transpose", "z", perm=[1, 0, 2])
        turn.output[0] = "x"
        x = x.swapaxes(0, 1).copy()
        nodes = [turn, made_node]
    else:
        nodes = [made_node]
    name = "x" if layout else "z"
    return made(nodes, {name: x}, [f"y{i}" for i in range(count)], 17, **constants), {name: x}


CASES: list[tuple[str, dict[str, Any]]] = [
    (kind, {"direction": direction, **more})
    for kind in GATES
    for direction in ("forward", "reverse", "bidirectional")
    for more in ({}, {"states": 2 if kind == "LSTM" else 1}, {"bias": False})
]
CASES += [("GRU", {**options, "linear_before_reset": 1}) for kind, options in CASES if kind == "GRU"]
CASES += [("RNN", {"activations": ["Relu"]}), ("GRU", {"activations": ["Sigmoid", "Tanh"], "linear_before_reset": 1})]


@pytest.mark.parametrize("kind, options", CASES)
def test_recurrent(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, given = model_of(kind, **options)
    net = loaded(model, tmp_path)
    x = torch.from_numpy(next(iter(given.values())))
    with torch.no_grad():
        assert difference(net(x), by_onnxruntime(model, given)) <= 1e-5
        again = net(torch.cat([x, x]))[0]
    assert torch.allclose(again[:, :, :B], net(x)[0], atol=1e-6) and again.shape[2] == 2 * B


@pytest.mark.parametrize("kind", GATES)
def test_batch_first(kind: str, tmp_path: Path) -> None:
    """onnxruntime has no layout 1: the same file with layout 0 and its tensors turned says what is right."""
    options: dict[str, Any] = {"states": 2 if kind == "LSTM" else 1, "direction": "bidirectional"}
    options |= {"linear_before_reset": 1} if kind == "GRU" else {}
    model, given = model_of(kind, layout=1, **options)
    turned, other = model_of(kind, **options)
    x = torch.from_numpy(given["x"])
    expected = by_onnxruntime(turned, {"z": given["x"]})
    assert other["z"].shape == given["x"].shape
    y, *ends = (torch.from_numpy(part) for part in expected)
    right = (y.permute(2, 0, 1, 3), *(end.transpose(0, 1) for end in ends))
    with torch.no_grad():
        assert difference(loaded(model, tmp_path)(x), right) <= 1e-5


@pytest.mark.parametrize(
    "kind, options, reason",
    [
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, "activations"),
        ("LSTM", {"clip": 1.0}, "clip is not read"),
        ("LSTM", {"input_forget": 1}, "input_forget 1"),
        ("GRU", {"direction": "sideways"}, "direction 'sideways'"),
        ("RNN", {"activations": ["Affine"]}, "activations 'affine'"),
    ],
)
def test_refused(kind: str, options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        loaded(model_of(kind, **options)[0], tmp_path)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_the_layer_is_torchs_own(kind: Any, tmp_path: Path) -> None:
    """With the weights of the one that was exported, batch first, no move around it."""
    layer = kind(I, H, batch_first=True, bidirectional=True)
    net = nn.Sequential(layer)
    path = tmp_path / "model.onnx"
    torch.onnx.export(net, (torch.zeros(1, T, I),), path, dynamo=False, opset_version=17)
    import chipfit

    again = chipfit.load_onnx(path)
    (own,) = (module for module in again.modules() if isinstance(module, kind))
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), layer.state_dict().values(), strict=True))
    assert "permute" not in again.code and own.batch_first
