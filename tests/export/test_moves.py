"""Borders and maxima of plain torch in the exports: equal codes, or a refusal that says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chipfit.chips.witmem.mapper.writer import mapper_files
from chipfit.errors import UnsupportedError
from chipfit.export.onnx.writer import onnx_model
from chipfit.program import lower, run
from witin_nn import HandleNegInType, WitinConv2d, WitinLayerConfig

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


def conv(inputs: int, outputs: int, kernel: int, **options: Any) -> WitinConv2d:
    scales = {"scale_x": 16, "scale_weight": 256, "scale_y": 16, "handle_neg_in": HandleNegInType.PN, **options}
    config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, **scales)
    return WitinConv2d(inputs, outputs, kernel, layer_config=config)


def between(function: Any) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(2, 3, 2), conv(3, 2, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.b(function(F.relu(self.a(x))))

    torch.manual_seed(0)
    return Net()


X = (torch.randn(120, 2, 5, 5, generator=torch.Generator().manual_seed(0)) * 3).clamp(-7.9, 7.9)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("pads", [(1, 0, 2, 1), (1, 1, 0, 0)])
def test_borders_in_onnx(mode: str, pads: tuple[int, ...], onnxruntime_levels: Any) -> None:
    program = lower(between(lambda x: F.pad(x, pads, mode)), X[:1])
    expected = run(program, X)
    for found in onnxruntime_levels(onnx_model(program).SerializeToString(), {program.inputs[0].name: X.numpy()}):
        np.testing.assert_array_equal(found[0], expected.numpy())


def test_the_compilers_convolution_takes_the_border() -> None:
    model, _, _ = mapper_files(lower(between(lambda x: F.pad(x, (1, 0, 2, 1))), X[:1]), X)
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    (pads,) = [list(attribute.ints) for attribute in last.attribute if attribute.name == "pads"]
    assert pads == [2, 1, 1, 0]  # top, left, bottom, right


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: F.pad(x, (1, 1), value=1.0), "padding of mode constant with 16; Conv pads with zeros"),
        (lambda x: F.pad(x, (1, 1, 0, 0), "reflect"), "padding of mode reflect"),
        (lambda x: F.relu(F.pad(x, (1, 1))), "padding that is not a convolution's own"),
        (lambda x: x.amax(1, keepdim=True).expand(-1, 3, -1, -1), "expand"),
        (lambda x: torch.cat([x.amax(1, keepdim=True)] * 3, 1), "Max as it stands here has no node"),
    ],
)
def test_what_the_compiler_cannot_do_is_refused(function: Any, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        mapper_files(lower(between(function), X[:1]), X)
