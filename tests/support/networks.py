"""Ordinary networks, written with torch.nn alone, that the conversion tests put on chips."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """Two levels down, two levels up by transposed convolutions, joined by skip connections."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _block(1, width), _block(width, 2 * width), _block(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.merge2 = _block(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge1 = _block(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.merge2(torch.cat([self.up2(c), b], dim=1))
        return self.head(self.merge1(torch.cat([self.up1(b), a], dim=1)))


class DsCnn(nn.Module):
    """Depthwise-separable CNN for keywords."""

    def __init__(self, width: int = 16, classes: int = 12) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, (10, 4), (2, 2), (5, 1)), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Dropout(0.2))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(x.view(x.size(0), -1))


class GruKeywords(nn.Module):
    """Convolution over time, a GRU, a linear layer on its last state."""

    def __init__(self, features: int = 10, hidden: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv1d(features, hidden, 3, stride=2)
        self.norm = nn.BatchNorm1d(hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        y, _ = self.gru(x.transpose(1, 2))
        return self.fc(F.dropout(y[:, -1], 0.1, self.training))


class LstmClassifier(nn.Module):
    """An LSTM over a sequence of vectors."""

    def __init__(self, features: int = 8, hidden: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out[:, -1, :])


class Autoencoder(nn.Module):
    """Linear layers with activations of every kind."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(size, 24), nn.BatchNorm1d(24), nn.LeakyReLU(0.125), nn.Linear(24, 12), nn.SiLU(), nn.Linear(12, 6)
        )
        self.decoder = nn.Sequential(
            nn.Tanh(),
            nn.Linear(6, 12),
            nn.PReLU(),
            nn.Linear(12, 24),
            nn.Hardswish(),
            nn.Linear(24, size),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Transformer(nn.Module):
    """One encoder block: attention by hand, layer norms, a GELU network."""

    def __init__(self, size: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.size, self.heads = size, heads
        self.q, self.k, self.v, self.out = (nn.Linear(size, size) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.size // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))
        weights = (q @ k.transpose(2, 3) / math.sqrt(self.size // self.heads)).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(x.shape[0], x.shape[1], self.size)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x)))).mean(dim=1)


EXAMPLES = {
    UNet: (1, 16, 16),
    DsCnn: (1, 25, 10),
    GruKeywords: (10, 21),
    LstmClassifier: (6, 8),
    Autoencoder: (32,),
    Transformer: (5, 16),
}
"""Shape of one sample by network."""

ZOO = ("resnet18", "mobilenetv2_wd2", "squeezenet_v1_1", "mobilenetv3_small_w7d20", "efficientnet_b0", "seresnet18")
"""Networks of the package pytorchcv."""


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics that folding cannot overlook, and biases that leave no ReLU dead."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            size = module.running_mean.shape
            module.running_mean.copy_(0.1 * torch.randn(size, generator=generator))
            module.running_var.copy_(0.75 + 0.5 * torch.rand(size, generator=generator))
            module.weight.data.copy_(0.7 + 0.5 * torch.rand(size, generator=generator))
            module.bias.data.copy_(0.2 * torch.randn(size, generator=generator))
    return net.eval()


def from_zoo(name: str) -> nn.Module:
    """A network of pytorchcv with random weights, for images of 64x64."""
    zoo = pytest.importorskip("pytorchcv.model_provider", reason="pytorchcv 0.0.67 is installed with --no-deps")
    torch.manual_seed(0)
    net = lively(zoo.get_model(name, pretrained=False))
    for part in (net.features, net.output):  # 64x64 images leave 2x2 pixels, less than the final 7x7 window
        if isinstance(getattr(part, "final_pool", None), nn.AvgPool2d):
            part.final_pool = nn.AdaptiveAvgPool2d(1)
    return net


class Residual(nn.Module):
    """What most image networks are made of: convolutions with norms, a sum, pools, a linear layer."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = _block(3, width)
        self.left, self.right = _block(width, width), nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        x = torch.relu(self.left(x) + self.right(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
