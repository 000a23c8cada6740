"""Files of the vendor's own kit, of 2020, 2021 and 2023: read into the same network, number for number."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic import use_vendor_statistics
from chipfit.chips.ingenic.magik.write.writer import magik_model
from chipfit.errors import ChipfitError, ChipfitWarning, FileFormatError, UnsupportedError
from chipfit.export import check_magik, export_magik, read_magik
from chipfit.program import lower, verify
from support import kit_files as kit
from support.ingenic import magik as shared
from support.ingenic import networks as known
from support.ingenic import random_networks as drawn

known, leaves = known, shared.leaves
Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}
guesses = pytest.mark.filterwarnings("ignore:.*does not say the image's mean")


def written(net: nn.Module, example: Any, year: str, path: Path, **options: Any) -> Path:
    """The file that the kit of a year would have written of a network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(kit.kit_file(magik_model(net, example), year, **options).SerializeToString())
    return path


def same_numbers(net: nn.Module, again: nn.Module, *batches: Tensor) -> None:
    net.eval()
    with torch.no_grad():
        for batch in batches:
            wanted, found = leaves(net(batch)), leaves(again(batch))
            assert len(wanted) == len(found) > 0
            assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def parameters(net: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}


def digits(bits: int, target: str) -> nn.Module:
    torch.manual_seed(bits)
    net = known.trained(known.Digits(bits, target), known.pixels(32, 1, 8, 8))
    use_vendor_statistics(net)
    return net.eval()


@pytest.mark.parametrize("year", kit.CONVENTIONS)
@pytest.mark.parametrize(("bits", "target"), [(8, "T40"), (4, "T41"), (8, "Txx"), (4, "Xs2")])
@guesses
def test_whole_network(bits: int, target: str, year: str, tmp_path: Path) -> None:
    """Equal outputs and parameters under equal names; it lowers to its own proof, trains on, and is exported again."""
    net, image = digits(bits, target), known.pixels(6, 1, 8, 8, seed=1)
    path = written(net, image, year, tmp_path / "kit.onnx")
    assert sum(check_magik(path).values()) == len(onnx.load(path).graph.node)
    again = read_magik(path)
    same_numbers(net, again, image, known.pixels(3, 1, 8, 8, seed=2))
    one, other = parameters(net), parameters(again)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    program = lower(again, image)
    assert verify(again, program, [image]).equal
    wanted = lower(net, image)
    kinds = [[(type(node.op), node.output) for node in program.nodes] for program in (program, wanted)]
    assert kinds[0] == kinds[1]
    same_numbers(net, read_magik(export_magik(again, image, tmp_path / "again.onnx")), image)
    again.train()
    loss = leaves(again(image))[0].square().sum()
    loss.backward()
    moved = [p for p in again.parameters() if p.grad is not None and bool(p.grad.any())]
    assert len(moved) >= 10 and again.conv0.Conv2d.weight.grad is not None


@given(st.integers(0, 2**40), st.sampled_from(kit.CONVENTIONS))
@settings(max_examples=25, deadline=None)
@pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
def test_random_networks(tmp_path_factory: pytest.TempPathFactory, seed: int, year: str) -> None:
    check(seed, year, tmp_path_factory.getbasetemp() / "kit")


def check(seed: int, year: str, folder: Path) -> bool:
    """Whether the kit of that year can write the random network of a seed; then it has to be read back equal."""
    net, example, _ = drawn.draw(seed)
    use_vendor_statistics(net)
    if year != "2020":
        _fix_clips(net)
    try:
        path = written(net.eval(), example, year, folder / f"{seed}.onnx")
    except UnsupportedError as error:
        assert "the example has no negative value here" in str(error)
        assume(False)
    except kit.NoSuchFile:
        assume(False)
    same_numbers(net, read_magik(path), example, example.flip(0, -1))
    path.unlink()
    return True


def _fix_clips(net: nn.Module) -> None:
    """Clips are learned no more, since later files do not say that they were."""
    for block in net.modules():
        if isinstance(block, ops.QuantizeFeature) and isinstance(block.clip_max_value, nn.Parameter):
            clip = float(block.clip_max_value.detach())
            del block.clip_max_value
            block.clip_max_value = clip


class Heads(nn.Module):
    """As a face detector: images in [-1, 1], several outputs, a last layer with a bias on each."""

    def __init__(self, target: str) -> None:
        super().__init__()
        t = {"target_device": target, **Q8}
        self.preprocess = ops.Preprocess(128, 128.0, target)
        self.base_net = nn.ModuleList(
            [
                ops.Conv2D(3, 32, 2, enable_batch_norm=True, enable_bias=False, padding=1, first_layer=True, **t),
                ops.DepthwiseConv2D(32, 2, enable_batch_norm=True, enable_bias=False, padding=1, **t),
                ops.Conv2D(32, 32, 1, 1, 1, **t),
            ]
        )
        self.headers = nn.ModuleList(ops.Conv2D(32, n, 1, 3, 3, None, padding=1, last_layer=True, **t) for n in (6, 4))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.preprocess(image)
        for layer in self.base_net:
            x = layer(x)
        return self.headers[0](x), self.headers[1](x)


