"""What the kit's files say of a weight before a sum and of everything behind it: bias, norm, activation, quantiser."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.magik.graph import decimal
from chipfit.chips.ingenic.magik.kit.builder import Kit
from chipfit.chips.ingenic.magik.kit.source import marker
from chipfit.chips.ingenic.magik.read.reader import fill
from chipfit.chips.ingenic.magik.rules import HSIGMOID_OFFSET
from chipfit.chips.ingenic.magik.view import attributes, json_object
from chipfit.errors import FileFormatError

FEATURE_FIELDS = {"feat_var": "img_var", "feature_var": "img_var", "is_prelu": "with_negtive_alpha"}
"""Fields of the first kit's `param_keys`, and of later JSON texts, that others call otherwise."""
_WITHIN = ("prelu_start", "prelu_end", "hsigmoid_start", "hsigmoid_end", "hswish_start", "hswish_end")


def all_fields(node: Any) -> dict[str, Any]:
    """What a node says, by one name each, of every convention: attributes, JSON text, and the first kit's two lists."""
    a = attributes(node)
    keys = [key.decode() if isinstance(key, bytes) else str(key) for key in a.pop("param_keys", ())]
    found = dict(zip(keys, a.pop("param_value", ()), strict=False)) | a
    found |= json_object(str(found.pop("param_str", "")))
    return {FEATURE_FIELDS.get(name, name): value for name, value in found.items()}


@dataclass
class Quantised:
    """What a file says of the quantiser of an output.

    Args:
        bits: Width.
        clip: Clip value.
        signed: Whether negative values are kept.
        learned: Whether the clip was learned.
        before_lstm: Whether an LSTM follows.
        shortcut: Whether it stands behind a sum of two features.
    """

    bits: int
    clip: float
    signed: bool
    learned: bool = False
    before_lstm: bool = False
    shortcut: bool = False

    @staticmethod
    def of(kit: Kit, node: Any) -> Quantised:
        """Read a `QuantizeFeature`, or a node that quantises its output itself."""
        f = all_fields(node)
        learned, clip = bool(f.get("auto_threshold", 0)), float(f["clip_max_value"])
        if learned and node.op_type == "QuantizeFeature" and len(node.input) > 5 and node.input[5] in kit.source.named:
            clip = float(kit.source.constants[node.input[5]].item())
        shortcut = bool(f.get("is_shortcut", 0))
        before_lstm = bool(f.get("pre_lstm_layer", 0))
        return Quantised(
            int(f["output_bitwidth"]), decimal(clip), float(f["clip_min_value"]) < 0, learned, before_lstm, shortcut
        )


@dataclass
class Weight:
    """A weight and how it is quantised.

    Args:
        values: As trained.
        name: The file's name of it, or ''.
        bits: Width of its codes.
        factor: Half-width of its clip window in deviations.
        target: Target whose grid it has.
    """

    values: Any
    name: str
    bits: int
    factor: float
    target: str

    @staticmethod
    def behind(kit: Kit, edge: str) -> Weight:
        """The weight whose quantised form an edge is.

        Raises:
            FileFormatError: the edge is no quantised weight.
        """
        node, turned = kit.source.makers.get(edge), False
        if node is not None and node.op_type == "Transpose":
            node, turned = kit.source.makers.get(node.input[0]), True
        if node is None or node.op_type != "QuantizeWeight" or node.input[0] not in kit.source.constants:
            raise FileFormatError("the weight is not quantised", allowed="a constant behind QuantizeWeight")
        a, values = attributes(node), kit.source.constants[node.input[0]]
        if turned and values.ndim != 2:
            raise FileFormatError("a weight is turned that is no matrix", given=values.shape)
        name = kit.source.named.get(node.input[0], "")
        return Weight(values, name, int(a["weight_bitwidth"]), decimal(a["factor"]), str(a["target_device"]))


@dataclass
class Tail:
    """What stands behind a sum.

    Args:
        end: The edge that it leads to.
        bias: A value a channel, or None.
        norm: Gain, shift, mean, variance and epsilon, or None.
        activation: A module, or None.
        quantised: The quantiser, or None for real numbers.
        nodes: All of its nodes.
    """

    end: str
    bias: Any = None
    norm: tuple[Any, Any, Any, Any, float] | None = None
    activation: nn.Module | None = None
    quantised: Quantised | None = None
    nodes: list[Any] = field(default_factory=list)

    def fill_norm(self, block: Any) -> None:
        """Put the constants into a normalisation."""
        if self.norm is not None:
            bn, (*values, epsilon) = block.batch_norm, self.norm
            for tensor, given in zip((bn.weight, bn.bias, bn.running_mean, bn.running_var), values, strict=True):
                fill(tensor, given)
            bn.eps = epsilon


