"""Where the vendor's kit fails or differs from sense; docs/vendor-differences-ingenic.md names these tests."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from chipfit import chip, convert, lower, set_mode
from chipfit.errors import ChipfitError, ChipfitWarning
from chipfit.export import export_magik
from ingenic_magik_trainingkit.QuantizationTrainingPlugin.python import ops, quantize_ops

Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}


def test_errors_are_exceptions_that_say_what_where_and_what_else():
    with pytest.raises(ValueError, match=r"Conv2D.in_channels.*got 48.*multiples of 32 on target T40"):
        ops.Conv2D(48, 32, target_device="T40")
    with pytest.raises(ChipfitError, match=r"Route.*bit width.*8, 4"):
        ops.Route()([(torch.rand(1, 16, 2, 2), 8, 0.0), (torch.rand(1, 16, 2, 2), 4, 0.0)])


def test_evaluation_runs_on_a_cpu_with_running_statistics():
    conv = ops.Conv2D(32, 32, enable_batch_norm=True, target_device="T40", **Q8).eval()
    x = torch.rand(1, 32, 4, 4)
    alone, in_batch = conv((x, 8, 0.0))[0], conv((torch.cat([x, 5 * x]), 8, 0.0))[0][:1]
    assert torch.equal(alone, in_batch)


def test_split_takes_tuples():
    parts = ops.Channel_Split([16, 48])((torch.rand(1, 64, 2, 2), 8, -1.0))
    assert [(p[0].shape[1], *p[1:]) for p in parts] == [(16, 8, -1.0), (48, 8, -1.0)]


def test_shuffle_takes_tuples():
    x = torch.rand(1, 128, 2, 2)
    y, bits, low = ops.Pixel_Shuffle(2)((x, 4, -1.0))
    assert torch.equal(y, nn.functional.pixel_shuffle(x, 2))
    assert (bits, low) == (4, -1.0)


def test_embedding_of_two_inputs():
    layer = ops.Embedding(11, 4, multi_inputs=True)
    y = layer(torch.tensor([[1, 2, 3, 4]]))
    table = layer.embedding.weight
    assert torch.equal(y[0], torch.stack([torch.cat([table[1], table[3]]), torch.cat([table[2], table[4]])]))


def test_embedding_index_outside_the_table():
    with pytest.raises(ValueError, match="Embedding"):
        ops.Embedding(4, 4, multi_inputs=False)(torch.tensor([[4]]))


def test_hswish_is_quantised_with_sign():
    conv = ops.Conv2D(32, 32, activation_fn=ops.Hswish(32), enable_bias=False, target_device="T40", **Q8)
    with torch.no_grad():
        conv.Conv2d.weight.fill_(-0.1)
    y, _, low = conv((torch.full((1, 32, 3, 3), 5 / 288), 8, 0.0))  # 288 products: a sum of -0.5
    assert low == -6.0
    assert torch.allclose(6 * y, torch.tensor(-0.5 * 2.5 / 6), atol=6 / 255)


def test_lstm_without_bias():
    lstm = ops.LSTM(6, 5, bias=False)
    assert list(lstm.state_dict()) == ["weight_l0"]
    assert lstm(torch.rand(2, 3, 6))[0][0].shape == (2, 3, 5)


def test_lstm_initial_states():
    x, h, c = torch.rand(2, 3, 6), torch.rand(2, 5), torch.rand(2, 5)
    plain = ops.LSTM(6, 5)
    given = ops.LSTM(6, 5, initial_state_fw=(h, c))
    given.load_state_dict(plain.state_dict())
    zeros = ops.LSTM(6, 5, initial_state_fw=(torch.zeros(1), torch.zeros(1)))
    zeros.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x)[0][0], zeros(x)[0][0])
    assert not torch.allclose(plain(x)[0][0], given(x)[0][0])


def test_lstm_starts_at_the_lowest_code_on_the_t40_family():
    x = torch.rand(2, 3, 6)
    t40, txx = ops.LSTM(6, 5, target_device="T40"), ops.LSTM(6, 5, initial_state_fw=(-torch.ones(1), -torch.ones(1)))
    txx.load_state_dict(t40.state_dict())
    assert torch.equal(t40(x)[0][0], txx(x)[0][0])


@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, (2, 5)), ({"bidirectional": True}, (2, 2, 5)), ({"target_device": "T40"}, (2, 1, 5)),
     ({"target_device": "T40", "bidirectional": True}, (2, 2, 5)),
     ({"num_layers": 3, "bidirectional": True}, (2, 2, 5))],
)  # fmt: skip
def test_lstm_states(options, shape):
    lstm = ops.LSTM(6, 5, return_output_states=True, **options)
    (y, bits, low), h, c = lstm((torch.rand(2, 3, 6), 32, 0.0))
    assert y.shape == (2, 3, 10 if options.get("bidirectional") else 5)
    assert (bits, low) == (32, -1.0)
    assert h.shape == c.shape == shape
    if not options:
        assert torch.equal(h, y[:, -1])


def test_lstm_backwards_reads_from_the_end():
    lstm = ops.LSTM(6, 5, bidirectional=True)
    lstm.load_state_dict({k: lstm.state_dict()[k.replace("_reverse", "")] for k in lstm.state_dict()})
    x = torch.rand(1, 4, 6)
    y = lstm(x)[0][0]
    assert torch.allclose(y[..., 5:], lstm(x.flip(1))[0][0].flip(1)[..., :5], atol=1e-6)


@pytest.mark.parametrize(("target", "low", "high"), [("T40", -1.0, 1.0), ("Txx", -1.0, 127 / 128)])
def test_quantised_lstm_feeds_codes_back(target, low, high):
    lstm = ops.LSTM(6, 5, quantize=True, weight_bitwidth=8, output_bitwidth=8, target_device=target, clip_max_value=1.0)
    (y, bits, _), h = lstm((torch.rand(2, 3, 6), 8, 0.0))
    codes = (y * 255 - 1) / 2 if target == "T40" else y * 128
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert low <= y.min() and y.max() <= high
    assert bits == 8
    assert torch.equal(h.reshape(2, 5), y[:, -1])


def test_regions_of_interest_with_negative_data():
    y, _, low = ops.RoIPooling(1)((-torch.ones(1, 2, 4, 4), 8, -1.0), torch.tensor([[0.0, 1.0, 1.0, 2.0, 2.0]]))
    assert y.flatten().tolist() == [-1, -1]
    assert low == -1.0


def test_regions_of_interest_from_their_own_image():
    x = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]).requires_grad_()
    rois = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]])
    y = ops.RoIPooling(1, per_image=True)(x, rois)
    assert y.item() == 1
    y.sum().backward()
    assert x.grad[1].sum() == 1
    with pytest.warns(ChipfitWarning, match="per_image"):
        assert ops.RoIPooling(1)(x, rois).item() == 0


def test_region_outside_the_image_is_zero_and_of_no_image_an_error():
    x = torch.ones(1, 1, 4, 4)
    assert ops.RoIPooling(2)(x, torch.tensor([[0.0, 9.0, 9.0, 9.0, 9.0]])).sum() == 0
    with pytest.raises(ValueError, match="RoIPooling"):
        ops.RoIPooling(2)(x, torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0]]))


def test_attention_bias_starts_at_zero():
    assert ops.MILPoolAttention(32).bias.item() == 0


def test_max_runs_on_x2500():
    ops.Max(target_device="X2500")


@pytest.mark.parametrize("quantise_last", [False, True])
def test_last_layers_evaluate(quantise_last):
    x = (torch.rand(1, 64, 2, 2), 8, 0.0)
    options = {"quantize": True, "quantize_last_feature": quantise_last, "last_layer": True, "output_bitwidth": 8}
    for layer, given in [
        (ops.Shortcut(64, target_device="T40", **options), [x, x]),
        (ops.Mul(64, target_device="T40", **options), [x, x]),
        (ops.Se_Block(64, 2, weight_bitwidth=8, target_device="T40", **options), x),
    ]:
        y = layer.eval()(given)
        assert isinstance(y, torch.Tensor)
        on_grid = torch.allclose(y * 255, (y * 255).round(), atol=1e-3)
        assert on_grid == quantise_last


def test_names_from_the_manual():
    assert ops.FullyConnected is ops.FullConnected
    assert ops.LeakyReLu is ops.LeakyReLU
    assert ops.PReLu is ops.PReLU
    assert ops.Channel_split is ops.Channel_Split


def test_foreign_activation_is_dropped_with_a_warning():
    with pytest.warns(ChipfitWarning, match="Sigmoid"):
        ops.Conv2D(32, 32, activation_fn=nn.Sigmoid(), target_device="T40", **Q8)


def test_activation_lost_at_32_bits_is_said():
    with pytest.warns(ChipfitWarning, match="output_bitwidth=32.*ReLU6"):
        conv = ops.Conv2D(32, 32, quantize=True, weight_bitwidth=8, target_device="T40")
    assert conv((torch.rand(1, 32, 4, 4), 8, 0.0))[0].min() < 0


def test_squeeze_and_excitation_checks_its_hidden_layer():
    with pytest.raises(ValueError, match=r"Se_Block.rate"):
        ops.Se_Block(64, 4, target_device="T40", strict=True)


def test_automatic_widths_have_limits():
    with pytest.raises(ValueError, match=r"Conv2D.out_channels.*at most 64"):
        ops.Conv2D(16, 128, quantize=True, weight_bitwidth=4, output_bitwidth=4)
    wide = ops.Conv2D(16, 128, quantize=True, weight_bitwidth=4, output_bitwidth=4, auto_bitwidth=False)
    assert wide.output_bitwidth == 4


@pytest.mark.parametrize(
    ("layer", "widths"),
    [
        (lambda **k: ops.Conv2D(3, 16, first_layer=True, **k), (4, 5)),
        (lambda **k: ops.Conv2D(3, 32, first_layer=True, **k), (4, 4)),
        (lambda **k: ops.Conv2D(128, 64, 1, 1, 1, **k), (5, 5)),
        (lambda **k: ops.Conv2D(144, 128, 1, 1, 1, **k), (4, 4)),
        (lambda **k: ops.Conv2D(16, 10, last_layer=True, **k), (4, 32)),
        (lambda **k: ops.DepthwiseConv2D(128, **k), (8, 4)),
        (lambda **k: ops.FullConnected(128, 128, **k), (5, 4)),
        (lambda **k: ops.FullConnected(128, 10, last_layer=True, **k), (5, 32)),
    ],
)
def test_automatic_widths(layer, widths):
    built = layer(quantize=True, weight_bitwidth=4, output_bitwidth=4)
    assert (built.weight_bitwidth, built.output_bitwidth) == widths


def test_txx_shortcut_keeps_the_width_of_its_inputs():
    x = (torch.full((1, 16, 2, 2), 7 / 31), 5, 0.0)
    y, bits, _ = ops.Shortcut(16, quantize=True, output_bitwidth=4)([x, x])
    assert bits == 5
    assert torch.equal(y, x[0])


def test_signatures_keep_the_manual_s_order():
    """Scripts pass arguments by position."""
    orders = {
        ops.BatchNorm: "in_channels activation_fn quantize first_layer input_bitwidth output_bitwidth clip_max_value "
        "auto_threshold target_device",
        ops.Conv2D: "in_channels out_channels stride kernel_h kernel_w activation_fn enable_batch_norm enable_bias "
        "padding groups dilation data_format quantize quantize_last_feature first_layer last_layer weight_bitwidth "
        "input_bitwidth output_bitwidth clip_max_value weight_factor target_device auto_bitwidth is_focus "
        "auto_threshold pre_lstm_layer",
        ops.FullConnected: "in_channels out_channels activation_fn enable_batch_norm enable_bias data_format quantize "
        "quantize_last_feature last_layer weight_bitwidth input_bitwidth output_bitwidth clip_max_value weight_factor "
        "target_device auto_bitwidth auto_threshold pre_lstm_layer",
        ops.LSTM: "input_size hidden_size num_layers bias bidirectional initial_state_fw initial_state_bw "
        "return_output_states batch_first use_squeeze quantize input_bitwidth weight_bitwidth output_bitwidth "
        "weight_factor target_device",
        ops.Shortcut: "out_channels activation_fn quantize quantize_last_feature last_layer input_bitwidth "
        "output_bitwidth clip_max_value target_device",
    }
    for operator, names in orders.items():
        found = list(inspect.signature(operator).parameters)
        assert found[: len(names.split())] == names.split()


def test_parts_that_pickles_name():
    for name in ("AWeight", "Conv2d_Q", "NOp", "QuantizeFeature", "QuantizeWeight", "batchNorm2d"):
        assert issubclass(getattr(quantize_ops, name), nn.Module)


def normalised_twins():
    """Two equal layers, of which a script changes the batch norm of the first."""
    torch.manual_seed(0)
    twins = [ops.Conv2D(32, 64, padding=1, enable_batch_norm=True, target_device="T40", **Q8) for _ in range(2)]
    twins[1].load_state_dict(twins[0].state_dict())
    for module in twins[0].modules():
        if type(module) is nn.BatchNorm2d:
            module.eps, module.momentum = 1e-3, 0.03
    return twins


@pytest.mark.parametrize("sync", [False, True])
def test_eps_and_momentum_that_a_script_sets_change_nothing(sync):
    """YOLOv5's initialisation sets them; spec section 1.4."""
    changed, untouched = normalised_twins()
    x = (torch.randint(0, 256, (4, 32, 5, 5)) / 255, 8, 0.0)
    if sync:  # on one CPU it computes what the plain one does
        changed = nn.SyncBatchNorm.convert_sync_batchnorm(changed)
    with pytest.warns(
        ChipfitWarning, match=r"Conv2D 32 -> 64, .*eps=0.001 is ignored.*momentum=0.03 is ignored"
    ) as seen:
        for _ in range(2):
            if not sync:  # it trains on a GPU alone
                assert torch.equal(changed.train()(x)[0], untouched.train()(x)[0])
            assert torch.equal(changed.eval()(x)[0], untouched.eval()(x)[0])
    assert len(seen) == 1
    kept = changed.BatchNorm2d.batch_norm
    assert (kept.eps, kept.momentum) == (1e-3, 0.03)
    assert torch.equal(kept.running_var, untouched.BatchNorm2d.batch_norm.running_var)


@pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
def test_programs_and_files_do_not_take_an_ignored_eps(tmp_path):
    x = torch.randint(0, 256, (2, 3, 5, 5)) / 255
    first = ops.Conv2D(3, 32, first_layer=True, target_device="T40", **Q8)
    programs, files = [], []
    for i, layer in enumerate(normalised_twins()):
        net = nn.Sequential(ops.Preprocess(0, 255.0, "T40"), first, layer).eval()
        programs.append(lower(net, x))
        files.append(export_magik(net, x, tmp_path / f"{i}.onnx").read_bytes())
    assert all(torch.equal(programs[0].tensors[name], tensor) for name, tensor in programs[1].tensors.items())
    assert files[0] == files[1]


@pytest.mark.filterwarnings("error::chipfit.errors.ChipfitWarning")
def test_a_converted_network_keeps_the_eps_and_momentum_that_it_came_with():
    conv, norm = nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32, eps=0.5, momentum=0.25)
    net = set_mode(convert(nn.Sequential(conv, norm, nn.ReLU()), chip("t40"), torch.rand(2, 3, 8, 8)), "float")
    x = torch.rand(2, 3, 8, 8)
    for step in (net, nn.Sequential(conv, norm, nn.ReLU())):
        step.train()(x)
    kept = next(module for module in net.modules() if isinstance(module, quantize_ops.batchNorm2d))
    assert (kept.eps, kept.momentum) == (0.5, 0.25)
    twin = nn.Sequential(conv, norm, nn.ReLU()).eval()
    assert torch.allclose(net.eval()(x), twin(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")  # of outputs at 32 bits
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("quantize", [True, False])
def test_quantised_layers_draw_their_weights_twice(bias, quantize):
    """The same seed then gives the same network as the vendor's kit: spec section 8."""

    def drawn(*given, **options):
        for _ in range(2 if quantize else 1):
            conv = nn.Conv2d(*given, bias=bias, **options)
        return conv.state_dict()

    common = {"quantize": quantize, "enable_bias": bias, "target_device": "Txx"}
    cases = [
        (lambda: ops.Conv2D(16, 32, **common), {"Conv2d": (16, 32, 3)}, {}),
        (
            lambda: ops.Conv1D(16, 32, quantize=quantize, bias=bias, target_device="Txx"),
            {"convd.Conv2d": (16, 32, (1, 3))},
            {},
        ),
        (lambda: ops.DepthwiseConv2D(32, **common), {"Conv2d": (32, 32, 3)}, {"groups": 32}),
        (lambda: ops.Se_Block(32, 2, **common), {"conv1.Conv2d": (32, 16, 1), "conv2.Conv2d": (16, 32, 1)}, {}),
        (lambda: ops.ConvTranspose2D(32, 64, **common | {"target_device": "T40"}), {"Conv2D.Conv2d": (32, 64, 3)}, {}),
    ]
    for build, parts, options in cases:
        torch.manual_seed(3)
        found = build().state_dict()
        torch.manual_seed(3)
        for name, sizes in parts.items():
            for key, wanted in drawn(*sizes, **options).items():
                assert torch.equal(found[f"{name}.{key}"], wanted), (name, key)
    torch.manual_seed(3)
    found = ops.FullConnected(32, 16, quantize=quantize, target_device="Txx").state_dict()
    torch.manual_seed(3)
    assert torch.equal(found["Linear.weight"], nn.Linear(32, 16).weight)