@pytest.mark.parametrize("year", kit.CONVENTIONS)
@pytest.mark.parametrize("target", ["T40", "Txx"])
@guesses
def test_several_outputs_of_odd_sizes(target: str, year: str, tmp_path: Path) -> None:
    net, image = Heads(target), (torch.randint(0, 256, (2, 3, 15, 18)) - 128) / 128
    use_vendor_statistics(net)
    again = read_magik(written(net, image, year, tmp_path / "kit.onnx"))
    same_numbers(net, again, image)
    assert parameters(net).keys() == parameters(again).keys()
    assert again.preprocess_1.mean == 128 and verify(again, lower(again, image), [image]).equal


@pytest.mark.parametrize(("year", "warns"), [("2020", True), ("2021", True), ("2023", False)])
def test_a_mean_that_the_file_does_not_say(year: str, warns: bool, tmp_path: Path) -> None:
    """Where the image is signed, only the divisor is there to tell the mean: a warning says so."""
    net, image = Heads("Txx"), torch.zeros(1, 3, 8, 8)
    path = written(net, image, year, tmp_path / "kit.onnx")
    if warns:
        with pytest.warns(ChipfitWarning, match="does not say the image's mean; taken for 128, with divisor 128"):
            read_magik(path)
    else:
        assert read_magik(path).preprocess_1.mean == 128