def tail_of(kit: Kit, edge: str, channels: int, norm: bool = True) -> Tail:
    """What stands behind a sum, up to its quantiser; the nodes are taken.

    Args:
        kit: The network.
        edge: The sum, or what a normalisation that is a layer of its own gives.
        channels: Its channels.
        norm: Whether it is a sum, which a normalisation may follow.
    """
    tail, source = Tail(edge), kit.source
    shifted = False
    while tail.quantised is None and len(source.behind(tail.end)) == 1:
        (node,) = source.behind(tail.end)
        other = next((source.constants[name] for name in node.input if name in source.constants), None)
        if node.op_type == "QuantizeFeature":
            tail.quantised = Quantised.of(kit, node)
            if tail.quantised.shortcut:
                tail.quantised = None
                break
        elif node.op_type == "Add" and other is not None and other.size == 1 and _quantiser_behind(kit, node):
            if other.item() != HSIGMOID_OFFSET or tail.activation is not None:
                raise FileFormatError("an activation adds another number than Hsigmoid's", given=other.item())
            tail.activation, shifted = chips.Hsigmoid(1), True
        elif node.op_type == "Add" and other is not None and other.size == channels and tail.bias is None:
            if tail.norm is not None or tail.activation is not None:
                break
            tail.bias = other.reshape(channels)
        elif node.op_type == "BatchNormalization" and norm and tail.norm is None and tail.activation is None:
            tail.norm = norm_of(kit, node)
        elif marker(node) not in _WITHIN and not _activates(kit, node, tail):
            break
        tail.nodes.append(node)
        tail.end = node.output[0]
    if tail.quantised is None:
        _without_loose_markers(tail)
    elif tail.activation is None and tail.quantised.signed:
        tail.activation = chips.Linear()
    elif norm and tail.activation is not None and tail.quantised.signed == shifted:
        raise FileFormatError(
            "the quantiser's sign does not fit the activation",
            given=type(tail.activation).__name__,
            allowed="clip_min_value below 0 with LeakyReLU and PReLU, 0 with Hsigmoid",
        )
    kit.take(tail.nodes)
    return tail


def norm_of(kit: Kit, node: Any) -> tuple[Any, Any, Any, Any, float]:
    """Gain, shift, mean, variance and epsilon of a `BatchNormalization`; the gain behind `aweight`."""
    values = [kit.source.constants[name] for name in (_gain(kit, node), *node.input[2:5])]
    return values[0], values[1], values[2], values[3], decimal(attributes(node).get("epsilon", 1e-5))


def norm_name(kit: Kit, node: Any) -> str:
    """The file's name of a normalisation's gain."""
    return str(kit.source.named.get(_gain(kit, node), ""))


def _gain(kit: Kit, node: Any) -> str:
    gain = node.input[1]
    return str(gain if gain in kit.source.constants else kit.source.makers[gain].input[0])


def _activates(kit: Kit, node: Any, tail: Tail) -> bool:
    """Read an activation that a layer keeps; not what the user's code computes behind a last layer."""
    if tail.activation is not None:
        return False
    if node.op_type == "PRelu":
        tail.activation = slopes(kit, node.input[1])
        return True
    a, following = attributes(node), _quantiser_behind(kit, node)
    if following is None:
        return False
    if node.op_type == "LeakyRelu":
        tail.activation = chips.LeakyReLU(decimal(a.get("alpha", 0.01)))
        return True
    cut = node.op_type == "Clip" and a.get("min") == 0.0 and a.get("max", 0.0) >= following.clip
    return (cut or node.op_type == "Relu") and not following.signed  # which the quantiser repeats


def _quantiser_behind(kit: Kit, node: Any) -> Quantised | None:
    """The quantiser that stands next, but for markers."""
    behind = kit.source.behind(node.output[0])
    while len(behind) == 1 and marker(behind[0]) in _WITHIN:
        behind = kit.source.behind(behind[0].output[0])
    quantises = len(behind) == 1 and behind[0].op_type == "QuantizeFeature"
    return Quantised.of(kit, behind[0]) if quantises else None


def _without_loose_markers(tail: Tail) -> None:
    """Leave what begins behind a last layer to what follows."""
    while tail.nodes and marker(tail.nodes[-1]).endswith("_start"):
        tail.end = tail.nodes.pop().input[0]


def quantiser_behind(kit: Kit, edge: str) -> tuple[str, Quantised | None]:
    """The quantiser that alone takes an edge, which is taken, and the edge behind it; or the edge itself and None."""
    behind = kit.source.behind(edge)
    if len(behind) != 1 or behind[0].op_type != "QuantizeFeature":
        return edge, None
    kit.take(behind)
    return behind[0].output[0], Quantised.of(kit, behind[0])


def slopes(kit: Kit, edge: str) -> nn.Module:
    """A PReLU: the name of its constant tells torch's from the chips'."""
    values = kit.source.constants[edge]
    size = int(np.size(values))
    if kit.source.named.get(edge, "").endswith(".activation_fn.weight"):
        plain = nn.PReLU(size)
        fill(plain.weight, values)
        return plain
    own = chips.PReLU(size, replace(kit.device, name="Txx") if kit.device.family == "T02" else kit.device)
    fill(own.prelu.weight, values)
    return own
