"""The network of the Ingenic manual (its last section), in float, 8 bit and 4 bit.

`python examples/ingenic_t40_network.py` trains a few steps on random images and evaluates, at each width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ingenic_magik_trainingkit.QuantizationTrainingPlugin.python import ops

TARGET = "T40"


def conv_block(
    in_channels: int, out_channels: int, stride: int, quantize: bool, in_bits: int, weight_bits: int, out_bits: int
) -> nn.Module:
    """3x3 convolution with batch normalisation; its quantiser is the activation, in float there is ReLU6."""
    return ops.Conv2D(
        in_channels,
        out_channels,
        stride=stride,
        activation_fn=None if quantize else ops.ReLU6(TARGET),
        enable_batch_norm=True,
        enable_bias=False,
        padding=1,
        quantize=quantize,
        weight_bitwidth=weight_bits,
        input_bitwidth=in_bits,
        output_bitwidth=out_bits,
        clip_max_value=4.0 if out_bits == 4 else 6.0,
        target_device=TARGET,
        auto_bitwidth=False,
    )


class Network(nn.Module):
    """The manual's classifier for 32 x 32 images: ten logits.

    Args:
        bits: 32 for float, 8 or 4.
        classes: Outputs.
    """

    def __init__(self, bits: int = 32, classes: int = 10) -> None:
        super().__init__()
        q, b = bits < 32, bits
        common = {"quantize": q, "input_bitwidth": b, "output_bitwidth": b, "target_device": TARGET}
        self.preprocess = ops.Preprocess(0, 255.0, target_device=TARGET)
        self.bn = ops.BatchNorm(3, None, q, True, 8, b, target_device=TARGET)
        self.conv0 = conv_block(3, 32, 1, q, 8, b, b)
        self.maxpool = ops.Maxpool2D(target_device=TARGET)
        self.conv1 = conv_block(32, 32, 1, q, b, b, b)
        self.route = ops.Route(target_device=TARGET)
        self.conv2 = conv_block(64, 32, 2, q, b, b, b)
        self.conv3 = conv_block(32, 64, 1, q, b, b, b)
        self.unpool = ops.Unpool2D(2, 2, quantize=q, target_device=TARGET)
        self.conv4 = conv_block(64, 64, 1, q, b, b, b)
        self.conv5 = conv_block(64, 64, 1, q, b, b, b)
        self.shortcut = ops.Shortcut(64, clip_max_value=2.0, **common)
        self.bn1 = ops.BatchNorm(64, ops.PReLU(64, TARGET), q, False, b, b, target_device=TARGET)
        self.conv6 = conv_block(64, 128, 2, q, b, b, b)
        self.conv7 = conv_block(128, 128, 1, q, b, b, b)
        self.conv8 = conv_block(128, 256, 2, q, b, b, b)
        self.conv9 = conv_block(256, 256, 1, q, b, b, b)
        self.conv10 = conv_block(256, 256, 2, q, b, b, b)
        self.rnn = ops.LSTM(256, 256, bidirectional=True, use_squeeze=True, weight_bitwidth=b, **common)
        self.flatten = ops.Flatten([-1, 512], target_device=TARGET)
        self.fc1 = ops.FullConnected(
            512,
            128,
            activation_fn=None if q else ops.ReLU6(TARGET),
            enable_batch_norm=True,
            weight_bitwidth=b,
            clip_max_value=3.0 if b == 4 else 6.0,
            **common,
        )
        self.fc2 = ops.FullConnected(
            128,
            classes,
            activation_fn=None,
            last_layer=True,
            quantize=q,
            weight_bitwidth=b,
            input_bitwidth=b,
            target_device=TARGET,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Classify images (N, 3, 32, 32)."""
        x = self.conv0(self.bn(self.preprocess(image)))
        pooled = self.maxpool(x)
        x = self.route([pooled, self.conv1(pooled)])
        x = self.unpool(self.conv3(self.conv2(x)))
        pooled = self.maxpool(self.conv4(x))
        x = self.bn1(self.shortcut([pooled, self.conv5(pooled)]))
        x = self.conv7(self.conv6(x))
        x = self.conv10(self.conv9(self.conv8(x)))
        sequence, _ = self.rnn(x)
        logits: Tensor = self.fc2(self.fc1(self.flatten(sequence)))
        return logits


def main(steps: int = 40) -> None:
    """Learn 32 random images by heart at each width, starting from the one before, and print every tenth loss."""
    torch.manual_seed(0)
    images, labels = torch.rand(32, 3, 32, 32), torch.randint(10, (32,))
    state = None
    for bits in (32, 8, 4):
        net = Network(bits)
        if state is not None:
            net.load_state_dict(state)
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        losses = []
        for step in range(steps):
            loss = nn.functional.cross_entropy(net(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step % 10 == 0 or step == steps - 1:
                losses.append(f"{loss.item():.3f}")
        with torch.no_grad():
            for _ in range(20):  # after so few steps the running statistics lag behind the weights
                net(images)
            net.eval()
            accuracy = (net(images).argmax(1) == labels).float().mean().item()
        print(f"{bits:2d} bit: loss {' '.join(losses)}, {accuracy:.0%} of the training images right in evaluation")
        state = net.state_dict()


if __name__ == "__main__":
    main()
