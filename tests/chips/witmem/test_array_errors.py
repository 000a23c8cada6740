"""What an array layer refuses, how it says so, and what it only warns about."""

import math
import warnings

import pytest
import torch

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d, WitinConvTranspose2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType, NoiseModel
from chipfit.errors import (
    ChipfitError,
    ChipfitWarning,
    InvalidTypeError,
    InvalidValueError,
    NonFiniteError,
    ShapeError,
    UnknownOptionError,
    UnpublishedError,
    UnsupportedError,
)

FALSE, PN, SHIFT = HandleNegInType.FALSE, HandleNegInType.PN, HandleNegInType.Shift
KINDS = {
    "WitinLinear": lambda c: WitinLinear(3, 2, layer_config=c),
    "WitinConv1d": lambda c: WitinConv1d(3, 2, 3, layer_config=c),
    "WitinConv2d": lambda c: WitinConv2d(3, 2, 3, layer_config=c),
    "WitinConvTranspose2d": lambda c: WitinConvTranspose2d(3, 2, 3, layer_config=c),
}
GOOD = {
    "WitinLinear": (4, 3),
    "WitinConv1d": (2, 3, 5),
    "WitinConv2d": (2, 3, 5, 5),
    "WitinConvTranspose2d": (2, 3, 5, 5),
}
BAD = {
    "WitinLinear": [(4, 2), (3, 4), (), (5,)],
    "WitinConv1d": [(2, 2, 5), (3,), (1, 2, 3, 5)],
    "WitinConv2d": [(2, 2, 5, 5), (3, 5), (1, 2, 3, 5, 5), (4, 5, 5)],
    "WitinConvTranspose2d": [(2, 2, 5, 5), (3, 5), (1, 2, 3, 5, 5)],
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def config(**options):
    fixed = {"use_quantization": True, "use_auto_scale": False, "scale_x": 16, "scale_weight": 64, "scale_y": 8}
    return WitinLayerConfig(1, **(fixed | options))


@each_kind
def test_layer_config_is_required(kind):
    with pytest.raises(InvalidValueError, match=f"{kind} layer_config is None.*LayerConfigFactory") as caught:
        KINDS[kind](None)
    assert isinstance(caught.value, AssertionError)
    with pytest.raises(InvalidTypeError, match="layer_config has the wrong type") as caught:
        KINDS[kind]({"scale_x": 1})
    assert isinstance(caught.value, (TypeError, ValueError))


@each_kind
@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("name", ["x_quant_bits", "y_quant_bits", "weight_quant_bits"])
@pytest.mark.parametrize("bits", [0, -1, True])
def test_a_width_that_is_no_positive_int(kind, quantised, name, bits):
    with pytest.raises(InvalidValueError, match=rf"{kind} \(index \d+\): {name} is no bit width; got {bits}") as e:
        KINDS[kind](config(use_quantization=quantised, **{name: bits}))
    assert isinstance(e.value, ValueError)
    assert isinstance(e.value, AssertionError)


@each_kind
@pytest.mark.parametrize("name", ["scale_x", "scale_y", "scale_weight"])
@pytest.mark.parametrize("scale", [0, -1, math.inf, math.nan])
def test_a_scale_that_is_not_positive(kind, name, scale):
    with pytest.raises(InvalidValueError, match=f"{kind}.*{name} is no scale; got {scale}; allowed: a finite number"):
        KINDS[kind](config(**{name: scale}))


@each_kind
def test_shapes(kind):
    layer = KINDS[kind](config())
    layer.layer_name = "block.3"
    assert layer(torch.rand(GOOD[kind])).shape[0] == GOOD[kind][0]
    for shape in BAD[kind]:
        with pytest.raises(ShapeError, match=r"block\.3.*input has the wrong shape.*allowed: \(.*3") as caught:
            layer(torch.rand(shape))
        assert isinstance(caught.value, RuntimeError)  # what torch raises
        assert isinstance(caught.value, ValueError)


@each_kind
@pytest.mark.parametrize(
    "x", [None, [1.0, 2.0, 3.0], 3.0, torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 3, dtype=torch.bool)]
)
def test_what_is_no_floating_point_tensor(kind, x):
    with pytest.raises(ShapeError, match=f"{kind}.*input must be a floating-point tensor"):
        KINDS[kind](config())(x)


@each_kind
def test_dtype_other_than_the_weights(kind):
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        with pytest.raises(ShapeError, match=f"{kind}.*differ in dtype.*{dtype}.*torch.float32"):
            KINDS[kind](config())(torch.rand(GOOD[kind], dtype=dtype))


@each_kind
@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_in_debug_mode(kind, quantised, bad):
    layer = KINDS[kind](config(debug_mode=True, use_quantization=quantised))
    layer.layer_name = "head"
    x = torch.rand(GOOD[kind])
    layer(x)
    x[0, 0] = bad
    with pytest.raises(NonFiniteError, match=rf"head.*NaN or infinity; got '{x[0, 0].numel()} of {x.numel()} values'"):
        layer(x)
    KINDS[kind](config(use_quantization=quantised))(x)  # not checked without debug_mode


@pytest.mark.parametrize("kind", ["WitinLinear", "WitinConv2d", "WitinConvTranspose2d"])
def test_auto_scale_cannot_learn_from_nothing(kind):
    layer = KINDS[kind](config(use_auto_scale=True))
    with pytest.raises(ShapeError, match=f"{kind}.*cannot learn from an empty input"):
        layer(torch.rand(0, *GOOD[kind][1:]))


