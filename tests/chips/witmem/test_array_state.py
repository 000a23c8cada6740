"""Checkpoints, copies and pickles of array layers."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch.nn.utils import prune

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d, WitinConvTranspose2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType

KEYS = [
    "weight",
    "bias",
    "autoscale_x_obj.io_max",
    "autoscale_y_obj.io_max",
    "autoscale_weight_obj.io_max",
]
KINDS = {
    "linear": (lambda c, **k: WitinLinear(3, 2, layer_config=c, **k), (4, 3)),
    "conv1d": (lambda c, **k: WitinConv1d(3, 2, 3, layer_config=c, **k), (2, 3, 6)),
    "conv2d": (lambda c, **k: WitinConv2d(3, 2, 3, layer_config=c, **k), (2, 3, 6, 6)),
    "conv_transpose2d": (lambda c, **k: WitinConvTranspose2d(3, 2, 3, layer_config=c, **k), (2, 3, 6, 6)),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def trained(kind, **options):
    """A layer in the middle of its life: two training forwards behind it, scales computed."""
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    options = {"use_quantization": True, "scale_x": 16, "scale_weight": 64, "scale_y": 8} | options
    config = WitinLayerConfig(1, handle_neg_in=HandleNegInType.PN, **options)
    layer = make(config)
    for _ in range(2):
        layer(torch.randn(shape) * 3)
    return layer, torch.randn(shape) * 3


def assert_same(twin, layer, x):
    assert torch.equal(twin(x), layer(x))
    for name, observer in layer.observers.items():
        assert twin.observers[name].io_max == observer.io_max
        assert twin.observers[name].scale == observer.scale


@each_kind
@pytest.mark.parametrize("options", [{}, {"use_quantization": False}, {"use_auto_scale": False}])
@pytest.mark.parametrize("bias", [True, False])
def test_keys_and_their_order(kind, options, bias):
    layer = KINDS[kind][0](WitinLayerConfig(1, **options), bias=bias)
    assert list(layer.state_dict()) == KEYS
    assert [name for name, _ in layer.named_parameters()] == KEYS
    learns = [name for name, p in layer.named_parameters() if p.requires_grad]
    assert learns == (["weight", "bias"] if bias else ["weight"])
    assert all(layer.state_dict()[name].dim() == 0 for name in KEYS[2:])


@each_kind
def test_load_without_statistics_needs_strict_false(kind):
    layer, _ = trained(kind)
    plain = {name: layer.state_dict()[name] * 2 for name in ("weight", "bias")}
    before = layer.autoscale_x_obj.io_max.item()
    with pytest.raises(RuntimeError, match=r"autoscale_x_obj\.io_max"):
        layer.load_state_dict(plain)
    missing = layer.load_state_dict(plain, strict=False)
    assert missing.missing_keys == KEYS[2:]
    assert torch.equal(layer.weight, plain["weight"])
    assert layer.autoscale_x_obj.io_max.item() == before


@each_kind
@pytest.mark.parametrize("route", ["memory", "torch.save", "safetensors"])
def test_state_dict_round_trip(kind, route):
    layer, x = trained(kind)
    state = layer.state_dict()
    if route == "torch.save":
        file = io.BytesIO()
        torch.save(state, file)
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    elif route == "safetensors":
        state = load_safetensors(save_safetensors(state))
    twin, _ = trained(kind)
    twin.weight.data.zero_()
    twin.load_state_dict(state)
    assert_same(twin.eval(), layer.eval(), x)


@each_kind
@pytest.mark.parametrize(
    "route",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
def test_whole_layer_copies(kind, route):
    layer, x = trained(kind)
    layer.set_mode("nat", level=2)
    layer.layer_name = "fc"
    twin = route(layer)
    assert (twin.index, twin.mode, twin.noise_level, twin.layer_name) == (layer.index, "nat", 2, "fc")
    assert twin.layer_config is not layer.layer_config
    assert twin.layer_config.index == layer.index
    for each in (layer, twin):
        each.set_mode("quant")
    assert_same(twin, layer, x)
    layer.train()
    assert twin.autoscale_x_obj.io_max.item() != 8.0
    with torch.no_grad():
        layer.weight.zero_()
    assert twin.weight.abs().sum() > 0


@each_kind
def test_a_copy_in_the_middle_of_an_epoch_goes_on_alike(kind):
    layer, x = trained(kind, auto_scale_updata_step=4)
    twin = copy.deepcopy(layer)
    for step in range(1, 4):
        assert_same(twin, layer, x * step)
    assert layer.autoscale_x_obj.cnt_train == twin.autoscale_x_obj.cnt_train


def test_torch_save_of_the_whole_layer():
    layer, x = trained("linear")
    file = io.BytesIO()
    torch.save(layer, file)
    assert_same(torch.load(io.BytesIO(file.getvalue()), weights_only=False), layer, x)


def test_bias_d_travels_with_the_layer():
    layer, x = trained("linear", x_quant_bits=10, y_quant_bits=12, bias_d=torch.tensor([1.0, -2.0]))
    layer.eval()
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    layer.double()
    assert layer(x.double()).dtype == torch.float64


def test_conversions_convert_everything():
    layer, _ = trained("conv2d")
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert {p.dtype for p in layer.to(dtype).parameters()} == {dtype}


def test_the_vendors_scripts_find_what_they_read():
    """Both utility scripts walk modules for these names (manual section 2.6, spec section 10)."""
    layer, _ = trained("linear")
    scales = {}
    for name, bits in (("x", 9), ("weight", 8), ("y", 8)):
        largest = getattr(layer, f"autoscale_{name}_obj").io_max
        scales[name] = 2 ** (bits - 1) / 2 ** (torch.log2(largest).ceil())
        assert scales[name].item() == layer.observers[name].scale
    g = int(scales["x"] * scales["weight"] / scales["y"])
    assert {layer.layer_config.index: g} == {layer.index: int(layer.g_value)}


def test_optimiser_and_pruning_see_plain_parameters():
    layer, x = trained("linear", use_auto_scale=False)
    optimiser = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    before = layer.weight.detach().clone()
    layer(x).square().sum().backward()
    optimiser.step()
    assert not torch.equal(layer.weight, before)
    prune.l1_unstructured(layer, "weight", amount=3)
    assert (layer.weight == 0).sum() == 3
    expected = copy.deepcopy(layer.weight.detach())
    prune.remove(layer, "weight")
    assert torch.equal(layer.weight, expected)


def test_a_training_step_on_the_whole_parameter_list_leaves_io_max_alone():
    layer, x = trained("linear")
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    seen = layer.autoscale_x_obj.io_max.item()
    layer(x).sum().backward()
    optimiser.step()
    assert layer.autoscale_x_obj.io_max.item() == seen
