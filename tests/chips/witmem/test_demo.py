"""The demo end to end, small: what it saves, and that the quality holds."""

import json
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

import chipfit
from chipfit.chips.witmem.demo import cnn, run
from chipfit.cli import main
from chipfit.errors import InvalidValueError
from chipfit.files import load_model
from chipfit.fit.data import digits
from chipfit.fit.train import Stage


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    console = Console(record=True, width=100, force_terminal=False)
    figures = run(out, epochs=(12, 2, 12), chips=5, qat="always", console=console)
    return out, figures, console.export_text()


@pytest.mark.slow
def test_saves_everything(demo):
    out, figures, _ = demo
    names = {"float.safetensors", "qat.safetensors", "nat.safetensors", "figures.json", "tables.svg", "program"}
    names.add("SHA256SUMS")
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "figures.json").read_text()) == json.loads(json.dumps(figures))


@pytest.mark.slow
def test_figures_hold(demo):
    """Loose floors for a fifth of the epochs; the full run's figures are in docs/design.md."""
    matrix = demo[1]["matrix"]
    assert matrix["float"]["float"]["metric"] >= 0.96
    assert abs(matrix["QAT"]["quant"]["metric"] - matrix["QAT"]["float"]["metric"]) <= 0.01
    assert matrix["NAT"]["noise_4"]["metric"] >= 0.96
    assert matrix["NAT"]["noise_9"]["worst"] >= 0.90
    assert matrix["NAT"]["noise_9"]["worst"] <= matrix["NAT"]["noise_9"]["metric"]


@pytest.mark.slow
def test_saved_network_is_the_evaluated_one(demo):
    out, figures, _ = demo
    net = load_model(out / "nat.safetensors", cnn(8)).eval()
    x, target = digits(0)[1].tensors
    for mode, column in (("float", "float"), ("quant", "quant")):
        chipfit.set_mode(net, mode)
        with torch.no_grad():
            share = (net(x).argmax(1) == target).float().mean().item()
        assert share == pytest.approx(figures["matrix"]["NAT"][column]["metric"])


@pytest.mark.slow
def test_program_is_proven_equal(demo):
    _, figures, text = demo
    assert figures["proof"]["equal"]
    assert figures["proof"]["samples"] == 450
    assert set(figures["proof"]["codes"]) == {"0", "2", "5", "9", "output"}
    assert "all equal" in text


@pytest.mark.slow
def test_command_line_on_a_program(demo, tmp_path, capsys):
    out = demo[0]
    program, model = str(out / "program"), "chipfit.chips.witmem.demo:digits_cnn"
    given = [model, "--samples", "20"]
    assert main(["verify", program, *given, "--weights", str(out / "nat.safetensors")]) == 0
    assert "all equal" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", program, *given, "--weights", str(out / "float.safetensors")]) == 2
    assert "ProofError" in capsys.readouterr().err
    assert main(["verify", program, "chipfit.nothing:here"]) == 2
    assert main(["certify", program]) == 0
    assert "float32" in capsys.readouterr().out
    formats = ["--formats", "[onnx, golden, mapping]", "--samples", "3"]
    assert main(["export", program, "--out", str(tmp_path / "files"), *formats]) == 0
    assert {"model.onnx", "golden", "mapping.svg"} <= {path.name for path in (tmp_path / "files").iterdir()}
    assert main(["export", program, "--formats", "[onxn]"]) == 2
    assert "Did you mean 'onnx'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_layer_figures(demo):
    layers = demo[1]["layers"]
    assert [layer["layer"] for layer in layers] == ["0", "2", "5", "9"]
    for layer in layers:
        scales = layer["scales"]
        assert layer["g"] == scales["x"] * scales["weight"] / scales["y"]
        assert 0 <= layer["saturation"]["y"] < 5


@pytest.mark.slow
def test_prints_the_manuals_matrix(demo):
    text = demo[2]
    for label in ("Lf1", "Pf2", "Pf3", "Lq1", "Pq3", "Ln2", "Pn3", "worst", "saturated"):
        assert label in text


@pytest.mark.slow
def test_qat_is_skipped_where_ptq_is_good_enough(tmp_path):
    figures = run(tmp_path, epochs=(12, 1, 1), chips=1, console=Console(quiet=True))
    lost = figures["matrix"]["float"]["float"]["metric"] - figures["matrix"]["float"]["quant"]["metric"]
    assert figures["qat"].startswith("skipped") == (lost <= 0.001)


def test_command_line(tmp_path, capsys):
    assert main(["chips"]) == 0
    assert "wtm2101" in capsys.readouterr().out
    assert main(["demo", "--chip", "wtm2110", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'wtm2101'" in " ".join(capsys.readouterr().err.split())
    assert main(["demo", "--data", "mnist", "--out", str(tmp_path)]) == 2
    assert "--root" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--no-such-option"])
    assert stopped.value.code != 0
    assert not list(tmp_path.iterdir())


def small_plain_network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3))


def test_command_line_checks_a_network(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "plain_networks", sys.modules[__name__])
    assert main(["check", "plain_networks:small_plain_network", "[1, 1, 8, 8]"]) == 0
    assert "100.0 % of" in capsys.readouterr().out
    assert main(["check", "plain_networks:small_plain_network", "[1, 1, 8, 8]", "--chip", "wtm2111"]) == 2
    assert "Did you mean 'wtm2101'" in " ".join(capsys.readouterr().err.split())
    assert main(["check", "chipfit.chips.witmem.demo:digits_cnn", "[1, 1, 8, 8]"]) == 2
    assert "has a chip's layers already" in " ".join(capsys.readouterr().err.split())


def test_command_line_takes_a_yaml_file(tmp_path):
    settings = tmp_path / "demo.yaml"
    settings.write_text(f"out: {tmp_path / 'from_yaml'}\nepochs: [1, 1, 1]\nchips: 2\nseed: 5\n")
    assert main(["demo", "--config", str(settings), "--chips", "1"]) == 0
    figures = json.loads((tmp_path / "from_yaml" / "figures.json").read_text())
    assert (figures["seed"], figures["epochs"]) == (5, [1, 1, 1])
    assert len(figures["matrix"]["NAT"]["noise_4"]["per_chip"]["metrics"]) == 1


def test_stage_errors():
    with pytest.raises(InvalidValueError, match="needs epochs"):
        Stage("QAT", "quant", 0, 1e-3)
    with pytest.raises(InvalidValueError, match="share"):
        Stage("NAT", "nat", 1, 1e-3, level=4, ramp=2)
