"""Every example of the vendor's manual of training operators (February 2022), typed as it stands there.

The manual came as scanned text. What had to be mended, and in which example:

* Conv2D: `kernel_3` is `kernel_w`, `Padding` is `padding`, `Quantize` is `quantize` (the English manual has the same
  three); the image goes through Preprocess, as the manual's first remark on Preprocess demands of every network.
* ConvTranspose2D: the variable `input_i` is `input`.
* Flatten prints (2, 16) for a reshape of 96 numbers to [-1, 48]; it is (2, 48).
* Route joins two bare tensors and prints `output[0].shape`; of bare tensors the output is the bare tensor.
* Channel_Split: `split` prints the parts, which are bare tensors for a bare tensor.
* LSTM and Embedding: `.cuda()` is left out; the comma after `use_squeeze=True` is missing.
* Max: the first of two lines, `ops.Max([input, input2])`, gives tensors for the target; it is an error, as in the kit.
* The network: an argument by position follows one by name (`first_layer=True, 8`); lines are broken inside words.

The manual prints a shape in ten examples; where it prints none, the shape follows from its text.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from chipfit.chips.ingenic.magik.write.writer import magik_model
from chipfit.errors import ChipfitWarning, InvalidTypeError
from ingenic_magik_trainingkit.QuantizationTrainingPlugin.python import ops


def preprocess() -> Any:
    preprocess = ops.Preprocess(128, 128, "T40")
    input = torch.rand((1, 3, 2, 2))
    input = preprocess(input)
    assert input[1:] == (8, 128, 128, -1)
    return input[0]


def conv2d() -> Any:
    Conv1 = ops.Conv2D(3, 16,
                       kernel_h=3, kernel_w=3, padding=1,
                       quantize=True,
                       enable_batch_norm=True,
                       enable_bias=False,
                       activation_fn=ops.ReLU6(),
                       first_layer=True,
                       weight_bitwidth=8,
                       output_bitwidth=8,
                       clip_max_value=4.0,
                       weight_factor=3.0,
                       target_device="T40")  # fmt: skip
    input = torch.rand((1, 3, 2, 2))
    input_a = Conv1(ops.Preprocess(0, 255.0, "T40")(input))
    return input_a[0]


def conv_transpose2d() -> Any:
    Conv1_c = ops.ConvTranspose2D(3, 16,
                                  quantize=True,
                                  enable_batch_norm=True,
                                  enable_bias=False,
                                  activation_fn=ops.ReLU6(),
                                  weight_bitwidth=8,
                                  output_bitwidth=8,
                                  clip_max_value=4.0,
                                  weight_factor=3.0,
                                  target_device="T40")  # fmt: skip
    input = torch.rand((1, 3, 2, 2))
    output = Conv1_c((input, 8, 0.0))
    return output[0]


def depthwise_conv2d() -> Any:
    dw = ops.DepthwiseConv2D(3, 1,
                             padding=1,
                             quantize=True,
                             enable_batch_norm=True,
                             enable_bias=False,
                             activation_fn=ops.ReLU6(),
                             weight_bitwidth=8,
                             output_bitwidth=8,
                             clip_max_value=4.0,
                             weight_factor=3.0,
                             target_device="T40")  # fmt: skip
    input = torch.rand((1, 3, 2, 2))
    output = dw((input, 8, 0.0))
    return output[0]


def full_connected() -> Any:
    fc = ops.FullConnected(3, 10,
                           activation_fn=None,
                           quantize=True,
                           last_layer=True,
                           weight_bitwidth=8,
                           input_bitwidth=8,
                           output_bitwidth=32,
                           target_device="T40")  # fmt: skip
    input = torch.rand((1, 3))
    output = fc((input, 8, 0.0))
    return output


def batch_norm() -> Any:
    batch = ops.BatchNorm(3,
                          first_layer=False,
                          quantize=True,
                          input_bitwidth=8,
                          output_bitwidth=8,
                          target_device="T40")  # fmt: skip
    input = torch.rand((1, 3, 2, 2))
    output = batch((input, 8, 0.0))
    return output[0]


def flatten() -> Any:
    flatten = ops.Flatten([-1, 48], target_device="T40")
    input = torch.rand((2, 3, 16, 1))
    output = flatten((input, 8, 0.0))
    return output[0]


def route() -> Any:
    cat = ops.Route("T40")
    input = torch.rand((1, 3, 2, 2))
    input2 = torch.rand((1, 3, 2, 2))
    output = cat([input, input2])
    return output


def shortcut() -> Any:
    add = ops.Shortcut(3,
                       activation_fn=None,
                       quantize=True,
                       input_bitwidth=8,
                       output_bitwidth=8,
                       target_device="T40")  # fmt: skip
    input = torch.rand((1, 3, 2, 2))
    input2 = torch.rand((1, 3, 2, 2))
    output = add([(input, 8, 0.0), (input2, 8, 0.0)])
    return output[0]


def maxpool2d() -> Any:
    maxpool = ops.Maxpool2D(target_device="T40")
    input = torch.rand((1, 3, 2, 2))
    output = maxpool(input)
    return output


def avgpool2d() -> Any:
    avgpool = ops.Avgpool2D(3,
                            quantize=True,
                            input_bitwidth=8,
                            output_bitwidth=8,
                            target_device="T40")  # fmt: skip
    input = torch.rand((1, 3, 2, 2))
    output = avgpool((input, 8, 0.0))
    return output[0]


def adaptive_avgpool2d() -> Any:
    avg = ops.AdaptiveAvgpool2D(3,
                                keepdim=True,
                                quantize=True,
                                input_bitwidth=8,
                                output_bitwidth=8,
                                target_device="T40")  # fmt: skip
    input = torch.rand((1, 3, 2, 2))
    output = avg((input, 8, 0.0))
    return output[0]


def adaptive_avgpool2d_without_axes() -> Any:
    input = torch.rand((1, 3, 2, 2))
    avg = ops.AdaptiveAvgpool2D(3,
                                keepdim=False,
                                quantize=True,
                                input_bitwidth=8,
                                output_bitwidth=8,
                                target_device="T40")  # fmt: skip
    output = avg(input)
    return output[0]


def unpool2d() -> Any:
    up = ops.Unpool2D(target_device="T40")
    input = torch.rand((1, 3, 2, 2))
    output = up(input)
    return output


def se_block() -> Any:
    se_block = ops.Se_Block(16,
                            2,
                            quantize=True,
                            weight_bitwidth=8,
                            input_bitwidth=8,
                            output_bitwidth=8,
                            target_device="T40")  # fmt: skip
    input = torch.rand((1, 16, 2, 2))
    output = se_block((input, 8, 0.0))
    return output[0]


def mul() -> Any:
    mul = ops.Mul(3,
                  quantize=True,
                  input_bitwidth=8,
                  output_bitwidth=8,
                  target_device="T40")  # fmt: skip
    input = torch.rand((1, 16, 2, 2))
    input2 = torch.rand((1, 16, 2, 2))
    output = mul([(input, 8, 0.0), (input2, 8, 0.0)])
    return output[0]


def channel_split() -> Any:
    channel_split = ops.Channel_Split([4, 4],
                                      target_device="Txx")  # fmt: skip
    input = torch.rand((1, 8, 2, 2))
    output = channel_split(input)
    assert output[1].shape == torch.Size([1, 4, 2, 2])
    return output[0]


def channel_split_of_the_remarks() -> Any:
    output = ops.Channel_split([16, 48])(torch.rand((1, 64, 2, 2)))
    assert output[1].shape == torch.Size([1, 48, 2, 2])
    return output[0]


def pixel_shuffle() -> Any:
    pixel_shuffel = ops.Pixel_Shuffle(2)
    input = torch.rand((1, 128, 2, 2))
    output = pixel_shuffel(input)
    return output


def lstm() -> Any:
    lstm = ops.LSTM(input_size=16,
                    hidden_size=48,
                    bias=False,
                    use_squeeze=True,
                    quantize=True,
                    input_bitwidth=8,
                    weight_bitwidth=8,
                    output_bitwidth=8)  # fmt: skip
    input = torch.rand((1, 16, 1, 48))
    output = lstm(input)
    return output[0][0]


def embedding() -> Any:
    embedding = ops.Embedding(num_embeddings=100,
                              embedding_dim=128,
                              padding_idx=2,
                              quantize=True,
                              input_bitwidth=8,
                              output_bitwidth=8,
                              multi_inputs=False,
                              target_device="T40")  # fmt: skip
    input = torch.rand(2, 4) * 5
    output = embedding(input)
    return output


def focus() -> Any:
    focus = ops.Focus(target_device="T40")
    input = torch.rand((1, 3, 16, 16))
    output = focus(input)
    return output


def maximum() -> Any:
    input = torch.rand((1, 3, 2, 2))
    input2 = torch.rand((1, 3, 2, 2))
    with pytest.raises(InvalidTypeError, match=r"Max.target_device"):
        ops.Max([input, input2])  # type: ignore[arg-type]
    max = ops.Max(target_device="T40")
    output = max([(input, 8, 0.0), (input2, 8, 0.0)])
    return output[0]


EXAMPLES: list[tuple[Callable[[], Any], list[int], str]] = [
    (preprocess, [1, 3, 2, 2], ""),
    (conv2d, [1, 16, 2, 2], ""),
    (conv_transpose2d, [1, 16, 4, 4], "ConvTranspose2D.in_channels: 3 channels are no multiple of 32"),
    (depthwise_conv2d, [1, 3, 2, 2], "DepthwiseConv2D.in_channels: 3 channels are no multiple of 32"),
    (full_connected, [1, 10], "FullConnected.in_channels: 3 channels are no multiple of 32"),
    (batch_norm, [1, 3, 2, 2], ""),
    (flatten, [2, 48], ""),
    (route, [1, 6, 2, 2], ""),
    (shortcut, [1, 3, 2, 2], ""),
    (maxpool2d, [1, 3, 1, 1], ""),
    (avgpool2d, [1, 3, 1, 1], "Avgpool2D.in_channels: 3 channels are no multiple of 32"),
    (adaptive_avgpool2d, [1, 3, 1, 1], "AdaptiveAvgpool2D.in_channels: 3 channels are no multiple of 32"),
    (adaptive_avgpool2d_without_axes, [1, 3], "AdaptiveAvgpool2D.in_channels: 3 channels are no multiple of 32"),
    (unpool2d, [1, 3, 4, 4], ""),
    (se_block, [1, 16, 2, 2], "Se_Block.in_channels: 16 channels are no multiple of 32"),
    (mul, [1, 16, 2, 2], "Mul.out_channels: 3 channels are no multiple of 32"),
    (channel_split, [1, 4, 2, 2], ""),
    (channel_split_of_the_remarks, [1, 16, 2, 2], ""),
    (pixel_shuffle, [1, 32, 4, 4], ""),
    (lstm, [1, 48, 48], ""),
    (embedding, [2, 4, 128], ""),
    (focus, [1, 12, 8, 8], ""),
    (maximum, [1, 3, 2, 2], ""),
]


@pytest.mark.parametrize(("example", "shape", "warning"), EXAMPLES, ids=[row[0].__name__ for row in EXAMPLES])
def test_example(example: Callable[[], Any], shape: list[int], warning: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = example()
    assert output.shape == torch.Size(shape)
    assert output.isfinite().all()
    said = [entry for entry in caught if issubclass(entry.category, ChipfitWarning)]
    assert len(said) == (2 if example is se_block else bool(warning))  # in_channels, and the hidden layer's
    assert all(entry.filename == __file__ for entry in said)
    assert all("the converter for T40 refuses it" in str(entry.message) for entry in said)
    assert not warning or warning in str(said[0].message)


class ConvBlock_T40(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride, padding,
                 is_quantize, first_layer, input_bitwidth, BITW, BITA, auto=True):  # fmt: skip
        super(ConvBlock_T40, self).__init__()  # noqa: UP008
        self.conv = ops.Conv2D(in_channels, out_channels,
                               stride=stride,
                               kernel_h=kernel_size,
                               kernel_w=kernel_size,
                               activation_fn=None,
                               enable_batch_norm=True,
                               enable_bias=False,
                               quantize=is_quantize,
                               padding=padding,
                               first_layer=first_layer,
                               weight_bitwidth=BITW,
                               input_bitwidth=input_bitwidth,
                               output_bitwidth=BITA,
                               clip_max_value=6.0,
                               target_device="T40",
                               auto_bitwidth=False)  # fmt: skip

    def forward(self, input):
        out = self.conv(input)
        return out


class Network_T40(nn.Module):
    def __init__(self, is_quantize=False, BITA=32, BITW=32):
        super(Network_T40, self).__init__()  # noqa: UP008
        self.preprocess = ops.Preprocess(0, 255.0, target_device="T40")
        self.bn = ops.BatchNorm(3, None, is_quantize, True, 8, BITA, target_device="T40")
        self.conv0 = ConvBlock_T40(3, 32, 3, 1, 1, is_quantize, False, 8, BITW, BITA)
        self.maxpool = ops.Maxpool2D(target_device="T40")
        self.conv1 = ConvBlock_T40(32, 32, 3, 1, 1, is_quantize, False, BITA, BITW, BITA)
        self.route = ops.Route(target_device="T40")
        self.conv2 = ConvBlock_T40(64, 32, 3, 2, 1, is_quantize, False, BITA, BITW, BITA)
        self.conv3 = ConvBlock_T40(32, 64, 3, 1, 1, is_quantize, False, BITA, BITW, BITA)
        self.unpool = ops.Unpool2D(2, 2, target_device="T40", quantize=is_quantize)
        self.conv4 = ConvBlock_T40(64, 64, 3, 1, 1, is_quantize, False, BITA, BITW, BITA)
        self.conv5 = ConvBlock_T40(64, 64, 3, 1, 1, is_quantize, False, BITA, BITW, BITA)
        self.shortcut = ops.Shortcut(64, quantize=is_quantize, input_bitwidth=BITA,
                                     output_bitwidth=BITA, clip_max_value=2.0, target_device="T40")  # fmt: skip
        self.bn1 = ops.BatchNorm(64, ops.PReLU(64), is_quantize, False, BITA, BITA, target_device="T40")
        self.conv6 = ConvBlock_T40(64, 128, 3, 2, 1, is_quantize, False, BITA, BITW, BITA)
        self.conv7 = ConvBlock_T40(128, 128, 3, 1, 1, is_quantize, False, BITA, BITW, BITA)
        self.conv8 = ConvBlock_T40(128, 256, 3, 2, 1, is_quantize, False, BITA, BITW, BITA)
        self.conv9 = ConvBlock_T40(256, 256, 3, 1, 1, is_quantize, False, BITA, BITW, BITA)
        self.conv10 = ConvBlock_T40(256, 256, 3, 2, 1, is_quantize, False, BITA, BITW, BITA)
        self.rnn = ops.LSTM(256, 256, bidirectional=True, batch_first=True,
                            use_squeeze=True, quantize=is_quantize,
                            input_bitwidth=BITA, output_bitwidth=BITA,
                            weight_bitwidth=BITW, target_device="T40")  # fmt: skip
        self.flatten = ops.Flatten([-1, 256*2], target_device="T40")  # fmt: skip
        self.fc1 = ops.FullConnected(256*2, 128, enable_batch_norm=True,
                                     quantize=is_quantize, activation_fn=None,
                                     last_layer=False, weight_bitwidth=BITW,
                                     input_bitwidth=BITA, output_bitwidth=BITA,
                                     clip_max_value=6.0, target_device="T40")  # fmt: skip
        self.fc2 = ops.FullConnected(128, 10, enable_bias=True, quantize=is_quantize,
                                     activation_fn=None, last_layer=True,
                                     weight_bitwidth=BITW, input_bitwidth=BITA,
                                     output_bitwidth=32, clip_max_value=6.0,
                                     target_device="T40")  # fmt: skip
        self.sigmoid = torch.nn.Sigmoid()

    def forward(self, input):
        pinput = self.preprocess(input)
        pbn = self.bn(pinput)
        conv0 = self.conv0(pbn)
        max1 = self.maxpool(conv0)
        conv1 = self.conv1(max1)
        concat1 = self.route([max1, conv1])
        conv2 = self.conv2(concat1)
        conv3 = self.conv3(conv2)
        unpool1 = self.unpool(conv3)
        conv4 = self.conv4(unpool1)
        max2 = self.maxpool(conv4)
        conv5 = self.conv5(max2)
        concat2 = self.shortcut([max2, conv5])
        concat2 = self.bn1(concat2)
        conv6 = self.conv6(concat2)
        conv7 = self.conv7(conv6)
        conv8 = self.conv8(conv7)
        conv9 = self.conv9(conv8)
        conv10 = self.conv10(conv9)
        rnn, _ = self.rnn(conv10)
        res3 = self.flatten(rnn)
        fc1 = self.fc1(res3)
        fc2 = self.fc2(fc1)
        fc = self.sigmoid(fc2)
        return fc


@pytest.mark.parametrize(
    "options", [{}, {"is_quantize": True, "BITA": 8, "BITW": 8}, {"is_quantize": 1, "BITA": 4, "BITW": 4}]
)
def test_the_network(options: dict[str, Any]) -> None:
    """It trains and evaluates; its file is written (an LSTM has no integer program)."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChipfitWarning)
        net = Network_T40(**options)
    images = torch.randint(0, 256, (2, 3, 32, 32)) / 255
    net(images).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.eval()(images).shape == torch.Size([2, 10])
    if options:
        assert {node.op_type for node in magik_model(net, images).graph.node} >= {
            "QuantizeConv2DInference",
            "QuantizeLSTMV2",
        }
