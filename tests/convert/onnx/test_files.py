"""What is refused, and how; names and other files; damaged files."""

from __future__ import annotations

import builtins
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import chipfit
from chipfit.cli import main
from chipfit.errors import ChipfitError, ChipfitWarning, FileFormatError, UnsupportedError
from support.onnx_files import difference, ints, loaded, made, node, numbers
from support.onnx_networks import built

HOSTILE = (
    'x=(getattr(__import__("os"),"system")("touch PWNED"))',
    "x):\n    __import__('os').system('touch PWNED')\n    def f(y",
    '0"), __import__("os").system("touch PWNED"), ("',
    "self",
    "torch",
    "getattr",
    "class",
    "__class__.__init__",
    "forward",
    "graph",
    "_modules",
    "../../PWNED",
    "a" * 400,
    ".".join("a" * 400),
    "слой",
    "a\x00b\x1b[31m",
)
"""Names that would run, shadow, reach out or break, were they used as they are."""


def step(operator: str, name: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(operator, inputs, [output], name=name, domain=domain, **attributes)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As input, output, node and constant, with a layer's ending and without."""
    monkeypatch.chdir(tmp_path)
    x = numbers(2, 3, 5, 5)
    nodes = [
        step("Conv", name, [name, name + ".weight"], name + "1"),
        step("Add", name, [name + "1", name + "2"], name + "3"),
    ]
    constants = {name + ".weight": numbers(4, 3, 2, 2), name + "2": numbers(1, 4, 4, 4)}
    model = made(nodes, {name: x}, [name + "3"], 17, **constants)
    net = loaded(model, tmp_path)
    given = torch.from_numpy(x)
    expected = nn.functional.conv2d(given, torch.from_numpy(constants[name + ".weight"])) + torch.from_numpy(
        constants[name + "2"]
    )
    with torch.no_grad():
        assert difference(net(given), (expected,)) <= 1e-6
    assert "PWNED" not in net.code
    kept = net.meta["file_names"]
    assert name + "2" in {*kept.values(), *net.state_dict()}
    chipfit.convert(net, "wtm2101", given)
    assert not list(tmp_path.glob("PWNED*"))


def test_layers_whose_names_lie_in_each_other(tmp_path: Path) -> None:
    nodes = [
        step("Conv", "one", ["x", "a.weight"], "y1"),
        step("Conv", "two", ["y1", "a.conv.weight"], "y2"),
        step("Add", "three", ["y2", "a.conv.weight.more"], "y3"),
    ]
    constants = {
        "a.weight": numbers(3, 3, 1, 1),
        "a.conv.weight": numbers(3, 3, 1, 1),
        "a.conv.weight.more": numbers(3, 5, 5),
    }
    net = loaded(made(nodes, numbers(2, 3, 5, 5), ["y3"], **constants), tmp_path)
    assert set(net.state_dict()) == {"a.weight", "two.weight", "unit_1"}
    assert net.meta["file_names"] == {"a": "one", "unit_1": "a.conv.weight.more"}


# --- what is not read


def test_all_that_is_not_read_is_listed_at_once(tmp_path: Path) -> None:
    nodes = [
        step("Relu", "fine", ["x"], "a"),
        step("TopK", "first", ["a", "k"], "b"),
        step("Conv", "second", ["b", "w"], "c", border="soft"),
        step("Resize", "third", ["c", "", "s"], "d", mode="cubic", antialias=1),
        step("Fancy", "fourth", ["d"], "e", domain="com.example"),
        step("QuantizeLinear", "fifth", ["e", "s"], "f"),
        step("Relu", "also fine", ["f"], "g"),
    ]
    model = made(nodes, numbers(1, 3, 8, 8), ["g"], 18, k=ints(2), w=numbers(3, 3, 1, 1), s=np.ones(4, np.float32))
    with pytest.raises(UnsupportedError) as caught:
        loaded(model, tmp_path)
    text = str(caught.value)
    assert "5 nodes cannot be read" in text
    for line in (
        "1. TopK 'first': this operator is not read",
        "2. Conv 'second': unknown attributes: border",
        "3. Resize 'third': antialias 1 is not read",
        "4. com.example.Fancy 'fourth': an operator of 'com.example'",
        "5. QuantizeLinear 'fifth': only float networks",
    ):
        assert line in text
    assert "fine" not in text


@pytest.mark.parametrize("opset", [8, 22])
def test_other_opsets(opset: int, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="opset 9 to 21"):
        loaded(made([node("Relu", "x")], numbers(1, 3), ["y"], opset), tmp_path)


def test_sizes_that_are_free(tmp_path: Path) -> None:
    model = made([step("Relu", "r", ["x"], "y")], numbers(1, 3, 8, 8), ["y"])
    for axis, name in ((0, "n"), (2, "height")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match=r"sizes besides the batch's are free.*height"):
        chipfit.load_onnx(path)
    assert chipfit.load_onnx(path, {"x": (1, 3, 6, 8)}).meta["shapes"] == {"x": (None, 3, 6, 8)}
    for wrong in ({"x": (1, 4, 6, 8)}, {"x": (1, 3, 6)}, {"x": (1, 3, -6, 8)}, {"z": (1,)}):
        with pytest.raises(FileFormatError):
            chipfit.load_onnx(path, wrong)


def test_a_batch_that_is_tied_is_said(tmp_path: Path) -> None:
    """A constant that differs along the batch cannot serve another one."""
    model = made([node("Concat", "x", "c", axis=1)], numbers(2, 3), ["y"], c=numbers(2, 1))
    with pytest.warns(ChipfitWarning, match="for the batch of the file only, 2: Concat 'a_Concat'"):
        net = loaded(model, tmp_path)
    assert net.meta["shapes"] == {"x": (2, 3)} and net(torch.zeros(2, 3)).shape == (2, 4)


def test_one_layer_called_twice_stays_one(tmp_path: Path) -> None:
    nodes = [step("Conv", "one", ["x", "w"], "a"), step("Conv", "two", ["a", "w"], "b")]
    net = loaded(made(nodes, numbers(1, 3, 4, 4), ["b"], w=numbers(3, 3, 1, 1)), tmp_path)
    assert len(list(net.parameters())) == 1


def test_a_bias_is_not_put_into_a_layer_that_others_read(tmp_path: Path) -> None:
    nodes = [
        step("MatMul", "m", ["x", "w"], "a"),
        step("Add", "p", ["a", "b"], "c"),
        step("Mul", "q", ["a", "c"], "d"),
    ]
    x, w, b = numbers(2, 3), numbers(3, 4), numbers(4)
    net = loaded(made(nodes, x, ["d"], w=w, b=b), tmp_path)
    with torch.no_grad():
        assert difference(net(torch.from_numpy(x)), ((x @ w) * (x @ w + b),)) <= 1e-6


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "onnx":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UnsupportedError, match=r"pip install 'chipfit\[export\]'"):
        chipfit.load_onnx(tmp_path / "model.onnx")


