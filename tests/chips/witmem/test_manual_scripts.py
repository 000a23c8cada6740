"""Scripts as the manual's readers write them, section by section, run as they are: each is typed here in our words."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import witin_nn

IMPORTS = [
    "import witin_nn; layers, config = witin_nn, witin_nn",
    "import witin_nn.nn as layers; import witin_nn.interface as config",
    "from witin_nn import nn as layers, interface as config",
    "from witin_nn.interface import ConfigFactory as config; from witin_nn import nn as layers",
    "from witin_nn.nn import *; from witin_nn.interface import *; import sys; layers = config = sys.modules[__name__]",
]
NETWORK = """
import torch
import torch.nn.functional as F
import witin_nn
from witin_nn import GlobalConfigFactory, HandleNegInType, LayerConfigFactory, NoiseModel, WitinLayerConfig

torch.manual_seed(0)
x, target = torch.randn(32, 8), torch.randn(32, 3)

class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(8, 16)
        self.fc2 = torch.nn.Linear(16, 3)
    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))

class WitinNet(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = witin_nn.WitinLinear(8, 16, layer_config=config())
        self.fc2 = witin_nn.WitinLinear(16, 3, layer_config=config())
    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))

def train(net, steps=30):
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    net.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
"""


def run(script):
    """Execute a script the way `python script.py` would; its names."""
    names = {"__name__": "user_script"}
    sys.modules["user_script"] = module = type(sys)("user_script")
    module.__dict__.update(names)
    try:
        exec(compile(textwrap.dedent(script), "user_script.py", "exec"), module.__dict__)
    finally:
        del sys.modules["user_script"]
    return module.__dict__


@pytest.mark.parametrize("imports", IMPORTS)
def test_import_styles(imports):
    names = run(
        imports + "\nlayer = layers.WitinLinear(2, 3, layer_config=config.LayerConfigFactory.get_default_config())"
    )
    assert names["layer"](torch.ones(4, 2)).shape == (4, 3)


def test_every_name_of_a_module_is_the_packages_own():
    for module in (witin_nn.core, witin_nn.nn, witin_nn.utils, witin_nn.interface):
        for name in module.__all__:
            assert getattr(module, name) is getattr(witin_nn, name)
    assert witin_nn.utils.WITIN_NN_GLOBAL_INFOS().VERSION == "0.1.3"


def test_float_training_is_torchs():
    names = run(
        NETWORK
        + """
GlobalConfigFactory.get_float_train_torch_config()
plain = TorchNet()
net = WitinNet(LayerConfigFactory.get_default_config)
net.load_state_dict(plain.state_dict(), strict=False)
losses, expected = train(net), train(plain)
"""
    )
    assert names["losses"] == names["expected"]


@pytest.mark.parametrize("level", [0, 4])
def test_quantised_and_noisy_training_option_by_option(level):
    names = run(
        NETWORK
        + f"""
def config():
    config = LayerConfigFactory.get_default_config()
    config.use_quantization = True
    config.noise_model = NoiseModel.NORMAL
    config.noise_level = {level}
    config.w_clip = 2
    config.bias_row_N = 8
    config.handle_neg_in = HandleNegInType.PN
    config.x_quant_bits = 8
    config.y_quant_bits = 8
    config.scale_x = 32
    config.scale_y = 32
    config.scale_weight = 64
    config.shift_num = 1
    config.to_linear = False
    config.use_auto_scale = True
    config.auto_scale_updata_step = 5
    return config

net = WitinNet(config)
losses = train(net)
torch.manual_seed(1)
first = net.eval()(x)
again = net(x)
"""
    )
    assert names["losses"][-1] < 0.8 * names["losses"][0]
    assert torch.equal(names["first"], names["again"]) == (level == 0)


@pytest.mark.parametrize("preset", ["get_qat_train_wtm2100_config", "get_qat_nat_train_wtm2100_config"])
def test_a_preset_is_the_same_options_by_hand(preset, capfd):
    """The losses of a script that starts from a preset are those of the script that sets every option itself."""
    by_preset = run(
        NETWORK + f"GlobalConfigFactory.{preset}()\nlosses = train(WitinNet(LayerConfigFactory.get_default_config))"
    )
    assert capfd.readouterr() == ("", "")
    noise, steps = (4, 2) if "nat" in preset else (0, 20)
    witin_nn.SingletonMeta._instances.clear()
    by_hand = run(
        NETWORK
        + f"""
