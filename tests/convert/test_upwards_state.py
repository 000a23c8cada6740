"""Everything that a result needs is in the network: saved, loaded, pickled, compiled or under autocast, equal codes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import chipfit
from chipfit.chips import ingenic as ops
from chipfit.errors import ChipfitWarning
from support.conversion import CHIPS, quantised


class Net(nn.Module):
    """A norm, a residual sum, a concatenation, a gate and a head, small weights among them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.a, self.b = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(64, 10)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.a.weight.mul_(1e-4)
            self.head.weight.mul_(1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem((x - 0.5) / 0.5)))
        y = F.relu(x + F.relu6(self.a(x)))
        y = torch.cat([y, F.hardsigmoid(self.b(x)) * x], 1)
        return self.head(y.mean((2, 3)))


def images(count: int = 8) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("target", CHIPS)
@pytest.mark.parametrize("mode", ["quant", "float"])
def test_a_state_dict_is_all_that_a_result_needs(target: str, mode: str, tmp_path: Path) -> None:
    """Row 10: all keys matched, and the accuracy was .102 instead of .991."""
    x = images()
    net = chipfit.set_mode(quantised(Net(), target, x), mode)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, tmp_path / "state.safetensors")
    again = chipfit.convert(Net(seed=7).eval(), target, x)
    assert str(again.load_state_dict(load_file(tmp_path / "state.safetensors"))) == "<All keys matched successfully>"
    chipfit.set_mode(again, mode)
    assert torch.equal(again.eval()(x), net(x))
    if mode == "quant":
        a, b = (chipfit.lower(model, x[:1]) for model in (net, again))
        assert a.nodes == b.nodes
        assert all(torch.equal(value, b.tensors[name]) for name, value in a.tensors.items())


@pytest.mark.parametrize("target", ["t40", "txx"])
def test_a_state_without_scales_is_said(target: str) -> None:
    """As earlier versions wrote it."""
    net = quantised(Net(), target, images())
    old = {name: value for name, value in net.state_dict().items() if ".scales." not in name}
    with pytest.warns(ChipfitWarning, match="stem: the state has no clips and factors"):
        net.load_state_dict(old)


def test_a_state_says_which_weights_have_the_nearest_codes_and_what_was_clipped() -> None:
    x = images()
    near = chipfit.set_mode(quantised(Net(), "txx", x, weight_bits=4), "float")
    vendor = chipfit.convert(Net(), "txx", x, weight_bits=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chipfit.calibrate(vendor, [x], codes="vendor")
    state, plain = near.state_dict(), vendor.state_dict()
    assert state["stem.scales.nearest"] == 1
    assert any(name.endswith(".scales.excess") for name in state)
    assert not any(name.endswith((".scales.nearest", ".scales.excess")) for name in plain)
    again = chipfit.set_mode(copy.deepcopy(near), "float")
    for given, wanted in ((plain, vendor), (state, near)):  # each takes the place of the other
        again.load_state_dict(given)
        assert torch.equal(again.eval()(x), chipfit.set_mode(wanted, "float").eval()(x))
    assert set(again.state_dict()) == set(state)


def test_drop_in_layers_keep_the_vendors_names() -> None:
    options: dict[str, Any] = {"quantize": True, "weight_bitwidth": 8, "output_bitwidth": 8, "target_device": "T40"}
    net = nn.Sequential(ops.Conv2D(32, 32, enable_batch_norm=True, **options), ops.Shortcut(32, target_device="T40"))
    assert sorted(net.state_dict()) == sorted(
        ["0.Conv2d.weight", "0.Conv2d.bias"]
        + [f"0.BatchNorm2d.batch_norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        + ["0.BatchNorm2d.batch_norm.num_batches_tracked"]
    )


_FRESH = """
import pickle, sys, torch, chipfit
x, y = torch.load(sys.argv[1])
for net in (torch.load(sys.argv[2], weights_only=False), pickle.load(open(sys.argv[3], "rb"))):
    assert torch.equal(net(x), y), "other values"
    assert chipfit.verify(net, chipfit.lower(net, x[:1]), [x]).equal, "other codes"
    assert net.meta["on_cpu"] == {}
    print(type(net).__mro__[1].__name__)
"""


@pytest.mark.parametrize("target", CHIPS)
def test_a_network_is_pickled_into_a_fresh_process(target: str, tmp_path: Path) -> None:
    """Neither torch.load nor pickle could build it anew; the classes of the user's are not there."""
    x = images()
    net = quantised(Net(), target, x)
    torch.save((x, net(x).detach()), tmp_path / "data.pt")
    torch.save(net, tmp_path / "net.pt")
    with (tmp_path / "net.pkl").open("wb") as file:
        pickle.dump(net, file)
    paths = [str(tmp_path / name) for name in ("data.pt", "net.pt", "net.pkl")]
    result = subprocess.run([sys.executable, "-c", _FRESH, *paths], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["Converted", "Converted"]


@pytest.mark.parametrize("target", CHIPS)
def test_an_untrained_network_is_pickled_too(target: str) -> None:
    net = chipfit.convert(Net(), target, images()).train()
    again = pickle.loads(pickle.dumps(net))
    assert again.training
    assert again.meta == net.meta
    assert "forward" in repr(again) or "Net" in repr(again)
    chipfit.calibrate(again, [images()])


@pytest.mark.parametrize("target", CHIPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_code(target: str, dtype: torch.dtype) -> None:
    """Row 9: bfloat16 was off by up to 0.054, float16 gave NaN."""
    net, x = quantised(Net(), target, images()), images()
    for training in (False, True):
        state = copy.deepcopy(net)
        plain = copy.deepcopy(state).train(training)(x)
        with torch.autocast("cpu", dtype):
            cast = copy.deepcopy(state).train(training)(x)
        assert torch.equal(cast.float(), plain)


@pytest.mark.parametrize("target", CHIPS)
@pytest.mark.parametrize("bits", [8, 4])
def test_compiled_equals_eager(target: str, bits: int) -> None:
    """Row 9: a compiled graph summed the statistics of clipped weights otherwise, and shifted a code."""
    options: dict[str, Any] = {} if target == "wtm2101" else {"bits": bits, "weight_bits": bits}
    if target == "txx" and bits == 4:
        options = {"weight_bits": 4}
    net, x = quantised(Net(), target, images(), **options), images()
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(copy.deepcopy(net), backend="eager")
        assert torch.equal(compiled.eval()(x), net.eval()(x))
        a, b = compiled.train()(x), net.train()(x)
    assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for (name, left), right in zip(compiled.named_parameters(), net.parameters(), strict=True):
        if right.grad is not None:
            torch.testing.assert_close(left.grad, right.grad, rtol=1e-5, atol=1e-6, msg=name)