# --- other files


def outside(model: Any, path: Path, location: str, **more: str) -> Path:
    """The model with its constants in another file."""
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def with_weight() -> Any:
    return made([node("Conv", "x", "w")], numbers(1, 3, 4, 4), ["y"], w=numbers(2, 3, 1, 1))


def test_a_file_beside_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.data").write_bytes(b"....." + numbers(2, 3, 1, 1).tobytes())
    path = outside(with_weight(), tmp_path / "model.onnx", "model.data", offset="5", length="24")
    assert torch.equal(next(chipfit.load_onnx(path).parameters()), torch.from_numpy(numbers(2, 3, 1, 1)))


@pytest.mark.parametrize(
    "location, more",
    [
        ("../secret.bin", {}),
        ("sub/../../secret.bin", {}),
        ("link.bin", {}),
        ("missing.bin", {}),
        ("", {}),
        (".", {}),
        ("a\x00b", {}),
        ("short.bin", {}),
        ("long.bin", {"offset": "-4"}),
        ("long.bin", {"offset": "1000"}),
        ("long.bin", {"offset": "many"}),
        ("long.bin", {"length": "7"}),
    ],
)
def test_no_other_file_is_read(location: str, more: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in (tmp_path / "secret.bin", folder / "long.bin"):
        file.write_bytes(b"\0" * 100)
    (folder / "short.bin").write_bytes(b"\0" * 23)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    for place in (location, str(tmp_path / "secret.bin")):
        with pytest.raises(FileFormatError, match=r"model\.onnx, w: "):
            chipfit.load_onnx(outside(with_weight(), folder / "model.onnx", place, **more))


# --- damaged files


def damaged(content: bytes, seed: int) -> bytes:
    """Some bytes changed, most of them in the nodes, which come first; every seventh file is cut short."""
    rng = random.Random(seed)
    changed = bytearray(content)
    reach = len(changed) if seed % 3 == 0 else min(len(changed), 4000)
    for _ in range(rng.choice([1, 1, 3, 20])):
        changed[rng.randrange(reach)] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))]) if seed % 7 == 0 else bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["keyword", "lstm", "vit", "unet"])
