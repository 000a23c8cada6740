"""Networks of the kinds that run at the edge, as people write them, to be exported as ONNX files."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class DSCNN(nn.Module):
    """Depthwise separable convolutions over a spectrogram."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_bn(1, 16, 5, 2)
        self.blocks = nn.Sequential(*(nn.Sequential(conv_bn(16, 16, groups=16), conv_bn(16, 16, 1)) for _ in range(2)))
        self.fc = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.blocks(self.first(x)), 1).flatten(1))


class KeywordNet(nn.Module):
    """Conv1d over features of sound."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(10, 16, 5, padding=2), nn.Conv1d(16, 16, 3, stride=2)
        self.bn, self.fc = nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.bn(self.conv1(x))), 2)
        return self.fc(F.relu(self.conv2(x)).mean(2))


class CRNN(nn.Module):
    """Convolutions, then a GRU in both directions over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv_bn(1, 8), nn.MaxPool2d(2), conv_bn(8, 8), nn.MaxPool2d(2))
        self.gru = nn.GRU(8 * 4, 12, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 3, 1, 2).flatten(2)
        y, _ = self.gru(x)
        return self.fc(y)


class SoundLSTM(nn.Module):
    """Two LSTM layers, the last step classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(10, 14, 2, batch_first=True), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        return self.fc(y[:, -1])


class TinyYOLO(nn.Module):
    """Two heads, the second after upsampling and concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 16, 3, 2))
        self.down, self.lateral = conv_bn(16, 16, 3, 2), conv_bn(16, 8, 1)
        self.head1, self.head2 = nn.Conv2d(16, 18, 1), nn.Conv2d(24, 18, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(x)
        coarse = self.down(fine)
        up = F.interpolate(self.lateral(coarse), scale_factor=2.0, mode="nearest")
        return self.head1(coarse), self.head2(torch.cat([up, fine], 1))


class SqueezeExcite(nn.Module):
    """Weights of channels from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class MobileNet(nn.Module):
    """Inverted residuals with squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.BatchNorm2d(24), nn.SiLU())
        self.se, self.project = SqueezeExcite(24), nn.Conv2d(24, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.se(self.depth(self.expand(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class UNet(nn.Module):
    """Down, up by a transposed convolution, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = conv_bn(1, 8), conv_bn(8, 16)
        self.up, self.dec, self.out = nn.ConvTranspose2d(16, 8, 2, 2), conv_bn(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.enc1(x)
        return torch.sigmoid(self.out(self.dec(torch.cat([self.up(self.enc2(F.max_pool2d(fine, 2))), fine], 1))))


class TCN(nn.Module):
    """Dilated convolutions that look back only."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(8, 8, 3, dilation=2**i) for i in range(3))
        self.out = nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = x + F.relu(conv(F.pad(x, (2 * 2**i, 0))))
        return self.out(x)


class ResNet8(nn.Module):
    """Three residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        widths = ((8, 8, 1), (8, 16, 2), (16, 24, 2))
        self.first = nn.ModuleList(conv_bn(i, o, 3, s) for i, o, s in widths)
        self.second = nn.ModuleList(nn.Sequential(*conv_bn(o, o)[:2]) for _, o, _ in widths)
        self.skip = nn.ModuleList(nn.Identity() if i == o else nn.Conv2d(i, o, 1, s) for i, o, s in widths)
        self.pool, self.fc = nn.AvgPool2d(4), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second, skip in zip(self.first, self.second, self.skip, strict=True):
            x = F.relu(second(first(x)) + skip(x))
        return self.fc(self.pool(x).view(x.size(0), -1))


def autoencoder() -> nn.Module:
    """Linear layers with batch norms."""
    widths = (64, 32, 8, 32, 64)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


class Mixer(nn.Module):
    """Patches, mixed along places and along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.places = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.places(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.fc(x.mean(1))


class ViT(nn.Module):
    """A class token, positions, torch's own encoder layer written out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp, self.fc = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(b, -1, -1), x], 1) + self.positions
        q, k, v = self.qkv(self.norm1(x)).reshape(b, 17, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-2, -1) / 2.0, -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, 17, 16))
        x = x + self.mlp(self.norm2(x))
        return self.fc(x[:, 0])


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "ds-cnn": (DSCNN, (1, 20, 10)),
    "keyword": (KeywordNet, (10, 32)),
    "crnn": (CRNN, (1, 16, 24)),
    "lstm": (SoundLSTM, (12, 10)),
    "tiny-yolo": (TinyYOLO, (3, 32, 32)),
    "mobilenet": (MobileNet, (3, 16, 16)),
    "unet": (UNet, (1, 16, 16)),
    "tcn": (TCN, (8, 20)),
    "resnet-8": (ResNet8, (3, 16, 16)),
    "autoencoder": (autoencoder, (64,)),
    "mixer": (Mixer, (3, 16, 16)),
    "vit": (ViT, (3, 16, 16)),
}
"""What builds each, and the shape of one input."""


def built(kind: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network with statistics of some data, and two inputs."""
    torch.manual_seed(seed)
    make, shape = KINDS[kind]
    net = make().train()
    with torch.no_grad():
        for _ in range(2):
            net(torch.randn(8, *shape))
    return net.eval(), torch.randn(2, *shape)
