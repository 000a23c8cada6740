"""Random GRU networks: training forward == reference == fast path, cells, stacks and both directions."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chipfit.chips.witmem.program.ops import Gru
from chipfit.program import lower, verify
from witin_nn import HandleNegInType, WitinGru, WitinGruCell, WitinLayerConfig, WitinLinear

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


def drawn_config(rng: random.Random, **options: Any) -> WitinLayerConfig:
    drawn = {
        "use_quantization": True,
        "use_auto_scale": False,
        "rounding": rng.choice(["witin_nn", "wtm2101"]),
        "scale_x": 2 ** rng.randint(3, 6),
        "scale_y": 2 ** rng.randint(2, 8),
        "scale_weight": 2 ** rng.randint(5, 8),
        "x_quant_bits": rng.choice([8, 9, 12]),
        "y_quant_bits": rng.choice([8, 8, 10]),
        "handle_neg_in": rng.choice([HandleNegInType.PN, HandleNegInType.Shift, HandleNegInType.FALSE]),
        "bias_row_N": rng.choice([1, 8]),
        "w_clip": rng.choice([None, 0.5]),
    }
    return WitinLayerConfig(1, **{**drawn, **options})


class Sequence(nn.Module):
    """A GRU over a sequence, the state of the last cells, and a classifier; perhaps time first inside."""

    def __init__(self, rng: random.Random, inputs: int) -> None:
        super().__init__()
        size, both, self.batch_first = rng.randint(1, 4), rng.random() < 0.4, rng.random() < 0.6
        options = {"num_layers": rng.randint(1, 2), "bias": rng.random() < 0.7, "batch_first": self.batch_first}
        configs = {"layer_config": drawn_config(rng), "hidden_config": rng.choice([None, drawn_config(rng)])}
        self.gru = WitinGru(inputs, size, bidirectional=both, **options, **configs)
        self.head = WitinLinear(size, 2, layer_config=drawn_config(rng))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x if self.batch_first else x.transpose(0, 1))
        return self.head(h[-1]), y if self.batch_first else y.transpose(0, 1)


class Loop(nn.Module):
    """A cell called at every step, from a given state or from none."""

    def __init__(self, rng: random.Random, inputs: int) -> None:
        super().__init__()
        self.cell = WitinGruCell(inputs, inputs, layer_config=drawn_config(rng))
        self.given = rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        h = self.cell(x[:, 0], x[:, 1]) if self.given else self.cell(x[:, 0])
        for step in range(1, 3):
            h = self.cell(x[:, step], h)
        return h


def filled(net: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not name.endswith("io_max"):
                parameter.copy_((torch.randn(parameter.shape, generator=generator) * 512).round() / 512)
    return net


@pytest.mark.slow
@given(st.integers(0, 2**40))
@settings(max_examples=80, deadline=None)
def test_gru_networks(seed: int) -> None:
    rng = random.Random(seed)
    inputs = rng.randint(1, 4)
    net = filled(rng.choice([Sequence, Sequence, Loop])(rng, inputs), seed)
    x = torch.randn(2, 5, inputs, generator=torch.Generator().manual_seed(seed)) * rng.choice([0.5, 4.0])
    program = lower(net, x, rounding=rng.choice(["witin_nn", "wtm2101", None]))
    proof = verify(net, program, [x, torch.flip(x, (0, 1)).repeat(2, 1, 1)])
    assert proof.equal, str(proof)
    assert proof.samples == 6
    assert sum(isinstance(node.op, Gru) for node in program.nodes) >= 1
