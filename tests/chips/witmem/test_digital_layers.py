"""What the digital-unit layers are as modules: float mode, auto-scale, state, errors, and the defects put right."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.chips.witmem import digital
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.errors import CalibrationError, InvalidTypeError, InvalidValueError, NonFiniteError, ShapeError

ARGUMENTS: dict[str, tuple[Any, ...]] = {name: () for name in digital.__all__} | {"WitinBatchNorm2d": (2,)}
PAIRS = {
    "WitinElementAdd",
    "WitinElementMul",
    "WitinElementDivide",
    "WitinMatMul",
    "WitinCat",
    "WitinHypot",
}


def config(**options: Any) -> WitinLayerConfig:
    return WitinLayerConfig(1, **{"use_quantization": True, **options})


def layer(name: str, *args: Any, **options: Any) -> Any:
    return getattr(digital, name)(*(args or ARGUMENTS[name]), layer_config=config(**options))


def fixed(name: str, *args: Any, **options: Any) -> Any:
    return layer(name, *args, **{"use_auto_scale": False, **options})


def inputs(name: str, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.rand(3, 2, 4, 4) + 0.1 for _ in range(2 if name in PAIRS else 1)]


FLOAT = {
    "WitinGELU": F.gelu,
    "WitinSigmoid": torch.sigmoid,
    "WitinTanh": torch.tanh,
    "WitinPReLU": lambda x: F.prelu(x, torch.tensor([0.25])),
    "WitinElementAdd": torch.add,
    "WitinElementMul": torch.mul,
    "WitinMatMul": torch.matmul,
    "WitinCat": lambda a, b: torch.cat([a, b]),
    "WitinMean": torch.mean,
    "WitinElementDivide": lambda a, b: (a / (b + 1e-8)).clamp(-8, 8),
    "WitinSqrt": lambda x: (x + 1e-8).sqrt(),
    "WitinInvSqrt": lambda x: 1 / x.sqrt(),
    "WitinHypot": lambda a, b: (a**2 + b**2 + 1e-8).sqrt(),
    "WitinBatchNorm2d": lambda x: F.batch_norm(x, None, None, training=True),
    "WitinClnBn2d": lambda x: F.layer_norm(x.transpose(1, 2), (2, 4)).transpose(1, 2),
}


@pytest.mark.parametrize("name", digital.__all__)
def test_float_mode_is_torch(name: str) -> None:
    module = layer(name, use_quantization=False, output_fp_clip=0.1, gelu_shift_num=1)
    x = inputs(name)
    torch.testing.assert_close(module(*x), FLOAT[name](*x), rtol=1e-6, atol=1e-6)
    assert {float(observer.io_max) for observer in module.observers.values()} == {8.0}


@pytest.mark.parametrize("name", digital.__all__)
def test_nat_computes_as_quant(name: str) -> None:
    x = inputs(name)
    quant, nat = (layer(name, noise_level=level, scale_x=16) for level in (0, 9))
    assert nat.mode == "nat"
    for _ in range(3):
        assert torch.equal(quant(*x), nat(*x))


@pytest.mark.parametrize("name", digital.__all__)
def test_copies_pickles_and_state(name: str) -> None:
    x = [t.requires_grad_() for t in inputs(name)]
    module = layer(name, auto_scale_updata_step=1, scale_x=16)
    for _ in range(2):
        module(*x)
    module.eval()
    y = module(*x)
    assert torch.equal(copy.deepcopy(module)(*x), y)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(*x), y)
    other = layer(name).eval()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(*x), y)


@pytest.mark.parametrize("name", digital.__all__)
def test_state_dict_keys(name: str) -> None:
    torch_keys = {
        "WitinPReLU": ["weight"],
        "WitinBatchNorm2d": ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"],
    }
    watched = {"WitinMean": ["x"], "WitinHypot": ["x1", "y"], "WitinPReLU": ["x", "y", "weight"]}
    watched["WitinBatchNorm2d"] = watched["WitinPReLU"]
    default = ["x1", "x2", "y"] if name in PAIRS else ["x", "y"]
    want = torch_keys.get(name, []) + [f"autoscale_{short}_obj.io_max" for short in watched.get(name, default)]
    assert list(layer(name).state_dict()) == want


def test_torch_base_classes() -> None:
    assert isinstance(layer("WitinGELU"), nn.GELU)
    assert isinstance(layer("WitinPReLU"), nn.PReLU)
    assert isinstance(layer("WitinBatchNorm2d"), nn.BatchNorm2d)


@pytest.mark.parametrize("name", digital.__all__)
def test_half_precision_computes_in_float32(name: str) -> None:
    module = fixed(name, scale_x=16, scale_x_left=16, scale_x_right=16, scale_y=16)
    x = [(t * 64).round() / 64 for t in inputs(name)]  # exact in bfloat16 up to 1.1
    x = [t.bfloat16() for t in x]
    want = module(*[t.float() for t in x])
    got = copy.deepcopy(module).bfloat16()(*x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(*[t.float() for t in x]), want)


# --- auto-scale


def test_scales_follow_the_statistics_after_the_warm_up() -> None:
    module = layer("WitinElementAdd", scale_x_left=4, scale_x_right=4, scale_y=4)
    a, b = torch.tensor([0.9, -3.1]), torch.tensor([0.2, 0.3])
    assert module(a, b).tolist() == [1.25, -2.75]  # 4 codes per unit: 0.9 -> 1.0, -3.1 -> -3.0
    module(a, b)
    assert {name: o.scale for name, o in module.observers.items()} == {"x1": 32.0, "x2": 256.0, "y": 32.0}
    assert module(a, b).tolist() == [1.09375, -2.78125]
    assert float(module.autoscale_x1_obj.io_max) == pytest.approx(3.1)


def test_unsigned_tensors_have_one_bit_more_for_the_scale() -> None:
    x = torch.tensor([4.0, 1.0])
    for name, scales in {"WitinSqrt": (64.0, 128.0), "WitinInvSqrt": (64.0, 256.0)}.items():
        module = layer(name, auto_scale_updata_step=1)
        module(x)
        assert module.eval().scales_in_force() == dict(zip("xy", scales, strict=True)), name
    module = layer("WitinSigmoid", auto_scale_updata_step=1, scale_x=16)
    module(x)
    assert module.scales_in_force()["y"] == 128.0
    module = layer("WitinHypot", auto_scale_updata_step=1, scale_x_left=16)
    module(x, torch.tensor([3.0, 0.0]))
    assert module.scales_in_force() == {"x1": 32.0, "y": 32.0}
    for shift, y in ((None, 32.0), (0.25, 32.0)):  # 4.0 in 8 bits, 4.25 in 9
        module = layer("WitinGELU", auto_scale_updata_step=1, scale_x=16, gelu_shift_num=shift)
        module(x)
        assert module.scales_in_force()["y"] == y


def test_statistic_of_tanh_is_clipped_but_its_output_is_not() -> None:
    module = layer("WitinTanh", scale_x=16, scale_y=64, output_fp_clip=0.25, auto_scale_updata_step=1)
    assert module(torch.tensor([2.0])).item() == 0.96875
    assert float(module.autoscale_y_obj.io_max) == 0.25


def test_sqrt_returns_to_the_configured_scale_in_every_epoch_and_invsqrt_does_not() -> None:
    x = torch.tensor([1.3, 2.7])
    for name, warm_up_again in {"WitinSqrt": 2.0, "WitinInvSqrt": 64.0}.items():
        module = layer(name, scale_x=2, scale_y=2)
        for _ in range(3):
            module(x)
        assert module.scales_in_force()["x"] == 64.0
        module.train()
        assert module.scales_in_force()["x"] == warm_up_again, name


def test_hypot_watches_the_larger_operand() -> None:
    module = layer("WitinHypot")
    module(torch.tensor([1.0]), torch.tensor([-5.0]))
    assert float(module.autoscale_x1_obj.io_max) == 5.0


def test_never_trained_layer_takes_its_scale_from_the_bit_width() -> None:
    module = layer("WitinTanh", scale_x=2, x_quant_bits=10).eval()
    assert module.scales_in_force()["x"] == 2.0**9 / 2.0**4


@pytest.mark.parametrize("bits", [4, 8, 10])
def test_slope_of_a_prelu_is_assumed_to_be_eight_at_any_width(bits: int) -> None:
    module = layer("WitinPReLU", weight_quant_bits=bits)
    assert module.autoscale_weight_obj.io_max == 8
    assert module.eval().scales_in_force()["weight"] == 2.0 ** (bits - 1) / 8
    module.train()(torch.ones(2))
    assert module.autoscale_weight_obj.io_max == 0.25
    assert module.train().autoscale_weight_obj.io_max == 8


def test_all_zero_input_is_named() -> None:
    module = layer("WitinGELU", auto_scale_updata_step=1)
    module.layer_name = "encoder.act"
    with pytest.raises(CalibrationError, match=r"encoder\.act .*max_v = 0"):
        module(torch.zeros(3))


# --- defects of the vendor's library, put right


@pytest.mark.parametrize("quantised", [False, True])
def test_mul_keeps_the_graph_and_dtype_in_eval(quantised: bool) -> None:
    module = layer("WitinElementMul", use_quantization=quantised).eval()
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    y = module(x, x)
    y.sum().backward()
    assert y.dtype == torch.float64
    assert x.grad.tolist() == [2.0, 2.0]


def test_invsqrt_of_zero_leaves_the_statistics_finite() -> None:
    module = layer("WitinInvSqrt", scale_x=16, scale_y=16, auto_scale_updata_step=1)
    module(torch.tensor([0.0, 4.0]))
    assert float(module.autoscale_y_obj.io_max) == 0.5
    assert module(torch.tensor([0.0, 4.0])).tolist() == [0.0, 255 / 512]


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_buffers_stay_off_the_graph(training: bool) -> None:
    module = fixed("WitinBatchNorm2d", scale_x=16, scale_y=16, scale_weight=16).train(training)
    module(torch.randn(2, 2, 3, 3, requires_grad=True))
    assert not any(buffer.requires_grad for buffer in module.buffers())
    copy.deepcopy(module)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_without_running_statistics_uses_the_batch(training: bool, affine: bool) -> None:
    options = {"scale_x": 256, "scale_y": 256, "scale_weight": 64, "x_quant_bits": 12, "y_quant_bits": 12}
    module = digital.WitinBatchNorm2d(
        2, affine=affine, track_running_stats=False, layer_config=config(use_auto_scale=False, **options)
    ).train(training)
    x = torch.randn(8, 2, 4, 4)
    torch.testing.assert_close(module(x), F.batch_norm(x, None, None, training=True), rtol=0, atol=0.06)


def test_batch_norm_momentum_none_averages_all_batches() -> None:
    module = digital.WitinBatchNorm2d(1, momentum=None, layer_config=config(use_auto_scale=False))
    for level in (1.0, 2.0, 6.0):
        module(torch.tensor([level - 1, level + 1]).view(2, 1, 1, 1))
    assert module.running_mean.item() == pytest.approx(3.0)
    assert module.running_var.item() == pytest.approx(2.0)
    assert int(module.num_batches_tracked) == 3


def test_batch_norm_divides_once_in_eval_and_twice_in_training() -> None:
    """Accumulator 363 over 6: a tie that float32 rounds the other way when it divides by 42 and multiplies by 7."""
    module = fixed("WitinBatchNorm2d", 1, 0.0, scale_x=6, scale_weight=7, scale_y=7)
    x = torch.tensor([121 / 6, -121 / 6]).view(2, 1, 1, 1)
    torch.nn.init.constant_(module.weight, 3 / 7 * 121 / 6)
    assert module(x)[0].item() == pytest.approx(61 / 7)
    module.eval()
    torch.nn.init.constant_(module.weight, 3 / 7)
    module.running_mean.zero_()
    module.running_var.fill_(1.0)
    assert module(x)[0].item() == pytest.approx(60 / 7)


@pytest.mark.parametrize(
    ("name", "right", "left"),
    [("WitinElementAdd", 1.5, 1.5), ("WitinElementMul", 0.5, 0.5), ("WitinElementDivide", 2.0, 0.0)],
)
def test_python_numbers_as_operands(name: str, right: float, left: float) -> None:
    module = fixed(name, scale_x_left=16, scale_x_right=16, scale_y=16)
    assert module(torch.tensor([1.0]), 0.5).item() == right
    assert module(0.5, torch.tensor([1.0])).item() == left


# --- errors


def test_missing_or_wrong_configuration() -> None:
    for name in digital.__all__:
        kind = getattr(digital, name)
        with pytest.raises(AssertionError, match=f"{name} layer_config is None"):
            kind(*ARGUMENTS[name])
        with pytest.raises(InvalidTypeError):
            kind(*ARGUMENTS[name], layer_config={"scale_x": 1})


def test_input_that_is_no_float_tensor() -> None:
    for name in digital.__all__:
        with pytest.raises(ShapeError, match="floating-point tensor"):
            layer(name)(*[torch.ones(3, 2, 4, 4, dtype=torch.int32)] * len(inputs(name)))


def test_debug_mode_names_the_layer_that_meets_nan() -> None:
    module = layer("WitinTanh", debug_mode=True)
    module.layer_name = "act"
    with pytest.raises(NonFiniteError, match="act"):
        module(torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize("name", ["WitinElementAdd", "WitinElementMul", "WitinElementDivide", "WitinHypot", "WitinCat"])
def test_shapes_that_do_not_fit(name: str) -> None:
    with pytest.raises(ShapeError, match=name):
        layer(name)(torch.ones(2, 3), torch.ones(2, 4))


def test_matmul_cat_prelu_batch_norm_and_cln_shapes() -> None:
    with pytest.raises(ShapeError, match="multiplied"):
        layer("WitinMatMul")(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ShapeError, match="dimension 5"):
        layer("WitinCat", 5)(torch.ones(2), torch.ones(2))
    with pytest.raises(ShapeError, match="3 channels"):
        layer("WitinPReLU", 3)(torch.ones(2, 4))
    for x in (torch.ones(2, 3), torch.ones(2, 3, 4, 4), torch.ones(1, 2, 1, 1)):
        with pytest.raises(ShapeError):
            layer("WitinBatchNorm2d", 2)(x)
    with pytest.raises(ShapeError, match="4 dimensions"):
        layer("WitinClnBn2d", use_quantization=False)(torch.ones(2, 3))


def test_matmul_takes_vectors_and_batches() -> None:
    module = fixed("WitinMatMul")
    assert module(torch.ones(3), torch.ones(3)).item() == 3.0
    assert module(torch.ones(5, 2, 3), torch.ones(3)).shape == (5, 2)
    assert module(torch.ones(3), torch.ones(5, 3, 4)).shape == (5, 4)


def test_mean_takes_one_dimension_that_exists() -> None:
    with pytest.raises(TypeError, match="one dimension at a time"):
        digital.WitinMean(dim=(2, 3), layer_config=config())(torch.ones(1, 2, 3, 4))
    with pytest.raises(AssertionError, match="Dimension out of range"):
        digital.WitinMean(dim=2, layer_config=config())(torch.ones(2, 2))
    with pytest.raises(InvalidValueError):
        digital.WitinMean(dim=-3, layer_config=config())(torch.ones(2, 2))


def test_mean_over_everything_ignores_keepdim() -> None:
    for quantised in (False, True):
        module = digital.WitinMean(keepdim=True, layer_config=config(use_quantization=quantised))
        assert module(torch.ones(2, 3)).shape == ()


@pytest.mark.parametrize(
    ("name", "bits", "shift"),
    [("WitinSqrt", 8, 24), ("WitinInvSqrt", 12, 20), ("WitinHypot", 8, 16), ("WitinClnBn2d", 10, 12)],
)
def test_roots_have_32_bits(name: str, bits: int, shift: int) -> None:
    x = inputs(name)
    options = {"x_quant_bits": bits, "x_left_quant_bits": bits}
    fixed(name, sqrt_left_shift_bits=shift, **options)(*x)
    with pytest.raises(AssertionError, match="must be less than 32!"):
        fixed(name, sqrt_left_shift_bits=shift + 2, **options)(*x)
    layer(name, sqrt_left_shift_bits=shift + 2, use_quantization=False, **options)(*x)
