"""What `lower` accepts, what it refuses and how it says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit import set_mode
from chipfit.chips.witmem.program.ops import Array, Quantise, Rescale, SumPool, arrays
from chipfit.errors import NonFiniteError, ShapeError, UnknownOptionError, UnsupportedError
from chipfit.program import lower, run, verify
from witin_nn import (
    HandleNegInType,
    WitinBatchNorm2d,
    WitinConv2d,
    WitinConvTranspose2d,
    WitinElementAdd,
    WitinLayerConfig,
    WitinLinear,
    WitinMean,
)

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
OPTIONS = {"use_quantization": True, "use_auto_scale": False, "scale_x": 32, "scale_weight": 64, "scale_y": 16}


def config(**options: Any) -> WitinLayerConfig:
    return WitinLayerConfig(1, **{**OPTIONS, **options})


def linear(inputs: int = 4, outputs: int = 4, **options: Any) -> WitinLinear:
    return WitinLinear(inputs, outputs, layer_config=config(**options))


class Forward(nn.Module):
    """A forward around layers."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def problems(net: nn.Module, *example: Tensor) -> list[str]:
    with pytest.raises(UnsupportedError) as caught:
        lower(net, example)
    head, *rest = str(caught.value).splitlines()
    assert head.endswith(f"{len(rest)} call(s) cannot be lowered:")
    return [line.strip() for line in rest]


def test_every_problem_is_listed_with_its_node_layer_and_reason() -> None:
    net = Forward(
        lambda s, x: s.c(torch.sigmoid(s.b(s.plain(s.a(x)))) + 1.0),
        a=linear(scale_x=33),
        plain=nn.Linear(4, 4),
        b=linear(use_quantization=False),
        c=linear(scale_y=0.3),
    )
    listed = problems(net, torch.zeros(1, 4))
    assert len(listed) == 6
    assert listed[0] == "a (layer a): scale_x is no power of two, and the chip only shifts; got 33; allowed: 32 or 64"
    assert listed[1].startswith("plain (layer plain): Linear has no integer form")
    assert listed[2].startswith("b (layer b): the layer is in mode 'float'")
    assert listed[3].startswith("sigmoid: sigmoid has no integer form. Use WitinSigmoid")
    assert listed[4].startswith("add: add has no integer form. Use WitinElementAdd")
    assert listed[5].startswith("c (layer c): scale_y is no power of two") and "0.25 or 0.5" in listed[5]


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda s, x: F.avg_pool2d(s.conv(x), 3), "no power of two.*got 9.*WitinMean"),
        (lambda s, x: F.adaptive_avg_pool2d(s.conv(x), 4), "unequal windows"),
        (lambda s, x: F.avg_pool2d(s.conv(x), 2, padding=1), "over padding"),
        (lambda s, x: s.conv(x).mean(0), "mean over the batch"),
        (lambda s, x: s.conv(x)[:1], "a choice from the batch"),
        (lambda s, x: torch.cat([s.conv(x), s.conv(x)], 0), "concatenation along the batch"),
        (lambda s, x: torch.cat([s.conv(x), x.expand(-1, 2, -1, -1)], 1), "expand has no integer form"),
        (lambda s, x: torch.cat([s.conv(x), x], 1), "real numbers and codes meet"),
        (lambda s, x: F.hardtanh(s.conv(x), -0.3, 0.3), "no code of the tensor's grid"),
        (lambda s, x: F.max_pool2d(s.conv(x), 2, return_indices=True)[0], "max_pool2d"),
        (lambda s, x: s.conv(x) * 2, "mul has no integer form"),
        (lambda s, x: F.log_softmax(s.conv(x), 1), "Leave it to the code that reads the outputs"),
        (lambda s, x: s.conv(x).masked_fill(x > 0, 0.0), "masked_fill has no integer form"),
        (lambda s, x: s.bn(s.conv(x)), "depends on the other samples"),
        (lambda s, x: s.conv(x.squeeze(0)), "unbatched|twice its batch"),
    ],
)
def test_what_codes_cannot_do_is_refused(forward: Any, said: str) -> None:
    layers = {
        "conv": WitinConv2d(1, 2, 1, layer_config=config()),
        "bn": WitinBatchNorm2d(2, track_running_stats=False, layer_config=config()),
    }
    with pytest.raises(UnsupportedError, match=said):
        lower(Forward(forward, **layers), torch.zeros(1, 1, 6, 6))


def test_data_dependent_networks_cannot_be_traced() -> None:
    net = Forward(lambda s, x: s.a(x) if x.sum() > 0 else x, a=linear())
    with pytest.raises(UnsupportedError, match="cannot be traced"):
        lower(net, torch.zeros(1, 4))


