"""Lowering of Ingenic networks: whole networks, single operators, exact codes, refusals, files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic import LSTM
from chipfit.chips.ingenic.program.ops import Finish
from chipfit.errors import ChipfitError, InvalidValueError, UnsupportedError
from chipfit.program import FastProgram, Grid, Program, load_program, lower, run, save_program, trace, verify
from support.ingenic.networks import Q8, Digits, InRow, pixels, trained


def proven(net: nn.Module, *batches: Tensor) -> Program:
    program = lower(net, batches[0])
    proof = verify(net, program, batches)
    assert proof.equal, str(proof)
    assert all(proof.codes.values())
    return program


@pytest.mark.parametrize("target", ["T40", "Txx"])
@pytest.mark.parametrize("bits", [8, 4])
def test_whole_network(bits: int, target: str, tmp_path: Any) -> None:
    torch.manual_seed(bits)
    net = trained(Digits(bits, target), pixels(32, 1, 8, 8))
    program = proven(net, pixels(16, 1, 8, 8, seed=1), pixels(40, 1, 8, 8, seed=2))
    assert program.chip == target.lower()
    save_program(tmp_path, program)
    again = load_program(tmp_path)
    image = pixels(3, 1, 8, 8, seed=3)
    assert again.nodes == program.nodes
    assert torch.equal(run(again, image), run(program, image))
    assert torch.equal(FastProgram(again)(image), net.eval()(image))


def test_codes_by_hand() -> None:
    """One weight of 1.0 (code 3 of 3, scale 1/3) on pixels of 0, 51 and 255: 0, 0.2 and 1.0 times 255 of clip 2."""
    conv = ops.Conv2D(
        1, 1, 1, 1, 1, None, enable_bias=False, first_layer=True, target_device="T40",
        **{**Q8, "weight_bitwidth": 2, "clip_max_value": 2.0},
    )  # fmt: skip
    with torch.no_grad():
        conv.Conv2d.weight.fill_(1.0)
    net = nn.Sequential(ops.Preprocess(0, 255.0, "T40"), conv)
    program = proven(net, torch.tensor([0, 51, 255]).view(1, 1, 1, 3) / 255)
    edges = trace(program, torch.tensor([0, 51, 255]).view(1, 1, 1, 3) / 255)
    assert edges["1.input"].flatten().tolist() == [0, 51, 255]
    assert program.tensors["1.weight"].flatten().tolist() == [3]
    assert edges["1.sum"].flatten().tolist() == [0, 153, 765]
    assert edges["1"].flatten().tolist() == [0, 26, 128]  # 25.5 is a tie, to the even 26; 127.5 to 128


@pytest.mark.parametrize("target", ["T40", "Txx"])
def test_moving_operators(target: str) -> None:
    class Net(InRow):
        def __init__(self) -> None:
            super().__init__(target, 128, signed=True)
            self.split = ops.Channel_Split([32, 96], target)
            self.route, self.flatten = ops.Route(target), ops.Flatten([-1, 128 * 64], target)
            self.shuffle = ops.Pixel_Shuffle(2, target) if target == "T40" else nn.Identity()
            self.focus = ops.Focus(target)

        def forward(self, image: Tensor) -> Tensor:
            a, b = self.split(self.first(self.pre(image)))
            x = self.focus(self.shuffle(self.route([b, a])))
            y: Tensor = self.flatten(x)[0]
            return y.view(y.size(0), 64, -1).permute(0, 2, 1)

    net = Net()
    net.flatten = ops.Flatten([-1, 128 * 4 * 4], target)
    proven(net, pixels(2, 3, 4, 4), pixels(3, 3, 4, 4, seed=1))


def test_two_heads_as_detectors_have_them() -> None:
    """One layer called twice, last layers on two scales, plain torch behind them, several outputs."""

    class Net(InRow):
        def __init__(self) -> None:
            super().__init__("T40", 32)
            linear = ops.Linear("T40")  # features with negative codes, which have no zero
            options = {"enable_batch_norm": True, "target_device": "T40", **Q8}
            self.shared = ops.Conv2D(32, 32, stride=2, padding=1, activation_fn=linear, **options)
            self.head = ops.Conv2D(32, 12, 1, 1, 1, None, last_layer=True, target_device="T40", **Q8)

        def forward(self, image: Tensor) -> Any:
            a = self.shared(self.first(self.pre(image)))
            b = self.shared(a)
            rows = [self.head(x).permute(0, 2, 3, 1).reshape(image.size(0), -1, 6) for x in (a, b)]
            return {"boxes": torch.cat(rows, 1), "feature": torch.cat([a[0], a[0]], 1)}

    net = Net()
    image = pixels(2, 3, 8, 8)
    program = proven(net, image, pixels(5, 3, 8, 8, seed=1))
    assert program.node("cat_1").output.grid == program.node("shared").output.grid == Grid("odd", 255.0)
    boxes, feature = run(program, image)
    net.eval()
    assert boxes.shape == (2, 40, 6) and torch.equal(boxes, net(image)["boxes"])
    assert torch.equal(feature, net(image)["feature"])


def test_t02_takes_pixels_without_preprocess() -> None:
    common = {**Q8, "target_device": "T02"}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = ops.Conv2D(3, 16, activation_fn=nn.LeakyReLU(0.1), enable_batch_norm=True, **common)
            self.b, self.pool = ops.Conv2D(16, 16, **common), ops.Maxpool2D(target_device="T02")
            self.route, self.flatten = ops.Route("T02"), ops.AdaptiveAvgpool2D(32, False, True, target_device="T02")
            self.fc = ops.FullConnected(32, 10, None, last_layer=True, **common)

        def forward(self, image: Tensor) -> Any:
            x = self.b(self.pool(self.a((image, 8, 0.0))))
            return self.fc(self.flatten(self.route([x, x])))

    program = proven(Net(), pixels(2, 3, 8, 8), pixels(3, 3, 8, 8, seed=1))
    assert program.chip == "t02"
    assert "b.pad" in program.node("b.sum").inputs


def test_conv1d_and_sequences() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = ops.Embedding(20, 32, multi_inputs=True, quantize=True, output_bitwidth=8, target_device="T40")
            self.fc = ops.FullConnected(64, 32, enable_batch_norm=True, target_device="T40", **Q8)
            self.conv = ops.Conv1D(32, 32, 3, stride=2, padding=1, target_device="T40", **Q8)

        def forward(self, index: Tensor) -> Any:
            x = self.fc((self.embed(index), 8, 0.0))
            return self.conv((x[0].transpose(1, 2), x[1], x[2]))

    index = torch.randint(0, 20, (4, 14), generator=torch.Generator().manual_seed(0)).float()
    net = Net()
    program = proven(net, index)
    y, bits, low = net.eval()(index)
    assert y.shape == (4, 32, 4) and (bits, low) == (8, 0.0)
    assert torch.equal(run(program, index), y)
    with pytest.raises(InvalidValueError, match="outside the table"):
        run(program, index + 20)


def test_signed_mean_needs_an_example_that_shows_it() -> None:
    net = InRow("T40", 32, ops.AdaptiveAvgpool2D(32, quantize=True, target_device="T40"), signed=True)
    with torch.no_grad():
        net.first.Conv2d.bias.fill_(9.0)
    with pytest.raises(UnsupportedError, match="no negative value"):
        lower(net, pixels(1, 3, 4, 4))
    with torch.no_grad():
        net.first.Conv2d.bias.fill_(-0.5)
    program = proven(net, pixels(1, 3, 4, 4))
    op = program.node("layers.0").op
    assert isinstance(op, Finish) and op.requantise is not None and op.requantise.kind == "odd"
    assert not net.layers[0].signed  # the network is left as it was


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (LSTM(32, 32, use_squeeze=True, target_device="T40", **Q8), "never measured"),
        (ops.Conv2D(32, 32, target_device="T40"), "not quantised"),
        (ops.Unpool2D(2, 2, "bilinear", last_layer=True, target_device="T40"), "leaves the grid"),
        (nn.Sigmoid(), "Sigmoid has no integer form"),
    ],
)
def test_refusals_name_the_layer(layer: nn.Module, reason: str) -> None:
    class Net(InRow):
        def forward(self, image: Tensor) -> Any:
            x = self.first(self.pre(image))
            return self.layers[0](x[0]) if isinstance(self.layers[0], nn.Sigmoid) else self.layers[0](x)

    net = Net("T40", 32, layer)
    with pytest.raises(UnsupportedError) as raised:
        lower(net, pixels(1, 3, 1 if isinstance(layer, LSTM) else 4, 4))
    assert reason in str(raised.value) and "(layer layers.0)" in str(raised.value)


def test_a_shape_that_fixes_the_batch() -> None:
    with pytest.raises(ChipfitError, match="the shape does not fit"):
        lower(InRow("T40", 32, ops.Flatten([1, 32 * 16], "T40")), pixels(1, 3, 4, 4))


def test_input_that_is_no_image() -> None:
    net = InRow("T40", 32)
    program = lower(net, pixels(1, 3, 4, 4))
    with pytest.raises(InvalidValueError, match="not on the grid"):
        run(program, pixels(1, 3, 4, 4) + 0.001)
    net.pre = ops.Preprocess(0.5, 255.0, "T40")  # no whole number: pixels have no integer codes
    with pytest.raises(UnsupportedError, match="whole-number mean"):
        lower(net, pixels(1, 3, 4, 4))


def test_verify_finds_one_wrong_code() -> None:
    net = InRow("T40", 32)
    image = pixels(4, 3, 4, 4)
    program = lower(net, image)
    with torch.no_grad():
        net.first.Conv2d.bias[5] += 1.0
    proof = verify(net, program, [image])
    assert not proof.equal and proof.mismatch is not None
    assert proof.mismatch.layer == "first" and proof.mismatch.index[1] == 5


def test_a_network_of_two_targets_is_refused() -> None:
    net = InRow("T40", 32, ops.Maxpool2D(target_device="T41"))
    with pytest.raises(UnsupportedError, match="several targets"):
        lower(net, pixels(1, 3, 4, 4))


@pytest.mark.parametrize("target", ["T40", "Txx"])
def test_every_problem_is_listed_and_nothing_that_only_follows_from_one(target: str) -> None:
    """Pooled and added, what stands in for a refused feature is taken as one, while what comes after is looked at."""

    class Net(InRow):
        def __init__(self) -> None:
            lost = ops.Conv2D(32, 32, padding=1, target_device=target)
            super().__init__(target, 32, lost, ops.Maxpool2D(2, 2, 1, 1, target_device=target))
            self.sum = ops.Shortcut(32, quantize=True, input_bitwidth=8, output_bitwidth=8, target_device=target)
            self.last, self.other = (ops.Conv2D(32, 32, 1, 1, 1, target_device=target, **Q8) for _ in range(2))
            self.bare = ops.FullConnected(32, 32, target_device=target)
            self.mean = ops.AdaptiveAvgpool2D(32, keepdim=False, quantize=True, target_device=target)

        def forward(self, image: Tensor) -> Any:
            x = self.first(self.pre(image))
            for layer in self.layers:
                x = layer(x)
            y = self.sum([(x[0], 8, 0.0), self.last((x[0], 8, 0.0))])
            return self.bare(self.mean(self.other(y)))

    with pytest.raises(UnsupportedError) as raised:
        lower(Net(), pixels(1, 3, 4, 4))
    head, *listed = str(raised.value).splitlines()
    assert head == "Net: 2 call(s) cannot be lowered:"
    assert [line.split()[2] for line in listed] == ["layers.0):", "bare):"]