losses = train(WitinNet(lambda: WitinLayerConfig(
    G_algo=1, use_quantization=True, noise_level={noise}, handle_neg_in=HandleNegInType.PN,
    scale_x=16, scale_y=16, scale_weight=16, auto_scale_updata_step={steps},
)))
"""
    )
    assert by_preset["losses"] == by_hand["losses"]
    assert len(set(by_hand["losses"])) == 30


def test_ten_bits_with_a_digital_bias():
    names = run(
        NETWORK
        + """
config = LayerConfigFactory.get_default_config()
config.use_quantization, config.use_auto_scale = True, False
config.x_quant_bits = config.y_quant_bits = 10
config.scale_x, config.scale_weight, config.scale_y = 256, 64, 64
config.bias_d = torch.tensor([0.5, 0.25, 0.0])
layer = witin_nn.WitinLinear(8, 3, layer_config=config)
y = layer(x.abs())
codes = y * config.scale_y
"""
    )
    assert torch.equal(names["codes"], names["codes"].round())
    assert names["codes"].abs().max() > 32


def test_scales_extracted_from_a_checkpoint(tmp_path):
    """Section 2.6: train, save, and compute every scale from the file's io_max by hand."""
    names = run(
        NETWORK
        + f"""
GlobalConfigFactory.get_qat_train_wtm2100_config()
net = WitinNet(LayerConfigFactory.get_default_config)
train(net)
torch.save(net.state_dict(), r"{tmp_path / "net.pth"}")
scales = {{}}
for key, x_max in torch.load(r"{tmp_path / "net.pth"}").items():
    if key.endswith("io_max"):
        x_quant_bits = 9 if "_x_" in key else 8
        scales[key] = 2 ** (x_quant_bits - 1) / 2 ** (torch.log2(x_max).ceil())
other = WitinNet(LayerConfigFactory.get_default_config)
other.load_state_dict(torch.load(r"{tmp_path / "net.pth"}"))
same = torch.equal(other.eval()(x), net.eval()(x))
"""
    )
    assert names["same"]
    assert len(names["scales"]) == 6
    for key, scale in names["scales"].items():
        layer, observer = key.split(".")[:2]
        assert getattr(getattr(names["net"], layer), observer).scale == scale


def test_three_steps_each_from_the_one_before(tmp_path):
    """Section 2.7: float with w_clip, QAT from it, NAT from that; each measured in all three ways."""
    names = run(
        NETWORK
        + f"""
losses = {{}}
for step, preset in enumerate(("get_float_train_torch_config", "get_qat_train_wtm2100_config",
                               "get_qat_nat_train_wtm2100_config")):
    config = getattr(GlobalConfigFactory, preset)()
    config.w_clip = 1 if step == 0 else None
    net = WitinNet(LayerConfigFactory.get_default_config)
    if step:
        net.load_state_dict(torch.load(r"{tmp_path}/" + str(step - 1) + ".pth"))
    losses[preset] = train(net, 60 if step == 0 else 30)
    torch.save(net.state_dict(), r"{tmp_path}/" + str(step) + ".pth")
    for measured in ("get_float_train_torch_config", "get_qat_train_wtm2100_config"):
        getattr(GlobalConfigFactory, measured)().noise_level = 0
        test = WitinNet(LayerConfigFactory.get_default_config)
        test.load_state_dict(net.state_dict())
        losses[preset, measured] = F.mse_loss(test.eval()(x), target).item()
"""
    )
    losses = names["losses"]
    trained = losses["get_float_train_torch_config"]
    assert trained[-1] < 0.7 * trained[0]
    assert losses["get_qat_train_wtm2100_config"][-1] < trained[0]
    assert all(loss < trained[0] for key, loss in losses.items() if isinstance(key, tuple))


