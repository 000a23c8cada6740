"""A prediction of what the vendor's converter makes of a network for Txx, and how far that moves its outputs.

The converter cannot be run here. Its integers were decoded from three compiled models of the vendor's: they agree with
what is computed here in 1,119 of 1,136 multipliers and 1,100 of 1,136 biases. So this is a simulation and no proof: a
program is what the training kit computes, and its proof says nothing of the converter. What matters is that multipliers
keep about two digits: a channel's outputs shrink by up to 6 %.

Source: spec/ingenic.md, section 5.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from chipfit.chips.ingenic.program.ops import Activation, Affine, AverageCodes, Combine, Finish
from chipfit.errors import CalibrationError, UnsupportedError
from chipfit.program.batches import batch_inputs
from chipfit.program.core.ops import Accumulate
from chipfit.program.reference import trace
from chipfit.program.types import Node, Program

CHIP = "txx"
STEP_MUL, STEP_BIAS = 1000, 10
"""Multipliers are multiples of the one, biases, before the offset of the input is added, of the other."""


@dataclass(frozen=True)
class DeployedLayer:
    """The integers of a layer: its output code is `(sum(weight * (x - offset)) + bias) * mul >> (15 + shift)`, clipped.

    Args:
        name: The layer's edge in the program.
        weight: Weight codes, int8, as in the program.
        mul: Multiplier of each channel, a multiple of 1000 from 16,000 to 32,000.
        shift: Shift of each channel, beside 15.
        bias: Bias of each channel; `offset * sum(weight)` in it makes up for the offset.
        offset: What is taken from the input's codes, half their range.
        errors: `mul / 2^(15 + shift)` over the multiplier that was trained, less 1: 0 down to -0.06.
        output_bits: Width of the output.
    """

    name: str
    weight: Tensor
    mul: tuple[int, ...]
    shift: tuple[int, ...]
    bias: tuple[int, ...]
    offset: int
    errors: tuple[float, ...]
    output_bits: int


@dataclass(frozen=True)
class Deployed:
    """The prediction for a program.

    Args:
        layers: Its layers in order.
        left_out: Layers whose integers nobody decoded, with the reason.
        program: The program with the predicted multipliers and biases in place of the trained ones; rounded at the end
            as in training, since how the shift rounds is not known.
    """

    layers: tuple[DeployedLayer, ...]
    left_out: dict[str, str]
    program: Program


@dataclass(frozen=True)
class DeployedRow:
    """How far a layer's outputs move, those of the layers before it moved too.

    Args:
        name: Its edge in the program.
        multiplier_error: Largest error of a channel's multiplier; 0 where the layer's integers are not predicted.
        codes: Codes compared; for real outputs numbers.
        differing: How many differ.
        largest: Largest difference, in codes; for real outputs in their unit.
    """

    name: str
    multiplier_error: float
    codes: int
    differing: int
    largest: float


@dataclass(frozen=True)
class DeployedDifference:
    """What `deployed_difference` found: a prediction, no proof.

    Args:
        rows: One for each layer, then one for each output of the network.
        left_out: Layers that are taken as trained, with the reason.
        samples: Samples compared.
    """

    rows: tuple[DeployedRow, ...]
    left_out: dict[str, str]
    samples: int

    def __str__(self) -> str:
        worst = max((row.multiplier_error for row in self.rows), default=0.0)
        ends = ", ".join(
            f"{row.name} by up to {row.largest:.4g}" for row in self.rows if row.name.startswith("output ")
        )
        return (
            f"Predicted from decoded vendor files, not proven: multipliers on Txx are off by up to {worst:.1%}; over "
            f"{self.samples:,} samples this moves {ends}"
        )

    def table(self) -> Table:
        """The rows as a table to print with rich."""
        table = Table(title=str(self), title_justify="left")
        for heading in ("layer", "multiplier off by", "codes", "differing", "largest difference"):
            table.add_column(heading, justify="left" if heading == "layer" else "right", overflow="fold")
        for row in self.rows:
            off, share = f"{row.multiplier_error:.1%}", f"{row.differing / max(row.codes, 1):.1%}"
            table.add_row(row.name, off, f"{row.codes:,}", share, f"{row.largest:.4g}")
        return table


def deployed(program: Program) -> Deployed:
    """Predict the integers that a program's layers are deployed with on Txx.

    Args:
        program: From `lower` or `load_program`, of a network for Txx.

    Returns:
        The prediction: layers with weights, unsigned on both sides and with no activation but ReLU and its clip. The
        others, last layers among them, were never decoded and are listed.

    Raises:
        UnsupportedError: the program is for another chip, of which nothing is decoded, or no layer can be predicted.

    Example:
        >>> from torch import nn
        >>> from chipfit.chips import ingenic as ops
        >>> from chipfit.program.lowering.engine import lower
        >>> options = {"quantize": True, "weight_bitwidth": 8, "output_bitwidth": 8, "target_device": "Txx"}
        >>> conv = ops.Conv2D(1, 1, 1, 1, 1, None, enable_bias=False, first_layer=True, **options)
        >>> _ = nn.init.constant_(conv.Conv2d.weight, 1.0)
        >>> program = lower(nn.Sequential(ops.Preprocess(0, 255.0), conv), torch.zeros(1, 1, 1, 1))
        >>> (layer,) = deployed(program).layers  # 255 / (128 * 255 * 6) = 0.667 * 2^-9
        >>> layer.mul, layer.shift, layer.bias, round(layer.errors[0], 4)
        ((21000,), (9,), (16256,), -0.0387)
    """
    if program.chip != CHIP:
        raise UnsupportedError(
            "of this chip's deployed integers nothing is decoded", given=program.chip, allowed=CHIP, where="deployed"
        )
    layers, left_out, nodes, tensors = [], {}, [], dict(program.tensors)
    for node in program.nodes:
        reason = _reason(node, program)
        if isinstance(node.op, Finish) and reason == "":
            layer, simulated = _predicted(node, node.op, program, tensors)
            layers.append(layer)
            node = replace(node, op=simulated)
        elif reason:
            left_out[node.name] = reason
        nodes.append(node)
    if not layers:
        raise UnsupportedError("no layer's integers can be predicted", given=left_out, where="deployed")
    return Deployed(tuple(layers), left_out, replace(program, nodes=tuple(nodes), tensors=tensors))


def deployed_difference(program: Program, loader: Iterable[Any]) -> DeployedDifference:
    """Tell how far the multipliers and biases that are deployed on Txx move a network's codes and outputs.

    A prediction from decoded vendor files, no proof: see `deployed`.

    Args:
        program: Of a network for Txx.
        loader: Batches as for `verify`.

    Returns:
        A row for each layer and each output; `print` says the essence, `table()` shows the rows.

    Raises:
        CalibrationError: the loader gives no sample.
        UnsupportedError: see `deployed`.
    """
    prediction, samples = deployed(program), 0
    errors = {layer.name: max(map(abs, layer.errors)) for layer in prediction.layers}
    kinds = (Finish, Combine, AverageCodes)
    names = [node.name for node in program.nodes if node.layer and isinstance(node.op, kinds) and not node.output.real]
    counts: dict[str, list[float]] = {name: [0, 0, 0.0] for name in (*names, *program.outputs)}
    for batch in loader:
        inputs = batch_inputs(batch, [i.name for i in program.inputs], "deployed_difference")
        trained, moved = trace(program, *inputs), trace(prediction.program, *inputs)
        for name, count in counts.items():
            gap = (trained[name].double() - moved[name].double()).abs()
            count[0] += gap.numel()
            count[1] += int((gap > 0).sum())
            count[2] = max(count[2], float(gap.max()) if gap.numel() else 0.0)
        samples += len(inputs[0])
    if not samples:
        raise CalibrationError("the loader gave no sample", where="deployed_difference")

    def row(title: str, error: float, name: str) -> DeployedRow:
        codes, differing, largest = counts[name]
        return DeployedRow(title, error, int(codes), int(differing), largest)

    rows = [row(name, errors.get(name, 0.0), name) for name in names]
    rows += [row(f"output {name}", 0.0, name) for name in program.outputs]
    return DeployedDifference(tuple(rows), prediction.left_out, samples)


def _reason(node: Node, program: Program) -> str | None:
    """Why the integers of a layer with weights are not known; '' where they are, None for another node."""
    op = node.op
    if not isinstance(op, Finish) or op.affine is None:
        return None
    before = next((other for other in program.nodes if other.name == node.inputs[0]), None)
    if before is None or not isinstance(before.op, Accumulate):
        return None
    if op.requantise is None:
        return "its outputs are real numbers"
    if op.requantise.kind != "unsigned" or op.activation != Activation():
        return "its outputs are signed, or behind an activation other than ReLU"
    source = program.type(before.inputs[0])
    return "its inputs are signed" if source.signed or source.bits is None else ""


def _predicted(node: Node, op: Finish, program: Program, tensors: dict[str, Tensor]) -> tuple[DeployedLayer, Finish]:
    """The integers of a layer, and its operation with them; constants are added to `tensors`."""
    assert op.affine is not None and op.requantise is not None
    accumulate = program.node(node.inputs[0])
    assert isinstance(accumulate.op, Accumulate)
    bits = program.type(accumulate.inputs[0]).bits or 0
    weight = program.tensors[accumulate.op.weight_tensor]
    scale, bias = _per_channel(program, op, len(weight))
    unit = op.requantise.n / (op.requantise.clip * (op.requantise.divisor or 1.0))
    a, b = scale * unit, bias * unit
    exponent = np.frexp(a)[1]
    mul = np.floor(np.ldexp(a, 15 - exponent) / STEP_MUL) * STEP_MUL
    kept = np.ldexp(mul, exponent - 15)
    inner = np.trunc(b / a / STEP_BIAS) * STEP_BIAS
    offset = 1 << (bits - 1)
    total = weight.flatten(1).sum(1).numpy()
    layer = DeployedLayer(
        node.name,
        weight.to(torch.int8),
        tuple(int(value) for value in mul),
        tuple(int(-value) for value in exponent),
        tuple(int(value) for value in inner + offset * total),
        offset,
        tuple(float(value) for value in kept / a - 1),
        node.output.bits or 0,
    )
    factor = torch.from_numpy((kept / unit).astype(np.float32))
    names = [f"{node.name}.deployed.{part}" for part in ("scale", "bias")]
    tensors |= {names[0]: factor, names[1]: torch.from_numpy((inner * kept / unit).astype(np.float32))}
    return layer, replace(op, affine=Affine(names[0], names[1]), norm=None)


def _per_channel(program: Program, op: Finish, channels: int) -> tuple[Any, Any]:
    """Factor and addend of each channel from the sum to the real output, normalisation folded in, in float64."""
    assert op.affine is not None

    def values(name: str | None, otherwise: float) -> Any:
        found = otherwise if name is None else program.tensors[name].double().numpy().reshape(-1)
        return np.broadcast_to(found, (channels,)).astype(np.float64)

    scale, bias = values(op.affine.scale_tensor, 1.0), values(op.affine.bias_tensor, 0.0)
    if op.norm is not None:
        mean, gain, shift = (
            values(name, 0.0) for name in (op.norm.mean_tensor, op.norm.gain_tensor, op.norm.shift_tensor)
        )
        scale, bias = scale * gain, (bias - mean) * gain + shift
    return scale, bias
