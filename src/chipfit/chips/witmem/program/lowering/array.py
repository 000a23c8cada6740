"""Lowering rules of the Witmem array layers: weights and biases to codes, by spec/witmem-array.md, section 4.

Weights, biases and ranges are computed here anew, in numpy, from the layers' parameters and the numbers in force;
nothing is taken from the arithmetic that trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d, WitinConvTranspose2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.chips.witmem.program import ops
from chipfit.chips.witmem.program.lowering.codes import clipped_range, scales_of, with_scales
from chipfit.chips.witmem.program.ranges import array_bounds
from chipfit.errors import UnsupportedError
from chipfit.program.lowering.builder import Builder, Call, Value, grid, half_even_codes, log2_of
from chipfit.program.types import ValueType

if TYPE_CHECKING:
    from chipfit.chips.witmem.array.numbers import ArraySpec

UNIT = 128
"""A bias is a multiple of this."""
_INT8 = (-128, 127)


def numbers_of(layer: Any) -> ArraySpec:
    """The numbers of an array layer in force in evaluation."""
    scales = scales_of(layer)
    return with_scales(layer.spec_in_force(), scales["x"], scales["weight"], scales["y"])


def negative_mode(spec: ArraySpec) -> ops.Negative:
    """How the operation takes its input."""
    if spec.negative is HandleNegInType.PN:
        return "pn"
    if spec.negative is HandleNegInType.Shift:
        return "shift"
    return "signed" if spec.signed_input else "unsigned"


def shift_code(spec: ArraySpec) -> int:
    """Code of the constant that Shift mode adds."""
    if spec.negative is not HandleNegInType.Shift:
        return 0
    return round(min(max(spec.shift_num * spec.scale_x, 0.0), float(spec.shift_limit)))


def on_input_grid(b: Builder, name: str, x: Any, spec: ArraySpec) -> Value:
    """Bring a value to the input grid of an array operation."""
    highest = (1 << spec.x_bits) - 1
    log2_of(spec.scale_x, "scale_x")
    mode = negative_mode(spec)
    if mode == "pn":
        return b.on_grid(name, x, grid(spec.x_bits + 1, True, spec.scale_x), -highest, highest)
    return b.on_grid(name, x, grid(spec.x_bits, mode == "signed", spec.scale_x, shift_code(spec)))


def array_op(
    b: Builder,
    name: str,
    weight: Tensor,
    bias: Tensor,
    spec: ArraySpec,
    geometry: ops.Geometry,
    rounding: str | None,
    limit: tuple[int, int] | None = None,
) -> tuple[ops.Array, bool]:
    """Turn the parameters of an array operation to codes.

    Args:
        b: Receives the tensors, named after `name`.
        name: The operation.
        weight: Float weight, torch's layout.
        bias: Float bias, shape `(out,)`.
        spec: The numbers in force.
        geometry: The linear map.
        rounding: Rounding rule, or None for that of `spec`.
        limit: What the output codes are clipped to in the end, beyond their own range.

    Returns:
        The operation, and whether float32 computes it exactly.

    Raises:
        UnsupportedError: a scale is no power of two, or a split operation has G below 1.
    """
    logs = [log2_of(getattr(spec, scale), scale) for scale in ("scale_x", "scale_weight", "scale_y")]
    log2_g = logs[0] + logs[1] - logs[2]
    rule = rounding or spec.rounding
    w = weight.detach().cpu().numpy()
    if spec.w_clip:
        w = np.minimum(np.maximum(w, w.dtype.type(-spec.w_clip)), w.dtype.type(spec.w_clip))
    limits = -(1 << (spec.weight_bits - 1)), (1 << (spec.weight_bits - 1)) - 1
    codes = half_even_codes(w, spec.scale_weight, *limits)
    negative_tensor = None
    if spec.negative is HandleNegInType.PN:
        other = half_even_codes(-w, spec.scale_weight, *limits) if spec.per_pass_quotient else -codes
        negative_tensor = b.keep(f"{name}.negative_weight", other)
    y_range = -(1 << (spec.y_bits - 1)), (1 << (spec.y_bits - 1)) - 1
    lo, hi = clipped_range(spec.fp_clip, spec.scale_y, *y_range, rule)
    weight_tensor = b.keep(f"{name}.weight", codes)

    def made(dtype: Any) -> ops.Array:
        bias_codes, exact, digital = bias_codes_of(bias.detach().cpu().numpy().astype(dtype), codes, spec, geometry)
        split = None
        if spec.splits:
            if log2_g < 0:
                raise UnsupportedError(
                    "G is below 1 in a layer that splits its input", given=2.0**log2_g, allowed="1 up"
                )
            split = ops.Split(b.keep(f"{name}.digital_bias", digital), *y_range)
        return ops.Array(
            geometry,
            weight_tensor,
            negative_tensor,
            b.keep(f"{name}.bias", bias_codes),
            b.keep(f"{name}.exact_bias", exact),
            negative_mode(spec),
            shift_code(spec),
            log2_g,
            rule,
            *((lo, hi) if limit is None else (max(lo, limit[0]), min(hi, limit[1]))),
            spec.bias_rows,
            spec.x_bits,
            split,
        )

    op = made(w.dtype)
    if array_bounds(op, b.tensors).exact_in_float32:
        return op, True
    for tensor in (op.bias_tensor, op.exact_bias_tensor):  # the exact path takes the bias to codes in float64 too
        del b.tensors[tensor]
    if op.split is not None:
        del b.tensors[op.split.digital_bias_tensor]
    return made(np.float64), False


def bias_codes_of(bias: Any, weight: Any, spec: ArraySpec, geometry: ops.Geometry) -> tuple[Any, Any, Any]:
    """Bias codes of an array operation, computed in the dtype of `bias`.

    Args:
        bias: Float bias.
        weight: Weight codes.
        spec: The numbers in force.
        geometry: The linear map.

    Returns:
        Codes (multiples of 128); their exact float64 values before rounding and clipping; the codes that the digital
        unit adds in a split operation.
    """
    scale = bias.dtype.type(spec.scale_x * spec.scale_weight)
    rows = weight.swapaxes(0, 1) if geometry.kind == "conv_transpose" else weight
    taken_back = shift_code(spec) * rows.reshape(rows.shape[0], -1).sum(1)  # integers
    lowest, highest = -UNIT * spec.bias_rows, (UNIT - 1) * spec.bias_rows
    real = bias * scale
    exact = bias.astype(np.float64) * float(scale) - taken_back
    digital = np.zeros(bias.shape, np.int64)
    if not spec.splits:
        units = (real - taken_back.astype(bias.dtype)) / UNIT
        return np.rint(np.clip(units, lowest, highest)).astype(np.int64) * UNIT, exact, digital
    if spec.bias_digital is not None:
        part = spec.bias_digital.detach().cpu().numpy().astype(bias.dtype) * scale
        digital = digital + np.rint(part / UNIT).astype(np.int64) * UNIT
    units = np.rint(real / UNIT) - digital / UNIT
    if spec.negative is HandleNegInType.Shift:
        units = np.rint((units * UNIT - taken_back) / UNIT)
    return np.clip(units, lowest, highest).astype(np.int64) * UNIT, exact - digital, digital


def output_grid(spec: ArraySpec) -> ValueType:
    """Type of an array operation's output."""
    return grid(spec.y_bits, True, spec.scale_y)


