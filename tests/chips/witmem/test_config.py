"""The two configurations: where a value comes from, copies, printing."""

import copy
import pickle

import pytest
import torch

from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.config import SingletonMeta, WitinGlobalConfig, WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType, HardwareType, NoiseModel, ParamType, TargetPlatform
from chipfit.errors import ChipfitWarning, InvalidValueError, UnknownOptionError


@pytest.fixture
def shared():
    """The global configuration; each test starts with a fresh one."""
    return WitinGlobalConfig()


def test_enums_have_the_vendor_numbers():
    assert {e.name: e.value for e in TargetPlatform} == {"WTM2101": 1, "WTM2100": 2, "ANKE": 3, "HE01": 11, "HE03": 12}
    assert {e.name: e.value for e in HardwareType} == {"ARRAY": 1, "VPU": 2}
    assert {e.name: e.value for e in NoiseModel} == {"NORMAL": 1, "ARRMDL": 2, "MBS": 3, "SIMPLE": 4}
    assert {e.name: e.value for e in HandleNegInType} == {"FALSE": 1, "PN": 2, "Shift": 3}
    assert {e.name: e.value for e in ParamType} == {"WITIN_AUTO": 1, "WITIN_GLOBAL": 2}


def test_global_is_one_object(shared):
    assert WitinGlobalConfig() is shared
    assert copy.deepcopy(shared) is shared
    shared.scale_x = 77
    assert WitinGlobalConfig().scale_x == 77


def test_layer_copies_the_global_at_construction(shared):
    shared.scale_x = 16
    shared.bias_d = torch.tensor([1.0, 2.0])
    config = WitinLayerConfig(1)
    shared.scale_x = 32
    shared.bias_d.add_(5)  # in place: the copy must not share memory
    assert config.scale_x == 16
    assert config.bias_d.tolist() == [1.0, 2.0]
    assert WitinLayerConfig(1).scale_x == 32


def test_keyword_beats_global_and_witin_global_means_global(shared):
    shared.scale_x = 16
    assert WitinLayerConfig(1, scale_x=4).scale_x == 4
    assert WitinLayerConfig(1, scale_x=ParamType.WITIN_GLOBAL).scale_x == 16
    assert shared.scale_x == 16


def test_g_algo_is_required_and_free():
    with pytest.raises(TypeError, match="G_algo"):
        WitinLayerConfig()
    assert WitinLayerConfig(G_algo="anything").G_algo == "anything"


def test_unknown_keyword_names_the_nearest():
    with pytest.raises(UnknownOptionError, match=r"x_quant_bit'.*Did you mean 'x_quant_bits'") as caught:
        WitinLayerConfig(1, x_quant_bit=8)
    assert isinstance(caught.value, TypeError)  # what Python itself raises
    assert isinstance(caught.value, ValueError)


def test_target_platform_keyword_works():
    assert WitinLayerConfig(1, target_platform=TargetPlatform.WTM2101).target_platform is TargetPlatform.WTM2101


def test_float_scale_as_keyword_works():
    assert WitinLayerConfig(1, scale_x=0.5).scale_x == 0.5


def test_noise_without_quantisation_is_refused_by_the_constructor_only(shared):
    with pytest.raises(InvalidValueError, match="When noise_level > 0, use_quantization must be true!") as caught:
        WitinLayerConfig(1, noise_level=4)
    assert isinstance(caught.value, AssertionError)
    with pytest.raises(InvalidValueError, match="use_quantization must be true"):
        WitinLayerConfig(1, noise_level=0.5, use_quantization=False)
    assert WitinLayerConfig(1, noise_level=4, use_quantization=True).noise_level == 4
    config = WitinLayerConfig(1)
    config.noise_level = 4
    assert config.noise_level == 4
    with pytest.raises(InvalidValueError, match="use_quantization must be true"):
        config.validation_checker()
    shared.noise_level = 4  # not a keyword: copied without the test
    assert WitinLayerConfig(1).noise_level == 4
    shared.use_quantization = True
    assert WitinLayerConfig(1, noise_level=5).noise_level == 5


def test_index_counts_constructions():
    first, second = WitinLayerConfig(1), WitinLayerConfig(1)
    assert second.index == first.index + 1


def test_copies_keep_index_and_values():
    config = WitinLayerConfig("g", x_quant_bits=10, bias_d=torch.tensor([1.0, 2.0]))
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), copy.copy(config)):
        assert (twin.index, twin.G_algo, twin.x_quant_bits) == (config.index, "g", 10)
        assert twin.bias_d.tolist() == [1.0, 2.0]
    deep = copy.deepcopy(config)
    deep.bias_d.zero_()
    assert config.bias_d.tolist() == [1.0, 2.0]
    assert WitinLayerConfig(1).index == config.index + 1


def test_layer_copies_its_configuration():
    config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=16, scale_weight=64, scale_y=8)
    layer = WitinLinear(3, 2, layer_config=config)
    x = torch.rand(4, 3)
    y = layer(x)
    config.scale_x, config.use_quantization, config.scale_y = 1, False, 0.1
    assert torch.equal(layer(x), y)
    assert layer.layer_config is config
    assert layer.index == config.index


def test_printed_tables(shared):
    shared.scale_x = 32
    lines = str(shared).splitlines()
    assert lines[0] == "------------ WitinGlobalConfig ------------"
    assert f"{'scale_x:':<23}32" in lines
    assert f"{'use_to_linear:':<23}False" in lines
    assert f"{'handle_neg_in:':<23}HandleNegInType.FALSE" in lines
    config = WitinLayerConfig(7, scale_y=4)
    lines = str(config).splitlines()
    assert lines[0] == "------------ WitinLayerConfig ------------"
    assert lines[1] == f"{'index:':<23}{config.index}"
    assert lines[2] == f"{'G_algo:':<23}7"
    assert f"{'to_linear:':<23}False" in lines
    assert f"{'scale_y:':<23}4" in lines


def test_singletons_are_listed_by_class(shared):
    assert SingletonMeta._instances[WitinGlobalConfig] is shared

    class Mine(metaclass=SingletonMeta):
        def __init__(self, value=1):
            self.value = value

    assert Mine(3) is Mine()
    assert Mine().value == 3
    shared.scale_x = 77
    SingletonMeta._instances.clear()  # how scripts start over
    assert WitinGlobalConfig() is not shared
    assert WitinGlobalConfig().scale_x == 1


def test_loading_a_pickled_global_configuration_leaves_the_live_one_alone():
    config = WitinGlobalConfig()
    saved = pickle.dumps(config)
    config.scale_x = 32
    assert pickle.loads(saved) is config
    assert copy.deepcopy(config) is config
    assert config.scale_x == 32


def test_use_noise_of_the_manual_is_explained():
    with pytest.warns(ChipfitWarning, match="noise_level above 0 turns noise on"):
        WitinGlobalConfig().use_noise = True