def test_an_image_from_0_to_255_needs_no_guess(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    net, image = digits(8, "Txx"), known.pixels(1, 1, 8, 8)
    read_magik(written(net, image, "2021", tmp_path / "kit.onnx"))
    assert not [warning for warning in recwarn if "mean" in str(warning.message)]


@pytest.mark.parametrize("year", kit.CONVENTIONS)
@guesses
def test_weights_without_names(year: str, tmp_path: Path) -> None:
    """Behind Constant nodes, under numbers: layers get names of ours."""
    net, image = Heads("T40"), torch.zeros(1, 3, 8, 8)
    use_vendor_statistics(net)
    again = read_magik(written(net, image, year, tmp_path / "kit.onnx", anonymous=True))
    same_numbers(net, again, image, torch.ones(2, 3, 8, 8) / 2)
    layers = {name.partition(".")[0] for name in parameters(again)}
    assert layers == {f"conv_{i}" for i in range(1, 6)}


@pytest.mark.parametrize("year", kit.CONVENTIONS)
@guesses
def test_a_layer_that_is_called_twice(year: str, tmp_path: Path) -> None:
    class Twice(known.InRow):  # type: ignore[misc]
        def forward(self, image: Tensor) -> Any:
            x = self.first(self.pre(image))
            return self.layers[0](self.layers[0](x))[0]

    net, image = Twice("T40", 32, ops.Conv2D(32, 32, padding=1, target_device="T40", **Q8)), known.pixels(2, 3, 6, 6)
    use_vendor_statistics(net)
    again = read_magik(written(net, image, year, tmp_path / "kit.onnx"))
    same_numbers(net, again, image)
    assert parameters(net).keys() == parameters(again).keys()


@guesses
def test_channels_that_are_no_multiples(tmp_path: Path) -> None:
    """Older kits did not ask for them: such files are read, and refused only when they are to be exported."""
    net, image = Heads("Txx"), torch.zeros(1, 3, 8, 8)
    use_vendor_statistics(net)
    path = written(net, image, "2021", tmp_path / "kit.onnx")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name.startswith("base_net.2"):
            values = values[:24]
        elif tensor.name.startswith("headers"):
            values = values[:, :24] if values.ndim == 4 else values
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    path.write_bytes(model.SerializeToString())
    again = read_magik(path)
    assert again(image)[0].shape == (1, 6, 2, 2)
    with pytest.raises(UnsupportedError, match="24 input channels; allowed: multiples of 16"):
        export_magik(again, image, tmp_path / "again.onnx")


@guesses
def test_without_what_stands_behind(tmp_path: Path) -> None:
    net, image = Heads("T40"), torch.zeros(1, 3, 8, 8)
    use_vendor_statistics(net)
    same_numbers(net, read_magik(written(net, image, "2020", tmp_path / "kit.onnx", tail=False)), image)


# --- what cannot be read


Change = Callable[[onnx.ModelProto], object]


def nodes_of(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def attribute(kind: str, name: str, value: Any, which: int = 0) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = nodes_of(model, kind)[which]
        kept = [entry for entry in node.attribute if entry.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def retarget(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for entry in node.attribute:
            if entry.name == "target_device":
                entry.s = b"T33"


MISFITS: list[tuple[Change, str]] = [
    (lambda m: setattr(m.opset_import[0], "version", 11), "opsets are {'': 11}; allowed: the default domain at 9"),
    (retarget, "the file's targets are T33; allowed: one of"),
    (lambda m: setattr(nodes_of(m, "Conv")[1], "op_type", "QuantizeConv2DInferenceV2"), "is no operator of the kit"),
    (lambda m: setattr(nodes_of(m, "Conv")[1], "op_type", "ConvTranspose"), "is no operator of the kit that is read"),
    (attribute("QuantizeWeight", "weight_bitwidth", 9), "weight_bitwidth"),
    (attribute("QuantizeWeight", "target_device", "T40"), "the weight has another target's grid; got 'T40'"),
    (attribute("QuantizeFeature", "output_bitwidth", 40), "output_bitwidth"),
    (attribute("QuantizeFeature", "clip_max_value", -1.0), "clip_max_value"),
    (attribute("Pad", "value", -1.0), "the border is filled otherwise than the chip does; got -1.0; allowed: 0.0"),
    (attribute("Pad", "mode", "reflect"), "the border is filled otherwise"),
    (attribute("Conv", "group", 5), "groups"),
    (attribute("Conv", "kernel_shape", [5, 5]), ""),
    (lambda m: nodes_of(m, "QuantizeFeature")[0].ClearField("attribute"), "output_bitwidth"),
    (lambda m: nodes_of(m, "Conv")[0].input.__setitem__(1, "base_net.0.Conv2d.weight"), "the weight is not quantised"),
    (lambda m: m.graph.input[0].type.tensor_type.shape.dim[2].ClearField("dim_value"), "the shape of an input is not"),
]


@pytest.mark.parametrize(("change", "words"), MISFITS, ids=[words or "ignored" for _, words in MISFITS])
@guesses
def test_misfits(change: Change, words: str, tmp_path: Path) -> None:
    net, image = Heads("Txx"), torch.zeros(1, 3, 8, 8)
    path = written(net, image, "2020", tmp_path / "kit.onnx")
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    if not words:  # the weight itself says its kernel
        read_magik(path)
        return
    for read in (check_magik, read_magik):
        with pytest.raises(FileFormatError, match=re.escape(words)):
            read(path)


@guesses
def test_everything_that_cannot_be_read_is_listed_at_once(tmp_path: Path) -> None:
    net, image = Heads("Txx"), torch.zeros(1, 3, 8, 8)
    path = written(net, image, "2020", tmp_path / "kit.onnx")
    model = onnx.load(path)
    attribute("QuantizeWeight", "weight_bitwidth", 9, 0)(model)
    attribute("QuantizeWeight", "target_device", "T40", 3)(model)
    attribute("QuantizeWeight", "weight_bitwidth", 1, 4)(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FileFormatError, match="1 rules of the vendor's kit are broken") as caught:
        read_magik(path)
    assert "weight_bitwidth" in str(caught.value)  # what follows the first layer depends on it
    attribute("QuantizeWeight", "weight_bitwidth", 8, 0)(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FileFormatError, match=r"2 rules of the vendor's kit are broken:\n  1\. node.*\n  2\. node"):
        read_magik(path)
    for i, kind in ((1, "Erf"), (2, "ConvTranspose")):
        nodes_of(model, "Conv")[i].op_type = kind
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FileFormatError, match=r"1\. node.*Erf is no operator[^\n]*\n  2\. node.*ConvTranspose is no"):
        read_magik(path)


def test_a_float_network_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("NOp", ["x"], ["a"], op_target="input", op_attr="{}", target_device="Txx"),
            helper.make_node("Conv", ["a", "w"], ["y"], kernel_shape=[1, 1]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((16, 3, 1, 1), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], producer_name="pytorch")
    (tmp_path / "f.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FileFormatError, match="the weight is not quantised; allowed: a constant behind QuantizeWeight"):
        read_magik(tmp_path / "f.onnx")


def damaged(model: onnx.ModelProto, rng: random.Random) -> None:
    """One thing of a node changed: an input, an attribute, a kind."""
    node = rng.choice(model.graph.node)
    edges = [edge for other in model.graph.node for edge in other.output]
    kind = rng.choice(("input", "fewer inputs", "attribute", "no attribute", "kind"))
    if kind == "input" and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(edges)
    elif kind == "fewer inputs" and node.input:
        node.input.pop()
    elif kind == "attribute" and node.attribute:
        entry = rng.choice(node.attribute)
        entry.i, entry.f = rng.choice([0, -1, 2**62, 7, 33]), rng.choice([0.0, -1.0, float("nan"), float("inf")])
        entry.s = rng.choice([b"", b"\xff\xfe", b"[" * 5000, b'{"conv_param": 3}', b"T40"])
        if entry.ints:
            entry.ints[rng.randrange(len(entry.ints))] = entry.i
    elif kind == "no attribute" and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]
    else:
        node.op_type = rng.choice([other.op_type for other in model.graph.node])


@pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
def test_damaged_files_give_errors_of_ours(tmp_path: Path) -> None:
    net, path = Heads("Txx"), tmp_path / "kit.onnx"
    files = [kit.kit_file(magik_model(net, torch.zeros(1, 3, 8, 8)), year) for year in kit.CONVENTIONS]
    refused = 0
    for seed in range(150):
        rng, model = random.Random(seed), onnx.ModelProto()
        model.CopyFrom(files[seed % 3])
        damaged(model, rng)
        path.write_bytes(model.SerializeToString())
        try:
            read_magik(path)
        except ChipfitError:
            refused += 1
    assert 50 < refused < 150