def _array_node(
    b: Builder, call: Call, layer: Any, x: Value, spec: ArraySpec, geometry: ops.Geometry, int8: bool = False
) -> Value:
    op, exact = array_op(
        b, call.name, layer.weight, layer.bias, spec, geometry, call.options["rounding"], _INT8 if int8 else None
    )
    return b.add(call.name, op, (x,), output_grid(spec), op.lo, op.hi, call.layer, exact)


def linear(b: Builder, call: Call, layer: WitinLinear, input: Value) -> Value:
    """WitinLinear."""
    spec = numbers_of(layer)
    x = on_input_grid(b, f"{call.name}.input", input, spec)
    return _array_node(b, call, layer, x, spec, ops.Geometry("linear"))


def conv(b: Builder, call: Call, layer: Any, input: Value) -> Value:
    """WitinConv1d and WitinConv2d: what torch pads with other than code 0 becomes a Pad of its own."""
    spec = numbers_of(layer)
    _check_batched(call, len(layer.kernel_size))
    x = on_input_grid(b, f"{call.name}.input", input, spec)
    pads = tuple(layer._reversed_padding_repeated_twice)  # last axis first, before and after
    before, after = pads[::2][::-1], pads[1::2][::-1]
    zero_code = min(max(x.type.zero, x.type.lo), x.type.hi)
    padding = before
    if layer.padding_mode != "zeros" or before != after or zero_code:
        padding = (0,) * len(before)
        if any(pads):
            mode: Any = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            value = zero_code if mode == "constant" else 0
            lo, hi = (min(x.lo, value), max(x.hi, value)) if mode == "constant" else (x.lo, x.hi)
            x = b.add(f"{call.name}.pad", ops.Pad(pads, mode, value), (x,), x.type, lo, hi)
    geometry = ops.Geometry("conv", tuple(layer.stride), padding, tuple(layer.dilation), (), layer.groups)
    int8 = layer.to_linear or spec.negative is HandleNegInType.PN
    return _array_node(b, call, layer, x, spec, geometry, int8)


def conv_transpose(b: Builder, call: Call, layer: WitinConvTranspose2d, input: Value, output_size: Any = None) -> Value:
    """WitinConvTranspose2d; an `output_size` becomes the output padding that gives it."""
    spec = numbers_of(layer)
    _check_batched(call, 2)
    if spec.negative is HandleNegInType.Shift:
        raise UnsupportedError("WitinConvTranspose2d has no Shift mode", allowed="FALSE or PN")
    x = on_input_grid(b, f"{call.name}.input", input, spec)
    sizes = zip(
        call.shapes[0][2:],
        call.input_shapes[0][0][2:],
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        strict=True,
    )
    extra = tuple(out - (i - 1) * s + 2 * int(p) - d * (k - 1) - 1 for out, i, k, s, p, d in sizes)
    padding = tuple(int(p) for p in layer.padding)
    geometry = ops.Geometry("conv_transpose", tuple(layer.stride), padding, tuple(layer.dilation), extra, 1)
    return _array_node(b, call, layer, x, spec, geometry)


def _check_batched(call: Call, spatial: int) -> None:
    shape = call.input_shapes[0][0]
    if len(shape) != spatial + 2:
        raise UnsupportedError("an unbatched input", given=shape, allowed="batch, channels, space")


LAYERS: dict[type[Any], Any] = {
    WitinLinear: linear,
    WitinConv1d: conv,
    WitinConv2d: conv,
    WitinConvTranspose2d: conv_transpose,
}
"""Rules by class of layer."""
