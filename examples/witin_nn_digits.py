"""A script as a user of the vendor's library writes it: nothing in it knows chipfit.

    python examples/witin_nn_digits.py [--seeds 3] [--epochs 30 10 20]

Float, QAT and NAT training of a 16-32-64 CNN on scikit-learn's digits with the vendor's defaults (auto-scale, 8 bits),
each stage from the weights of the one before; then the accuracy of each on 20 noise draws at level 4 and 9.
"""

import argparse
import statistics

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from witin_nn import GlobalConfigFactory, LayerConfigFactory, WitinConv2d, WitinLinear


class Net(nn.Module):
    """Three convolutions and a linear layer."""

    def __init__(self):
        super().__init__()
        config = LayerConfigFactory.get_default_config
        self.conv1 = WitinConv2d(1, 16, 3, padding=1, layer_config=config())
        self.conv2 = WitinConv2d(16, 32, 3, padding=1, layer_config=config())
        self.conv3 = WitinConv2d(32, 64, 3, padding=1, layer_config=config())
        self.fc = WitinLinear(64 * 2 * 2, 10, layer_config=config())

    def forward(self, x):
        """Map images (N, 1, 8, 8) to logits (N, 10)."""
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        return self.fc(x.flatten(1))


def build(stage, level=4, state=None):
    """Set the global configuration for a stage and build the network under it."""
    config = GlobalConfigFactory.get_float_train_wtm2101_config()
    config.scale_x, config.scale_weight, config.scale_y = 16, 64, 8
    config.use_quantization = stage != "float"
    config.noise_level = level if stage == "nat" else 0
    net = Net()
    if state:
        net.load_state_dict(state)
    return net


def train(net, x, y, epochs, learning_rate):
    """Train with a plain loop; an epoch of auto-scale is a call of `net.train()`."""
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], learning_rate)
    for _ in range(epochs):
        net.train()
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    return net.eval()


@torch.no_grad()
def accuracy(net, x, y):
    """Share of right answers in percent."""
    return 100 * (net(x).argmax(1) == y).float().mean().item()


def main():
    """Train three seeds and print the mean figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs=3, default=(30, 10, 20))
    args = parser.parse_args()
    figures = {}
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        images, labels = load_digits(return_X_y=True)
        split = train_test_split(images, labels, test_size=0.25, random_state=seed, stratify=labels)
        x_train, x_test = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in split[:2])
        y_train, y_test = (torch.tensor(part) for part in split[2:])
        net = train(build("float"), x_train, y_train, args.epochs[0], 3e-3)
        figures.setdefault("float", []).append((accuracy(net, x_test, y_test),))
        # A float network has no io_max yet: an epoch at learning rate 0 collects it.
        trained = {"float-trained": train(build("quant", state=net.state_dict()), x_train, y_train, 1, 0.0)}
        trained["QAT"] = train(build("quant", state=net.state_dict()), x_train, y_train, args.epochs[1], 1e-3)
        trained["NAT"] = train(build("nat", state=trained["QAT"].state_dict()), x_train, y_train, args.epochs[2], 1e-3)
        for name, net in trained.items():
            quantised = accuracy(build("quant", state=net.state_dict()).eval(), x_test, y_test)
            row = [quantised]
            for level in (4, 9):
                noisy = build("nat", level, net.state_dict()).eval()
                draws = []
                for chip in range(20):
                    torch.manual_seed(1000 + chip)
                    draws.append(accuracy(noisy, x_test, y_test))
                row += [statistics.fmean(draws), min(draws)]
            figures.setdefault(name, []).append(tuple(row))
    print(f"{'trained as':<14} {'quantised':>9} {'noise 4':>8} {'worst':>6} {'noise 9':>8} {'worst':>6}")
    for name, rows in figures.items():
        means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
        print(
            f"{name:<14} "
            + " ".join(f"{value:>{width}.2f}" for value, width in zip(means, (9, 8, 6, 8, 6), strict=False))
        )


if __name__ == "__main__":
    main()
