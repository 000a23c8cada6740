"""The recorded cases of the vendor's array layers, and how one is replayed on ours."""

import json
from pathlib import Path

import numpy as np
import torch

import witin_nn

DATA = Path(__file__).parents[2] / "data" / "witmem_array"
BOOK = json.loads((DATA / "cases.json").read_text(encoding="utf-8"))


def arrays_of(file):
    with np.load(DATA / file) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def layer_of(op, ctor, options, arrays, io_max=None):
    """A layer of the vendor's API with recorded parameters."""
    config = witin_nn.LayerConfigFactory.get_default_config()
    kinds = {"handle_neg_in": witin_nn.HandleNegInType, "noise_model": witin_nn.NoiseModel, "bias_d": torch.tensor}
    for name, value in options.items():
        if name in kinds:
            value = kinds[name][value] if name != "bias_d" else torch.tensor(value)
        setattr(config, name, value)
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in ctor.items() if name != "args"}
    sizes = [tuple(value) if isinstance(value, list) else value for value in ctor["args"]]
    layer = getattr(witin_nn, op)(*sizes, layer_config=config, **plain)
    state = layer.state_dict()
    state["weight"] = arrays["weight"].view_as(layer.weight)
    if "bias" in arrays:
        state["bias"] = arrays["bias"]
    for name, value in (io_max or {}).items():
        state[f"autoscale_{name}_obj.io_max"] = torch.tensor(value)
    layer.load_state_dict(state)
    return layer


def assert_close(got, want, relative):
    assert got is not None
    assert (got - want).abs().max() <= relative * want.abs().max() + 1e-6


def replayed(case):
    """Each forward of a case, its gradients computed: step, layer, arrays, output, gradients that were recorded."""
    arrays = arrays_of(case["file"])
    layer = layer_of(case["op"], case["ctor"], case["config"], arrays, case["load_io_max"])
    for step in case["steps"]:
        if "call" in step:
            layer.train(step["call"] == "train()")
            continue
        i = step["forward"]
        x = arrays[f"x{i}"].clone().requires_grad_()
        y, gradients = layer(x), {}
        if step["grads"]:
            layer.zero_grad(set_to_none=True)
            y.backward(arrays[f"up{i}"])
            found = {f"gx{i}": x.grad, f"gw{i}": layer.weight.grad, f"gb{i}": layer.bias.grad}
            gradients = {name: grad for name, grad in found.items() if name in arrays}
            assert list(gradients)[:2] == [f"gx{i}", f"gw{i}"]
        yield step, layer, arrays, y, gradients