@pytest.mark.parametrize(
    ("name", "arguments", "plain"),
    [
        ("WitinGELU", (), nn.GELU()),
        ("WitinSigmoid", (), nn.Sigmoid()),
        ("WitinTanh", (), nn.Tanh()),
        ("WitinPReLU", (), nn.PReLU()),
        ("WitinElementAdd", (), torch.add),
        ("WitinElementMul", (), torch.mul),
        ("WitinMean", (1,), lambda x: torch.mean(x, 1)),
        ("WitinCat", (1,), lambda a, b: torch.cat((a, b), 1)),
        ("WitinBatchNorm2d", (3,), nn.BatchNorm2d(3)),
        ("WitinSqrt", (), torch.sqrt),
        ("WitinElementDivide", (), torch.div),
    ],
)
def test_digital_operators_of_table_1_are_torchs_in_float(name, arguments, plain):
    layer = getattr(witin_nn, name)(*arguments, layer_config=witin_nn.LayerConfigFactory.get_default_config())
    inputs = [torch.rand(2, 3, 4, 5) + 0.5 for _ in range(2)]
    inputs = inputs if name.startswith("WitinElement") or name == "WitinCat" else inputs[:1]
    torch.testing.assert_close(layer(*inputs), plain(*inputs))


def test_every_option_of_table_2_as_keyword_and_as_attribute():
    table = {
        "target_platform": witin_nn.TargetPlatform.WTM2101,
        "hardware": witin_nn.HardwareType.ARRAY,
        "w_clip": None,
        "bias_row_N": 8,
        "use_quantization": False,
        "noise_model": witin_nn.NoiseModel.NORMAL,
        "noise_level": 0,
        "to_linear": False,
        "use_auto_scale": True,
        "scale_x": 1,
        "scale_y": 1,
        "scale_weight": 1,
        "handle_neg_in": witin_nn.HandleNegInType.FALSE,
        "shift_num": 1,
        "x_quant_bits": 8,
        "y_quant_bits": 8,
        "weight_quant_bits": 8,
        "bias_d": torch.tensor(0),
    }
    config, given = witin_nn.WitinLayerConfig(G_algo=1), witin_nn.WitinLayerConfig(G_algo=1, **table)
    for name, value in table.items():
        setattr(config, name, value)
        assert getattr(config, name) == getattr(given, name) == value


CONFIG_FACTORY = """\
from witin_nn.core import WitinGlobalConfig, WitinLayerConfig, NoiseModel, HandleNegInType, SingletonMeta
import torch


class GlobalConfigFactory:
    @staticmethod
    def training(noise=0):
        settings = WitinGlobalConfig()
        settings.noise_model = NoiseModel.NORMAL
        settings.use_quantization = True
        settings.noise_level = noise
        settings.handle_neg_in = HandleNegInType.PN
        settings.scale_x = settings.scale_y = settings.scale_weight = 32
        settings.auto_scale_updata_step = 3
        settings.bias_d = torch.tensor(0)
        return settings

    @staticmethod
    def start_over():
        SingletonMeta._instances.clear()
        return WitinGlobalConfig()


class LayerConfigFactory:
    @staticmethod
    def plain():
        return WitinLayerConfig(G_algo=1)

    @staticmethod
    def wide():
        settings = WitinLayerConfig(G_algo=1, x_quant_bits=10)
        settings.handle_neg_in = HandleNegInType.FALSE
        return settings
"""
TRAINING = """\
import torch
from ConfigFactory import GlobalConfigFactory, LayerConfigFactory
from witin_nn import WitinLinear

config = GlobalConfigFactory.training()
first, second = WitinLinear(6, 5, layer_config=LayerConfigFactory.plain()), WitinLinear(
    5, 2, layer_config=LayerConfigFactory.wide())
print(first.mode, first.layer_config.handle_neg_in.name, first.layer_config.scale_x, second.layer_config.x_quant_bits)
for step in range(4):
    second(torch.relu(first(torch.full((3, 6), 1.5)))).sum().backward()
print(first.autoscale_x_obj.scale, GlobalConfigFactory.training(4) is config)
print(WitinLinear(2, 2, layer_config=LayerConfigFactory.plain()).mode, GlobalConfigFactory.start_over().scale_x)
"""


def test_a_users_own_config_factory(tmp_path):
    (tmp_path / "ConfigFactory.py").write_text(CONFIG_FACTORY)
    (tmp_path / "train.py").write_text(TRAINING)
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "quant PN 32 10\n128.0 True\nnat 1\n"
    assert done.stderr == ""