def test_geometry_that_the_chip_lacks():
    with pytest.raises(InvalidValueError, match="WitinConvTranspose2d: groups must be 1; got 3") as caught:
        WitinConvTranspose2d(3, 3, 3, groups=3, layer_config=config())
    assert isinstance(caught.value, AssertionError)
    with pytest.raises(InvalidValueError, match="to_linear needs groups=1; got 2") as caught:
        WitinConv2d(4, 4, 3, groups=2, layer_config=config(to_linear=True))
    assert isinstance(caught.value, AssertionError)
    with pytest.raises(ValueError, match="padding mode"):
        WitinConvTranspose2d(3, 3, 3, padding_mode="reflect", layer_config=config())


def test_transposed_convolution_refuses_shift_when_it_quantises():
    layer = WitinConvTranspose2d(3, 2, 3, layer_config=config(handle_neg_in=SHIFT))
    with pytest.raises(UnsupportedError, match=r"does not support handle_neg_in == HandleNegInType\.Shift") as caught:
        layer(torch.rand(1, 3, 4, 4))
    assert isinstance(caught.value, AssertionError)
    layer.set_mode("float")
    assert layer(torch.rand(1, 3, 4, 4)).shape == (1, 2, 6, 6)


@pytest.mark.parametrize("options", [{"noise_level": 4}, {"x_quant_bits": 10}])
def test_g_that_rounds_to_zero(options):
    """The vendor's library divides by it: infinity or NaN."""
    layer = WitinLinear(3, 2, layer_config=config(scale_x=1, scale_weight=1, scale_y=2, **options))
    with pytest.raises(InvalidValueError, match=r"WitinLinear.*rounds to 0; got 0\.5; allowed: above 0\.5.*Lower"):
        layer(torch.rand(4, 3))
    clean = WitinLinear(3, 2, layer_config=config(scale_x=1, scale_weight=1, scale_y=2))
    assert clean(torch.rand(4, 3)).isfinite().all()  # divides by 0.5 itself


def test_noise_model_that_was_never_published():
    layer = WitinLinear(3, 2, layer_config=config(noise_model=NoiseModel.ARRMDL, noise_level=4))
    with pytest.raises(UnpublishedError, match=r"ARRMDL was never published.*NoiseModel\.NORMAL") as caught:
        layer(torch.rand(4, 3))
    assert isinstance(caught.value, AttributeError)  # what the vendor's library raises
    layer.set_mode("quant")
    layer(torch.rand(4, 3))


@pytest.mark.parametrize("model", [NoiseModel.MBS, NoiseModel.SIMPLE])
def test_noise_models_known_from_a_few_probes_warn_and_run(model):
    torch.manual_seed(0)
    layer = WitinConv2d(3, 2, 3, layer_config=config(noise_model=model, noise_level=4, handle_neg_in=PN))
    x = torch.randn(2, 3, 6, 6) * 4
    with pytest.warns(ChipfitWarning, match=f"{model.name} is approximated"):
        first = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once, not each forward
        assert not torch.equal(layer(x), first)
    layer(x).sum().backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"x_quant_bits": 13}, "x_quant_bits=13"),
        ({"y_quant_bits": 4}, "y_quant_bits=4"),
        ({"weight_quant_bits": 10}, "weight_quant_bits=10"),
        ({"x_quant_bits": 7, "weight_quant_bits": 4}, "x_quant_bits=7, weight_quant_bits=4"),
    ],
)
def test_widths_outside_the_chips_work_with_one_warning(options, shown):
    with pytest.warns(ChipfitWarning, match=f"^{shown}: the chip has 8 to 12 bits") as caught:
        layer = WitinLinear(3, 2, layer_config=config(**options))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.rand(4, 3))


def test_the_chips_own_widths_do_not_warn(recwarn):
    for bits in range(8, 13):
        WitinLinear(3, 2, layer_config=config(x_quant_bits=bits, y_quant_bits=bits))
    assert not recwarn.list


def test_writing_use_quantization_on_a_layer_warns_and_does_nothing():
    layer = WitinLinear(3, 2, layer_config=config())
    with pytest.warns(ChipfitWarning, match="use chipfit.set_mode") as caught:
        layer.use_quantization = False
    assert caught[0].filename == __file__
    assert layer.use_quantization
    assert layer.mode == "quant"


def test_modes():
    layer = WitinLinear(3, 2, layer_config=config())
    with pytest.raises(UnknownOptionError, match="unknown mode; got 'qat'"):
        layer.set_mode("qat")
    with pytest.raises(InvalidValueError, match="mode 'nat' needs a noise level"):
        layer.set_mode("nat")
    with pytest.raises(InvalidValueError, match="noise_level value error"):
        layer.set_mode("nat", level=10)
    with pytest.raises(UnknownOptionError, match="rounding"):
        layer.set_mode("quant", rounding="up")
    assert (layer.mode, layer.noise_level, layer.rounding) == ("quant", 0, "witin_nn")


def test_a_refused_mode_changes_nothing():
    layer = WitinLinear(3, 2, layer_config=config())
    with pytest.raises(ChipfitError):
        layer.set_mode("nat", level=3, rounding="nearest")
    assert (layer.mode, layer.noise_level, layer.rounding) == ("quant", 0, "witin_nn")


@pytest.mark.parametrize("kind", ["WitinLinear", "WitinConv2d"])
def test_bias_d_of_another_length(kind):
    options = {"x_quant_bits": 10, "to_linear": kind == "WitinConv2d", "bias_d": torch.ones(5)}
    with pytest.raises(ShapeError, match=rf"{kind}.*bias_d has the wrong shape; got \(5,\); allowed: one value"):
        KINDS[kind](config(**options))
    KINDS[kind](config(bias_d=torch.ones(5)))  # unused without an input split
