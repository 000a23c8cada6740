from __future__ import annotations

import dataclasses
import sys

import onnx
import pytest
import torch

from chipfit.errors import InvalidValueError, UnknownOptionError, UnsupportedError
from chipfit.export import check_mapper, export, verify_golden


def test_all_formats(two_layers, tmp_path):
    program, samples = two_layers(), torch.rand(100, 6) * 15
    files = export(program, tmp_path, ["onnx", "golden", "witin_mapper", "mapping"], samples=samples)
    present = {path for path in tmp_path.rglob("*") if path.is_file()}
    sums = {tmp_path / "SHA256SUMS", tmp_path / "witin_mapper" / "SHA256SUMS"}
    assert set(files) == present - sums and sums < present
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)
    assert verify_golden(tmp_path / "golden", program) == 100 * 19
    assert check_mapper(tmp_path / "witin_mapper" / "model.onnx")["Gemm"] == 2


def test_unknown_format_writes_nothing(two_layers, tmp_path):
    with pytest.raises(UnknownOptionError, match="Did you mean 'golden'"):
        export(two_layers(), tmp_path, ["onnx", "goldn"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "witin_mapper"])
def test_without_the_onnx_package(two_layers, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'chipfit\[export\]'"):
        export(two_layers(), tmp_path, name, samples=torch.rand(100, 6))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["golden", "witin_mapper"])
def test_formats_that_need_samples(two_layers, tmp_path, name):
    with pytest.raises(InvalidValueError, match="samples"):
        export(two_layers(), tmp_path, name)


@pytest.mark.parametrize("name", ["witin_mapper", "mapping"])
def test_formats_of_another_chip(two_layers, tmp_path, name):
    program = dataclasses.replace(two_layers(), chip="t40")
    with pytest.raises(UnsupportedError, match="t40"):
        export(program, tmp_path, name, samples=torch.rand(100, 6))