def test_a_fixed_batch_size_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="twice its batch"):
        lower(Forward(lambda s, x: s.a(x.view(3, 2, 2).flatten(1)), a=linear()), torch.zeros(3, 4))


def test_examples_of_other_types_are_refused() -> None:
    with pytest.raises(ShapeError, match="float32"):
        lower(linear().double(), torch.zeros(1, 4).double())
    with pytest.raises(ShapeError, match="float32"):
        lower(linear(), [1.0])
    with pytest.raises(UnknownOptionError, match="unknown rounding rule"):
        lower(linear(), torch.zeros(1, 4), rounding="up")
    with pytest.raises(UnsupportedError, match="no chip layers"):
        lower(nn.Linear(2, 2), torch.zeros(1, 2))


def test_one_layer_is_a_network() -> None:
    layer = linear()
    program = lower(layer, torch.zeros(1, 4))
    assert [node.name for node in program.nodes] == ["WitinLinear.input", "WitinLinear", "output"]
    assert verify(layer, program, [torch.randn(9, 4)]).codes == {"WitinLinear": 36, "output": 36}


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(linear(use_auto_scale=True), linear(use_auto_scale=True)).train()
    set_mode(net, "nat", level=4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    scales = [layer.scales_in_force() for layer in net]
    program = lower(net, torch.zeros(2, 4))
    verify(net, program, [torch.randn(3, 4)])
    assert net.training and all(layer.training for layer in net)
    assert [layer.mode for layer in net] == ["nat", "nat"] and net[0].noise_level == 4
    assert [layer.rounding for layer in net] == ["witin_nn", "witin_nn"]
    assert [layer.scales_in_force() for layer in net] == scales
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_rounding_is_the_silicons_unless_asked_otherwise() -> None:
    net = nn.Sequential(linear(), linear(rounding="wtm2101"))

    def rules(**options: Any) -> list[str]:
        return [op.rounding for _, _, op in arrays(lower(net, torch.zeros(1, 4), **options))]

    assert rules() == ["wtm2101", "wtm2101"]
    assert rules(rounding="witin_nn") == ["witin_nn", "witin_nn"]
    assert rules(rounding=None) == ["witin_nn", "wtm2101"]


def test_grids_between_layers() -> None:
    """Equal grids need no node; others one Rescale, and two readers with different grids one each."""
    same = lower(nn.Sequential(linear(scale_y=32), nn.ReLU(), linear()), torch.zeros(1, 4))
    assert [type(node.op).__name__ for node in same.nodes] == ["Quantise", "Array", "Relu", "Array", "Dequantise"]
    coarser = lower(nn.Sequential(linear(), linear(scale_x=8)), torch.zeros(1, 4))
    assert coarser.node("1.input").op == Rescale(-1, 0, 0, 255)
    finer = lower(nn.Sequential(linear(), linear(scale_x=64, handle_neg_in=HandleNegInType.PN)), torch.zeros(1, 4))
    assert finer.node("1.input").op == Rescale(2, 0, -255, 255)
    both = Forward(lambda s, x: s.sum(s.a(x), s.b(x)), a=linear(), b=linear(scale_x=8), sum=WitinElementAdd(config()))
    quantised = [node.op for node in lower(both, torch.zeros(1, 4)).nodes if isinstance(node.op, Quantise)]
    assert [op.scale for op in quantised] == [32.0, 8.0]


def test_equal_scales_still_clip_where_the_width_shrinks() -> None:
    wide = {"y_quant_bits": 12, "scale_y": 32}
    assert lower(nn.Sequential(linear(**wide), linear()), torch.zeros(1, 4)).node("1.input").op == Rescale(0, 0, 0, 255)
    rectified = nn.Sequential(linear(**wide), nn.ReLU(), linear())
    assert lower(rectified, torch.zeros(1, 4)).node("2.input").op == Rescale(0, 0, 0, 255)
    limited = nn.Sequential(linear(**wide), nn.Hardtanh(0.0, 4.0), linear())  # codes 0 to 128: nothing to clip
    assert "2.input" not in [node.name for node in lower(limited, torch.zeros(1, 4)).nodes]


def test_shift_keeps_the_constant_within_the_rounding() -> None:
    """A tie's even neighbour depends on the constant: 0.5 + 1 goes to 2."""
    layer = linear(1, 1, handle_neg_in=HandleNegInType.Shift, shift_num=1 / 32, scale_weight=1, scale_y=1)
    layer.weight.data.fill_(1.0)
    layer.bias.data.zero_()
    program = lower(layer, torch.zeros(1, 1))
    assert program.nodes[0].op == Quantise(32.0, 1, 0, 255)
    assert program.nodes[0].output.zero == 1
    assert verify(layer, program, [torch.tensor([[0.5 / 32], [1.5 / 32], [-9.0], [99.0]])])


def test_padding_of_shift_and_of_other_modes_is_a_node() -> None:
    shifting = WitinConv2d(1, 1, 3, padding=1, layer_config=config(handle_neg_in=HandleNegInType.Shift, shift_num=1.0))
    program = lower(shifting, torch.zeros(1, 1, 4, 4))
    pad = program.node("WitinConv2d.pad").op
    assert (pad.pads, pad.mode, pad.value) == ((1, 1, 1, 1), "constant", 32)
    mirrored = WitinConv2d(1, 1, 3, padding=1, padding_mode="reflect", layer_config=config())
    assert lower(mirrored, torch.zeros(1, 1, 4, 4)).node("WitinConv2d.pad").op.mode == "reflect"
    plain = WitinConv2d(1, 1, 3, padding=1, layer_config=config())
    assert [node.name for node in lower(plain, torch.zeros(1, 1, 4, 4)).nodes][:2] == [
        "WitinConv2d.input",
        "WitinConv2d",
    ]


def test_an_average_over_a_power_of_two_is_a_sum_at_a_finer_scale() -> None:
    net = nn.Sequential(WitinConv2d(1, 2, 1, layer_config=config()), nn.AvgPool2d(2), nn.Flatten(), linear(8, 2))
    program = lower(net, torch.zeros(1, 1, 4, 4))
    pool = program.node("1")
    assert pool.op == SumPool((2, 2), (2, 2))
    assert (pool.output.scale, pool.output.bits) == (64.0, 10)
    assert verify(net, program, [torch.randn(20, 1, 4, 4) * 9])


def test_output_size_of_a_transposed_convolution() -> None:
    net = Forward(
        lambda s, x: s.up(x, output_size=[8, 8]), up=WitinConvTranspose2d(1, 1, 3, 2, 1, layer_config=config())
    )
    program = lower(net, torch.zeros(1, 1, 4, 4))
    assert program.node("up").op.geometry.output_padding == (1, 1)
    assert program.type("up").shape == (1, 8, 8)
    assert verify(net, program, [torch.randn(3, 1, 4, 4)])


def test_a_layer_called_twice_is_two_nodes() -> None:
    net = Forward(lambda s, x: s.a(s.a(x)), a=linear())
    program = lower(net, torch.zeros(1, 4))
    assert [(node.name, node.layer) for node in program.nodes if node.layer] == [("a", "a"), ("a@1", "a")]
    assert verify(net, program, [torch.randn(7, 4)]).codes == {"a": 56, "output": 28}


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.sum = linear(), linear(), WitinElementAdd(config())

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            a, b = self.a(x), self.b(y)
            return {"sum": self.sum(a, b), "a": a}

    net, x, y = Two(), torch.randn(3, 4), torch.randn(3, 4)
    program = lower(net, (x, y))
    proof = verify(net, program, [(x, y, torch.zeros(3))])
    assert proof and proof.codes == {"a": 12, "b": 12, "sum": 12, "output": 24}
    total, a = run(program, x, y)
    assert total.shape == a.shape == (3, 4)
    with pytest.raises(ShapeError, match="wrong number of inputs"):
        run(program, x)
    with pytest.raises(ShapeError, match="wrong shape"):
        run(program, x, torch.zeros(3, 5))
    with pytest.raises(NonFiniteError, match="NaN"):
        run(program, x, torch.full((3, 4), torch.nan))


def test_mean_over_channels_keeps_the_scale() -> None:
    net = Forward(lambda s, x: s.mean(s.a(x)), a=linear(), mean=WitinMean(dim=1, layer_config=config(scale_x=16)))
    program = lower(net, torch.zeros(1, 3, 4))
    assert program.type("mean").scale == 16.0 and program.type("mean").shape == (4,)
    assert verify(net, program, [torch.randn(50, 3, 4)])


def test_weights_are_codes() -> None:
    layer = WitinConv2d(1, 2, 1, layer_config=config(handle_neg_in=HandleNegInType.PN))
    layer.weight.data = torch.tensor([2.5, -2.5]).view(2, 1, 1, 1)
    layer.bias.data = torch.tensor([0.1, 1000.0])
    program = lower(layer, torch.zeros(1, 1, 1, 1))
    op = program.node("WitinConv2d").op
    assert isinstance(op, Array) and op.log2_g == 7
    assert program.tensors[op.weight_tensor].flatten().tolist() == [127, -128]
    assert program.tensors[op.negative_weight_tensor or ""].flatten().tolist() == [-128, 127]
    assert program.tensors[op.bias_tensor].tolist() == [256, 127 * 8 * 128]  # 0.1 * 2048 = 204.8; the rows' limit
    assert program.tensors[op.exact_bias_tensor].tolist() == pytest.approx([204.8, 2048000.0])
