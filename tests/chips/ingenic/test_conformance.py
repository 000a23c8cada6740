"""The vendor's recorded numbers: kernels, operators, error probes and the operator x target table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chipfit.chips.ingenic import quantizers
from chipfit.errors import ChipfitError
from ingenic_magik_trainingkit.QuantizationTrainingPlugin.python import ops
from support.ingenic import replay

KERNELS = [case for case in replay.CASES["cases"] if case["level"] == "kernel"]
OPERATORS = [case for case in replay.CASES["cases"] if case["level"] == "op"]
PROBES = [probe for probe in replay.CASES["errors"] if probe["expect"] == "reject"]


TXX = ("Txx", "Xs1", "Xs2")


def code_step(bits, signed, target):
    if bits >= 32:
        return 0.0
    if not signed:
        return 1 / (2**bits - 1)
    return 2.0 ** (1 - bits) if target in TXX else 2 / (2**bits - 1)


def named(case):
    return case["id"]


def of(kind):
    return pytest.mark.parametrize("case", [case for case in KERNELS if case["op"] == kind], ids=named)


def test_nothing_is_missing():
    assert (len(KERNELS), len(OPERATORS), len(PROBES), len(replay.TARGETS)) == (95, 92, 28, 29)


@of("quantize_feature")
def test_feature(case):
    z, options, atol = replay.arrays(case), case["kwargs"], case["tolerance"]["atol"]
    x = torch.from_numpy(z["x"]).requires_grad_()
    y = quantizers.quantize_feature(
        x, options["output_bitwidth"], options["clip_min_value"], options["clip_max_value"], options["target_device"]
    )
    step = code_step(options["output_bitwidth"], options["clip_min_value"] < 0, options["target_device"])
    replay.assert_codes(y, z["out"], atol, step, case["tolerance"]["max_tie_mismatch_fraction"])
    y.backward(torch.from_numpy(z["gout"]))
    replay.assert_close(x.grad, z["gin"], 1e-5, atol)


@of("quantize_weight")
@pytest.mark.parametrize("sequential", [False, True])
def test_weight(case, sequential):
    z, options = replay.arrays(case), case["kwargs"]
    w = torch.from_numpy(z["weight"]).requires_grad_()
    bits, target = options["weight_bitwidth"], options["target_device"]
    q, scale = quantizers.quantize_weight(w, bits, options["weight_factor"], target, sequential=sequential)
    replay.assert_close(scale.expand(z["scale"].size), z["scale"].reshape(-1).astype(np.float32), 1e-5, 1e-9)
    lsb = z["scale"].reshape((-1,) + (1,) * (w.dim() - 1)).astype(np.float64)
    step = lsb * (1 if target in TXX else 2)
    atol, share = lsb * case["tolerance"]["atol_in_lsb"] + 1e-7, case["tolerance"]["max_tie_mismatch_fraction"]
    replay.assert_codes(q, z["weight_q"], atol, step, share)
    g = replay.upstream(case["id"], 0, w.shape)
    q.backward(g)
    assert torch.equal(w.grad, g)


@of("quantize_shortcut")
def test_shortcut(case):
    z, options = replay.arrays(case), case["kwargs"]
    a, b = torch.from_numpy(z["a"]), torch.from_numpy(z["b"])
    y = quantizers.shortcut(
        a, b, options["bits"], options["clip_max_value"], options["signed"], options["target_device"]
    )
    replay.assert_codes(y, z["out"], case["tolerance"]["atol"], 0.0, 0.0)


@of("lstm_cell_float")
def test_lstm_cell(case):
    z = replay.arrays(case)
    h, c = quantizers.lstm_cell(*(torch.from_numpy(z[key]) for key in ("x", "h", "c", "w", "b")))
    replay.assert_close(h, z["new_h"], 0.0, case["tolerance"]["atol"])
    replay.assert_close(c, z["new_c"], 0.0, case["tolerance"]["atol"])


def activation(text, target):
    name, _, argument = (text or "None").partition(":")
    if name == "None":
        return None
    values = [float(argument)] if name == "LeakyReLU" else [int(argument)] if argument else []
    return getattr(ops, name)(*values, target_device=target)


@pytest.mark.filterwarnings("ignore:RoIPooling reads every region")
@pytest.mark.parametrize("case", OPERATORS, ids=named)
def test_operator(case):
    z, extra, tolerance, name = replay.arrays(case), case["extra"], case["tolerance"], case["id"]
    options, target = dict(case["kwargs"]), case["kwargs"].get("target_device", "Txx")
    if "activation_fn" in options:
        options["activation_fn"] = activation(options["activation_fn"], target)
    module = getattr(ops, case["op"])(**options)
    assert sorted(module.state_dict()) == extra["state_dict_keys"]
    replay.fill(module, name)
    module.train(extra["mode"] == "train")

    leaves = [torch.from_numpy(z[f"in{i}"]) for i in range(len(extra["inputs"]))]
    for leaf in leaves:
        leaf.requires_grad_(leaf.is_floating_point())
    inputs = [
        leaf if extra["bare_input"] or "bit" not in given else (leaf, given["bit"], given["min"])
        for leaf, given in zip(leaves, extra["inputs"], strict=True)
    ]
    if extra["preprocess"]:
        inputs = [ops.Preprocess(*extra["preprocess"], target_device=target)(inputs[0])]
    more = [torch.from_numpy(z[key]) for key in sorted(z) if key.startswith("arg")]
    for _ in range(extra["steps"]):
        out = module(inputs if extra["list_input"] else inputs[0], *more)

    outs = replay.flatten(out)
    assert len(outs) == sum(key.startswith("out") for key in z)
    loss = 0.0
    for i, ((y, found), meta) in enumerate(zip(outs, extra["out_meta"] or [None] * len(outs), strict=True)):
        assert (found is None) == (meta is None)
        if meta:
            assert found[0] == meta[0]
            assert (found[1] < 0) == (meta[1] < 0)
        share = tolerance.get("max_lsb_mismatch_fraction", 0)
        replay.assert_codes(y, z[f"out{i}"], tolerance["out_atol"], 2 * tolerance.get("lsb", 0.0), share)
        if y.requires_grad:
            loss = loss + (y * replay.upstream(name, i, y.shape)).sum()
    gradients = [key for key in z if key.startswith(("gin", "gparam", "after:"))]
    if extra["mode"] == "train" and gradients:
        loss.backward()
        for key in gradients:
            check_gradient(key, z[key], leaves, module, tolerance)


def check_gradient(key, want, leaves, module, tolerance):
    head, _, tensor = key.partition(":")
    if tensor.endswith("num_batches_tracked"):
        return
    if head == "after":
        replay.assert_close(module.get_buffer(tensor), want, 1e-4, tolerance.get("buffer_atol", 1e-5))
        return
    got = (leaves[int(head[3:])] if head.startswith("gin") else module.get_parameter(tensor)).grad
    if head.startswith("gparam_sub"):
        got = got.reshape(-1)[:: int(head[10:])]
    elif head == "gparam_l2":
        got = got.double().norm().float().reshape(want.shape)
    if "grad_rel_l2" in tolerance:
        want = torch.from_numpy(want)
        limit = tolerance["grad_rel_l2"] * want.norm() + tolerance["grad_atol"] * want.numel() ** 0.5
        assert (got - want).norm() <= limit
    else:
        replay.assert_close(got, np.asarray(want, np.float32), tolerance["grad_rtol"], tolerance["grad_atol"])


def use(spec, name):
    module = getattr(ops, spec["op"])(**spec["kwargs"])
    return module(replay.decode(spec["call"], name)) if "call" in spec else module


@pytest.mark.parametrize("probe", PROBES, ids=named)
def test_wrong_use_is_refused(probe):
    use(probe["control"], probe["id"])
    with pytest.raises(ChipfitError) as error:
        use(probe["probe"], probe["id"])
    assert isinstance(error.value, ValueError)
    assert probe["probe"]["op"] in str(error.value)


@pytest.mark.parametrize(
    ("operator", "target"), [(name, target) for name, row in replay.TARGETS.items() for target in row["targets"]]
)
def test_targets(operator, target):
    want, options = replay.TARGETS[operator]["targets"][target], replay.TARGETS[operator]["kwargs"]
    if want == "reject":
        with pytest.raises(ValueError, match=rf"{operator}.*{target}.*T40"):
            getattr(ops, operator)(target_device=target, **options)
    else:
        getattr(ops, operator)(target_device=target, **options)