def test_damaged_files_are_our_errors(kind: str, tmp_path: Path) -> None:
    net, x = built(kind)
    path = tmp_path / "model.onnx"
    torch.onnx.export(net, (x[:1],), path, dynamo=False, opset_version=17)
    content, refused = path.read_bytes(), 0
    for seed in range(120):
        path.write_bytes(damaged(content, seed))
        begun = time.perf_counter()
        try:
            chipfit.load_onnx(path)
        except ChipfitError as error:
            refused += bool(str(error))
        assert time.perf_counter() - begun < 3  # a second, on a machine that does nothing else
    assert refused > 30


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html>", b"{}", bytes(range(256)) * 4])
def test_no_onnx_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ChipfitError):
        chipfit.load_onnx(path)


@pytest.mark.parametrize(
    "nodes, constants",
    [
        ([node("Expand", "c", "s")], {"c": numbers(1), "s": ints(1 << 30, 1 << 30)}),
        ([node("ConstantOfShape", "s")], {"s": ints(1 << 40)}),
        ([node("Range", "a", "b", "d")], {"a": np.array(0), "b": np.array(1 << 60), "d": np.array(1)}),
        ([node("Tile", "c", "s")], {"c": numbers(1, 1), "s": ints(1 << 20, 1 << 20)}),
        ([node("Pad", "x", "s")], {"s": ints(0, 1 << 40, 0, 0)}),
        ([node("Resize", "x", "", "s")], {"s": np.array([1, 1e9], np.float32)}),
        ([node("MatMul", "a", "b")], {"a": numbers(1 << 14, 1), "b": numbers(1, 1 << 14)}),
    ],
)
def test_nothing_grows_without_bound(nodes: list[Any], constants: dict[str, Any], tmp_path: Path) -> None:
    begun = time.perf_counter()
    with pytest.raises(ChipfitError):
        loaded(made(nodes, numbers(1, 3), ["y"], 17, **constants), tmp_path)
    assert time.perf_counter() - begun < 3


def test_edges_that_do_not_fit_together(tmp_path: Path) -> None:
    x = numbers(1, 3)
    for nodes, outputs in (
        ([step("Relu", "r", ["nothing"], "y")], ["y"]),
        ([step("Relu", "r", ["x"], "x")], ["x"]),
        ([step("Relu", "r", ["x"], "y")], ["z"]),
        ([step("Relu", "r", ["x"], "y")], []),
        ([step("Relu", "r", ["b"], "y"), step("Relu", "s", ["y"], "b")], ["y"]),
        ([step("Add", "r", ["x", ""], "y")], ["y"]),
    ):
        with pytest.raises(FileFormatError):
            loaded(made(nodes, x, outputs), tmp_path)


# --- the command line


@pytest.mark.filterwarnings("ignore")
def test_commands_take_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, x = built("ds-cnn")
    path = tmp_path / "model.onnx"
    torch.onnx.export(net, (x[:1],), path, dynamo=False, opset_version=17)
    shape = ",".join(map(str, (1, *x.shape[1:])))
    assert main(["check", str(path), shape]) == 0
    assert "first.0" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "other.onnx"), shape]) != 0
    assert "no such file" in capsys.readouterr().err


def test_the_package_is_imported_when_a_file_is_read() -> None:
    """`import chipfit` and its rooms work without it."""
    code = "import chipfit.convert.onnx.load, sys; print('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
