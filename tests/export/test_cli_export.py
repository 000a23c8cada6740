"""The command that writes files, for a converted Ingenic network: every format that it has, on disk and checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import chipfit
from chipfit.cli import main
from chipfit.export import check_magik, verify_golden
from chipfit.fit.data import digits

NETWORK = """
import torch
from torch import nn

import chipfit
from chipfit.fit.data import digits

def network():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(128, 10))
    images = digits(seed=0)[1].tensors[0][:64]
    net = chipfit.convert(plain.eval(), chipfit.chip("t40"), images)
    chipfit.calibrate(net, [images])
    return net
"""


def test_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cli_export_net.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from cli_export_net import network  # type: ignore[import-not-found]  # written above

    images = digits(seed=0)[1].tensors[0]
    program = chipfit.lower(chipfit.set_mode(network(), "quant"), images[:1])
    chipfit.save_program("program", program)
    words = ["export", "program", "--out", "files", "--samples", "8", "--formats", "[onnx, golden, magik]"]
    assert main(words) == 2
    assert "format 'magik' needs the network" in capsys.readouterr().err
    assert main([*words, "--model", "cli_export_net:network"]) == 0
    shown = capsys.readouterr().out
    assert "files/model.onnx" in shown and "files/magik/model.onnx" in shown and "files/golden: " in shown
    assert verify_golden(tmp_path / "files" / "golden", program)
    assert check_magik(tmp_path / "files" / "magik" / "model.onnx")["QuantizeConv2DInference"] == 1
    onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    session = onnxruntime.InferenceSession("files/model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.equal(torch.from_numpy(got), chipfit.program.run(program, images))
