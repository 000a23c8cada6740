"""Recorded outputs, gradients, statistics and noise of the vendor's array layers, replayed on ours."""

import math

import pytest
import torch

import witin_nn
from support.witmem.recorded import BOOK, arrays_of, assert_close, layer_of, replayed

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


@pytest.mark.parametrize("case", BOOK["cases"], ids=[case["id"] for case in BOOK["cases"]])
def test_recorded_case(case):
    options = case["config"]
    quantised = options.get("use_quantization", True)
    for step, layer, arrays, y, gradients in replayed(case):
        want = arrays[f"y{step['forward']}"]
        assert y.shape == want.shape
        if quantised:
            # float32 division by a scale that is no power of two may end one ulp apart; codes may not differ
            finest = max(float(options.get("scale_y", 1)), layer.autoscale_y_obj.scale)
            assert ((y - want).abs() * finest).max() <= 0.01
        else:
            torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
        if quantised and options.get("use_auto_scale"):
            seen = {name: layer.get_parameter(f"autoscale_{name}_obj.io_max").item() for name in step["io_max"]}
            assert seen == pytest.approx(step["io_max"], rel=1e-5)
        for name, got in gradients.items():
            assert_close(got, arrays[name], 1e-4 if quantised else 1e-5)
    if "weight_after" in arrays:
        torch.testing.assert_close(layer.weight.detach(), arrays["weight_after"], rtol=0, atol=1e-6)


NOISE = [case for case in BOOK["noise"] if case["id"] != "noise_8bit_lsb"]
LSB = next(case for case in BOOK["noise"] if case["id"] == "noise_8bit_lsb")


@pytest.mark.parametrize("case", NOISE, ids=[case["id"] for case in NOISE])
def test_recorded_noise(case):
    """Deviation and mean of the error in accumulator codes: with all scales 1 the output is the accumulator."""
    variant, arrays = case.get("kwargs", {}), arrays_of("noise_layer.npz")
    x, bias = arrays[case.get("x_array", "x")], variant.get("bias", True)
    outputs, inputs = arrays["weight"].shape
    options = {
        "use_quantization": True,
        "use_auto_scale": False,
        "y_quant_bits": 24,
        "x_quant_bits": variant.get("xb", 8),
        "bias_row_N": variant.get("N", case.get("bias_row_N", 8)),
        "handle_neg_in": variant.get("neg", case.get("handle_neg_in", "FALSE")),
        "shift_num": 0.0,
    }
    parameters = {"weight": arrays["weight"]} | ({"bias": arrays["bias_units"] * 128} if bias else {})
    conv = variant.get("kind") == "conv2d"
    op, ctor = ("WitinConv2d", [inputs, outputs, 1]) if conv else ("WitinLinear", [inputs, outputs])
    noisy, clean = (
        layer_of(op, {"args": ctor, "bias": bias}, options | {"noise_level": level}, parameters)
        for level in (case["noise_level"], 0)
    )
    noisy.train(not variant.get("eval_", False))
    x = x.view(*x.shape, 1, 1) if conv else x
    torch.manual_seed(20)
    with torch.no_grad():
        reference = clean(x)
        errors = torch.stack([noisy(x) - reference for _ in range(case["n_calls"])]).reshape(
            case["n_calls"], len(x), outputs
        )
    for row in case["rows"]:
        error = errors[:, row["row"]]
        assert error.std().item() == pytest.approx(row["std"], rel=0.08), row["row"]
        assert error.std().item() == pytest.approx(row["predicted_std"], rel=0.08), row["row"]
        assert abs(error.mean().item()) < 5 * row["std"] / math.sqrt(error.numel())


@pytest.mark.parametrize("entry", LSB["per_level"], ids=[f"level{e['noise_level']}" for e in LSB["per_level"]])
def test_recorded_noise_after_requantisation(entry):
    arrays = arrays_of("noise_8bit_x.npz")
    parameters = {"weight": arrays["weight"], "bias": torch.zeros(len(arrays["weight"]))}
    ctor = {"args": list(reversed(arrays["weight"].shape))}
    noisy, clean = (
        layer_of("WitinLinear", ctor, LSB["config"] | {"noise_level": level}, parameters)
        for level in (entry["noise_level"], 0)
    )
    torch.manual_seed(7)
    with torch.no_grad():
        reference = clean(arrays["x"])
        errors = torch.stack([noisy(arrays["x"]) - reference for _ in range(100)])
    assert errors.std().item() == pytest.approx(entry["std"], rel=0.08)


@pytest.mark.parametrize("entry", BOOK["config"], ids=[f"{e['attribute']}={e['value']}" for e in BOOK["config"]])
def test_recorded_setter(entry):
    config = witin_nn.LayerConfigFactory.get_default_config()
    if entry["result"] == "accepted":
        setattr(config, entry["attribute"], entry["value"])
    else:
        with pytest.raises(AssertionError):
            setattr(config, entry["attribute"], entry["value"])
