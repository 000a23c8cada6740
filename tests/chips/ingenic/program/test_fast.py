"""The fast path of Ingenic programs: fused steps and worst-case codes, equal to the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.program import ops as ingenic
from chipfit.chips.ingenic.program import reference as interpreter_ingenic
from chipfit.chips.ingenic.program.fast import tround_
from chipfit.program import FastProgram, Input, Node, Program, ValueType, lower, ops, run
from chipfit.program.types import VERSION

CODES = ValueType((2, 6, 6), 8, False, 255.0)
SUMS = ValueType((2, 6, 6), 24)
Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8, "auto_bitwidth": False}


def test_rounding_is_that_of_the_reference() -> None:
    v = torch.arange(0, 4096, 1 / 1024, dtype=torch.float32)
    end = (torch.arange(4096) + torch.tensor(0.501)).view(torch.int32)  # of each code's ties, and floats beside it
    near = torch.cat([(end + step).to(torch.int32).view(torch.float32) for step in range(-6, 7)])
    v = torch.cat([v, v + 0.5005, torch.linspace(0, 20, 400_001), near])
    assert torch.equal(tround_(v.clone()).long(), interpreter_ingenic.tround(v))


def program(
    finish: ingenic.Finish,
    pads: tuple[int, ...] = (1, 1, 1, 1),
    border: int = 0,
    gain: float = 1.0,
    slope: float = 0.25,
    twice: bool = False,
) -> Program:
    """Pixels, padding, a 3x3 sum, what turns it into codes, and a max pooling; `twice` reads the sum again."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "w": torch.randint(-127, 128, (4, 2, 3, 3), generator=generator),
        "scale": torch.tensor([1.0, 0.5, 2.0, 1.5]) / 5e3,
        "bias": torch.tensor([0.25, -0.5, 0.0, 1.0]),
        "mean": torch.tensor([0.5, -0.25, 0.0, 0.125]),
        "gain": torch.tensor([1.0, 1.0, gain, 1.0]),
        "shift": torch.tensor([0.0, 0.5, 0.25, -0.5]),
        "slope": torch.tensor([0.1, 0.2, slope, 0.3]),
    }
    pool = ops.MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False)
    nodes = [
        Node("q", ingenic.PixelCodes(255.0, 0, 255), ("x",), CODES),
        Node("pad", ops.Pad(pads, "constant", border), ("q",), CODES),
        Node("sum", ops.Accumulate("conv", "w", 255, (1, 1), (1, 1)), ("pad",), SUMS),
        Node("y", finish, ("sum",), CODES),
        Node("pool", pool, ("y",), CODES),
        Node("out", ops.Dequantise(), ("pool",), ValueType((4, 3, 3), None)),
    ]
    outputs = ["out"]
    if twice:
        nodes += [Node("y2", finish, ("sum",), CODES), Node("out2", ops.Dequantise(), ("y2",), ValueType(None, None))]
        outputs.append("out2")
    image = Input("x", ValueType((2, 6, 6), None))
    return Program(VERSION, "t40", tuple(nodes), (image,), tuple(outputs), tensors)


def finished(**parts: Any) -> ingenic.Finish:
    given = {
        "affine": ingenic.Affine("scale", "bias"),
        "norm": ingenic.Norm("mean", "gain", "shift"),
        "requantise": ingenic.Requantise("unsigned", 255, 6.0),
    }
    return ingenic.Finish(**{**given, **parts})


def steps(prepared: FastProgram) -> list[str]:
    return [name for name, _, _ in prepared._steps]


@pytest.mark.parametrize(
    ("given", "fused"),
    [
        (program(finished()), ["q", "pool", "out"]),
        (program(finished(affine=ingenic.Affine("scale", None), norm=None)), ["q", "pool", "out"]),
        (program(finished(requantise=None)), ["q", "pool", "out"]),
        (program(finished(activation=ingenic.Activation("leaky", "slope"))), ["q", "pool", "out"]),
        (program(finished(activation=ingenic.Activation("hsigmoid", None, 3.0, 6.0))), ["q", "pool", "out"]),
        # what does not rise with the sum is rounded before it is pooled
        (program(finished(activation=ingenic.Activation("leaky", "slope")), slope=-0.5), ["q", "y", "pool", "out"]),
        (program(finished(activation=ingenic.Activation("hswish", None, 3.0, 6.0))), ["q", "y", "pool", "out"]),
        (program(finished(), gain=-1.0), ["q", "y", "pool", "out"]),
        # a border that a convolution cannot add by itself
        (program(finished(), pads=(0, 2, 0, 2)), ["q", "pad", "pool", "out"]),
        (program(finished(), border=7), ["q", "pad", "pool", "out"]),
        (program(finished(), twice=True), ["q", "pad", "sum", "y", "pool", "out", "y2", "out2"]),
    ],
)
def test_fused_steps_equal_the_reference(given: Program, fused: list[str]) -> None:
    fast = FastProgram(given)
    assert steps(fast) == fused
    x = torch.randint(0, 256, (5, 2, 6, 6), generator=torch.Generator().manual_seed(1)) / 255
    kept = x.clone()
    for found, expected in zip(*(y if isinstance(y, tuple) else (y,) for y in (fast(x), run(given, x))), strict=True):
        assert torch.equal(found, expected)
        assert len(expected.unique()) > 10
    assert torch.equal(x, kept)


class Chain(nn.Module):
    """Preprocess, a convolution on pixels, and layers in a row."""

    def __init__(self, target: str, *layers: nn.Module) -> None:
        super().__init__()
        self.start = chips.Preprocess(0, 255.0, target)
        self.first = chips.Conv2D(3, 32, 1, 1, 1, first_layer=True, clip_max_value=3.0, target_device=target, **Q8)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        x = self.first(self.start(x))
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("target", ["T40", "Txx"])
@pytest.mark.parametrize("channels", [32, 128, 256])
def test_largest_codes_of_a_network_equal_the_reference(target: str, channels: int) -> None:
    """Weights and features near their largest code: sums of one piece and of several."""
    options: dict[str, Any] = {"padding": 1, "target_device": target, **Q8}
    fc = {k: v for k, v in Q8.items() if k != "auto_bitwidth"}
    layers = [
        chips.Conv2D(32, channels, clip_max_value=300.0, enable_batch_norm=True, **options),
        chips.Conv2D(channels, 32, clip_max_value=9.0 * channels, **options),
        chips.Maxpool2D(target_device=target),
        chips.Flatten([-1, 512], target_device=target),
        chips.FullConnected(512, 10, activation_fn=None, last_layer=True, target_device=target, **fc),
    ]
    torch.manual_seed(0)
    net = Chain(target, *layers).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.dim() > 1 and "first" in name:
                weight.fill_(1.0)
            elif weight.dim() > 1:
                weight.uniform_(0.8, 1.0).view(-1)[::97] *= -1
    x = torch.randint(200, 256, (3, 3, 8, 8)) / 255
    given = lower(net, x)
    found, expected = FastProgram(given)(x), run(given, x)
    assert torch.equal(found, expected)
    assert len(expected.unique()) == 30
    with torch.no_grad():
        assert torch.equal(net(x), expected)
