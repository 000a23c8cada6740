"""Float means: the vendor's order, the integer program's equal to it, and where they differ from means of codes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.means import whole_mean
from chipfit.chips.ingenic.program.ops import FloatMean
from chipfit.chips.ingenic.quantizers import quantize_feature
from chipfit.program import Grid
from chipfit.program.reference import apply

SIZES = [(1, n) for n in range(1, 70)] + [(7, 7), (16, 32), (23, 24), (56, 56), (130, 127), (256, 260)]


def reference(codes, grid, **windows):
    return apply(FloatMean(grid, **windows), [codes], {})


@pytest.mark.parametrize("size", SIZES)
def test_the_mean_of_a_whole_feature_is_added_in_the_stated_order(size):
    """As the reference does, whose additions are written down anew; on AVX2 and AVX512 as torch does."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = whole_mean(x, keepdim=False)
    assert torch.equal(found, reference(x, None, keepdim=False))
    assert torch.equal(found, whole_mean(x.contiguous(memory_format=torch.channels_last), True).flatten(1))
    if "AVX" in torch.backends.cpu.get_cpu_capability():
        assert torch.equal(found, x.mean((2, 3)))


def test_gradient_of_the_mean_of_a_whole_feature():
    x = torch.randn(2, 3, 5, 7, requires_grad=True, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: whole_mean(v, keepdim=True), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), (2, 2)), ((3, 3), (1, 2)), ((1, 5), (3, 1)), ((7, 7), (1, 1))])
def test_windows_are_added_row_by_row(layout, kernel, stride):
    x = torch.randn(2, 32, 15, 14, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    assert torch.equal(F.avg_pool2d(x, kernel, stride), reference(x, None, kernel=kernel, stride=stride))


def signed_codes(bits, *shape):
    n = 2**bits - 1
    k = torch.randint(0, n + 1, shape, generator=torch.Generator().manual_seed(0))
    return 2 * k - n, (2 * k).float() / n - 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("bits", "share"), [(8, 2 / 576), (4, 5 / 576)])
def test_signed_average_on_t40_is_that_of_the_floats(training, bits, share):
    """Recorded: the mean of codes differs in 2 of 576 values at 8 bits and in 5 of 576 at 4 bits (spec, section 8)."""
    codes, x = signed_codes(bits, 8, 32, 48, 48)
    layer = ops.Avgpool2D(32, quantize=True, target_device="T40").train(training)
    y, _, low = layer((x, bits, -1.0))
    rows = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    float_mean = (((rows[0] + rows[1]) + rows[2]) + rows[3]) / 4
    assert low == -1.0
    assert torch.equal(y, quantize_feature(float_mean, bits, -1.0, 1.0, "T40"))
    exact = F.avg_pool2d(codes.double(), 2) / (2**bits - 1)
    differing = (quantize_feature(exact.float(), bits, -1.0, 1.0, "T40") != y).float().mean()
    assert 0.5 * share < differing < 2 * share


@pytest.mark.parametrize("target", ["T40", "Txx"])
@pytest.mark.parametrize("training", [True, False])
def test_squeeze_and_excite_takes_the_float_mean(target, training):
    x = torch.randint(0, 16, (64, 64, 4, 4), generator=torch.Generator().manual_seed(0)) / 15
    torch.manual_seed(0)
    block = ops.Se_Block(
        64, 2, quantize=True, weight_bitwidth=4, input_bitwidth=4, output_bitwidth=4, target_device=target
    ).train(training)
    seen = []
    block.conv1.register_forward_pre_hook(lambda module, given: seen.append(given[0][0]))
    block((x, 4, 0.0))
    mean = reference((x * 15).round().long(), Grid("plain", 15.0))
    assert torch.equal(seen[0], quantize_feature(mean, 4, 0.0, 1.0, target))
    exact = ((x * 15).round().sum((2, 3), keepdim=True) / (16 * 15)).float()
    assert not torch.equal(seen[0], quantize_feature(exact, 4, 0.0, 1.0, target))


def test_an_image_a_few_bits_off_its_grid_is_on_it_in_evaluation():
    x = torch.randint(0, 256, (1, 32, 6, 6), generator=torch.Generator().manual_seed(0)) / 255
    layer = ops.Avgpool2D(32, 3, 3, quantize=True, input_bitwidth=8, target_device="T40").eval()
    assert torch.equal(layer(x * (1 + 2**-22))[0], layer(x)[0])
