"""A user's script, written against `witin_nn` only as in manual sections 2.4 and 2.7, runs unchanged and learns."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import witin_nn
from witin_nn import GlobalConfigFactory, HandleNegInType, LayerConfigFactory, TargetPlatform, WitinGlobalConfig


@pytest.fixture(autouse=True)
def shared():
    """The global configuration, put back afterwards."""
    config = WitinGlobalConfig()
    before = dict(vars(config))
    yield config
    vars(config).clear()
    vars(config).update(before)


def config_gen(scale_x, scale_weight, scale_y, bits=8):
    config = LayerConfigFactory.get_default_config()
    config.x_quant_bits = config.y_quant_bits = bits
    config.scale_x, config.scale_weight, config.scale_y = scale_x, scale_weight, scale_y
    config.bias_row_N = 8
    config.handle_neg_in = HandleNegInType.FALSE
    config.w_clip = 1.0 if not config.use_quantization else None
    return config


class WitinNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = witin_nn.WitinConv2d(1, 8, 3, 1, 1, layer_config=config_gen(64, 128, 16))
        self.conv2 = witin_nn.WitinConv2d(8, 16, 3, 2, 1, layer_config=config_gen(16, 128, 16))
        self.fc1 = witin_nn.WitinLinear(16 * 4 * 4, 32, layer_config=config_gen(32, 128, 16))
        self.fc2 = witin_nn.WitinLinear(32, 10, layer_config=config_gen(32, 128, 16))

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def digits():
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return (x[:1200], torch.tensor(labels[:1200])), (x[1200:], torch.tensor(labels[1200:]))


def train(model, data, epochs, lr):
    x, labels = data
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()


def accuracy(model, data):
    model.eval()
    with torch.no_grad():
        return (model(data[0]).argmax(1) == data[1]).float().mean().item()


@pytest.mark.filterwarnings("error::chipfit.errors.ChipfitWarning")
def test_float_then_quantised_then_noisy(tmp_path):
    torch.manual_seed(0)
    training, held_out = digits()

    # step 1: float, weights clipped
    GlobalConfigFactory.get_float_train_wtm2101_config()
    model = WitinNet()
    untrained = accuracy(model, held_out)
    train(model, training, epochs=4, lr=5e-3)
    as_float = accuracy(model, held_out)
    assert untrained < 0.3
    assert as_float > 0.85
    assert max(p.abs().max() for n, p in model.named_parameters() if n.endswith("weight")) <= 1.01
    assert model.fc1.autoscale_x_obj.io_max.item() == 8.0
    torch.save(model.state_dict(), tmp_path / "float.pth")

    # step 2: quantisation-aware, from the float model
    GlobalConfigFactory.get_qat_train_wtm2101_config()
    model = WitinNet()
    model.load_state_dict(torch.load(tmp_path / "float.pth"))
    assert model.fc1.layer_config.target_platform is TargetPlatform.WTM2101
    train(model, training, epochs=1, lr=1e-3)
    quantised = accuracy(model, held_out)
    assert quantised > as_float - 0.03
    with torch.no_grad():
        codes = model(held_out[0]) * model.fc2.autoscale_y_obj.get_scales()
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() <= 128
    torch.save(model.state_dict(), tmp_path / "qat.pth")

    # step 3: noise-aware, from the quantised model; deployed with its statistics
    GlobalConfigFactory.get_qat_nat_train_wtm2101_config()
    model = WitinNet()
    model.load_state_dict(torch.load(tmp_path / "float.pth"))
    train(model, training, epochs=1, lr=1e-3)
    noisy = [accuracy(model, held_out) for _ in range(3)]
    assert min(noisy) > as_float - 0.06
    assert len({round(model(held_out[0]).sum().item(), 4) for _ in range(3)}) == 3

    deployed = WitinNet().eval()
    GlobalConfigFactory.get_qat_train_wtm2101_config()
    clean = WitinNet().eval()
    for copy in (deployed, clean):
        copy.load_state_dict(torch.load(tmp_path / "qat.pth"))
    assert accuracy(clean, held_out) == quantised
    assert torch.equal(clean(held_out[0]), clean(held_out[0]))
    assert not torch.equal(deployed(held_out[0]), deployed(held_out[0]))


def test_the_manuals_mistyped_bits_work_as_meant():
    with pytest.warns(UserWarning, match="taken as 'x_quant_bits'"):
        config = LayerConfigFactory.get_default_config()
        config.x_quant_bit = 10
    assert witin_nn.WitinLinear(2, 2, layer_config=config).autoscale_x_obj.q_bit_in == 11


def test_the_manuals_scale_example():
    """Manual section 2.6: 8 bits and a largest value of 1.7309 make 64 codes per unit (the text's 128 is a slip)."""
    assert witin_nn.AutoScale.get_scale_from_max(1.7309, 8) == 64


def test_importing_is_silent():
    script = "import witin_nn; print(witin_nn.WITIN_NN_GLOBAL_INFOS().VERSION)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "0.1.3\n"
