"""The reference: computes an integer program in int64, one plain function an operation.

Written from the specifications (spec/wtm2101-silicon.md section 1, spec/witmem-array.md section 4,
spec/witmem-digital.md section 3) and from `ops.py`; it shares no arithmetic with the training layers. Floating point
appears where real numbers come in and go out, and nowhere else. `fast.py` computes the same, faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chipfit.chips.ingenic.program import reference as interpreter_ingenic
from chipfit.errors import NonFiniteError, ShapeError, UnknownOptionError
from chipfit.program import ops
from chipfit.program.grid import value
from chipfit.program.integers import half_even_quotient, integer_root, shifted, wtm2101_quotient
from chipfit.program.types import Node, Program

Tensors = Mapping[str, Tensor]


def run(program: Program, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Compute a program.

    Args:
        program: From `lower` or `load_program`.
        inputs: Real inputs in the order of the network's arguments, floating dtype, batch first.

    Returns:
        The outputs as float32 values on their grids; a tuple where there are several.

    Raises:
        ShapeError: another number of inputs than the program has, or of another shape.
        NonFiniteError: an input holds NaN.

    Example:
        >>> from chipfit.program.types import VERSION, Input, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", ops.Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> y = Node("y", ops.Dequantise(), ("q",), real)
        >>> run(Program(VERSION, "wtm2101", (q, y), (Input("x", real),), ("y",), {}), torch.tensor([[0.49, 9.0]]))
        tensor([[0.5000, 7.9375]])
    """
    edges = trace(program, *inputs)
    outputs = tuple(edges[name] for name in program.outputs)
    return outputs[0] if len(outputs) == 1 else outputs


def trace(program: Program, *inputs: Tensor) -> dict[str, Tensor]:
    """Compute a program and keep every edge: codes as int64, real numbers as float32.

    Args:
        program: As for `run`.
        inputs: As for `run`.

    Returns:
        Every edge by name, the inputs among them. Raises as `run`.
    """
    edges = dict(real_inputs(program, inputs))
    for node in program.nodes:
        edges[node.name] = compute(node, [edges[name] for name in node.inputs], program)
    return edges


def real_inputs(program: Program, inputs: tuple[Tensor, ...]) -> Iterator[tuple[str, Tensor]]:
    """The inputs by name, checked, in float32 on the CPU."""
    if len(inputs) != len(program.inputs):
        allowed = ", ".join(given.name for given in program.inputs)
        raise ShapeError("wrong number of inputs", given=len(inputs), allowed=allowed, where="program")
    for given, x in zip(program.inputs, inputs, strict=True):
        if given.type.shape is not None and tuple(x.shape[1:]) != given.type.shape:
            allowed = f"(N, {', '.join(map(str, given.type.shape))})"
            raise ShapeError("input has the wrong shape", given=tuple(x.shape), allowed=allowed, where=given.name)
        yield given.name, x.detach().cpu().to(torch.float32)


def compute(node: Node, args: list[Tensor], program: Program) -> Tensor:
    """Compute one node from the values of its input edges."""
    op = node.op
    if isinstance(op, ops.Quantise):
        return quantise(args[0], op, node.name)
    if isinstance(op, ops.Dequantise):
        return value(args[0], program.type(node.inputs[0]).grid)
    return apply(op, args, program.tensors)


def apply(op: ops.Op, args: list[Tensor], tensors: Tensors) -> Tensor:
    """Compute an operation on values, with the tensors that it names; not for `Quantise` and `Dequantise`."""
    return _COMPUTE[type(op)](op, args, tensors)


# --- numbers in, codes to codes


def quantise(x: Tensor, op: ops.Quantise, where: str, dtype: torch.dtype = torch.int64) -> Tensor:
    """Real numbers to codes, held in a dtype."""
    if bool(torch.isnan(x).any()):
        raise NonFiniteError("the input holds NaN, which has no code", given=int(torch.isnan(x).sum()), where=where)
    scaled = x * op.scale + op.zero if op.zero else x * op.scale
    return scaled.round_().clamp_(op.lo, op.hi).to(dtype)


def _rescale(op: ops.Rescale, args: list[Tensor], _: Tensors) -> Tensor:
    if op.shift >= 0:
        return ((args[0] << op.shift) + op.zero).clamp(op.lo, op.hi)
    return shifted(args[0] + (op.zero << -op.shift), op.shift).clamp(op.lo, op.hi)


def _look_up(op: ops.LookUp, args: list[Tensor], tensors: Tensors) -> Tensor:
    table, index = tensors[op.table_tensor], args[0] - op.first
    if table.shape[0] == 1:
        return table[0][index]
    rows = torch.arange(table.shape[0]).view(-1, *[1] * (index.dim() - 2))
    return table[rows.expand(index.shape), index]


# --- the array


def array_quotient(total: Tensor, log2_g: int, rounding: str) -> Tensor:
    """Accumulator over G by the array's rounding rule.

    Raises:
        UnknownOptionError: no such rule.
    """
    if rounding == "witin_nn":
        return shifted(total, -log2_g)
    if rounding == "wtm2101":
        return wtm2101_quotient(total, log2_g)
    raise UnknownOptionError("unknown rounding rule", given=rounding, allowed="witin_nn, wtm2101", where="array")


def linear_map(x: Tensor, weight: Tensor, geometry: ops.Geometry, bias: Tensor | None = None) -> Tensor:
    """The linear map of an array operation, in the dtype of its arguments."""
    if geometry.kind == "linear":
        return F.linear(x, weight, bias)
    return torch.convolution(
        x,
        weight,
        bias,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.kind == "conv_transpose",
        geometry.output_padding or (0,) * len(geometry.stride),
        geometry.groups,
    )


def per_channel(values: Tensor, geometry: ops.Geometry) -> Tensor:
    """View one value per output channel so that it broadcasts over the operation's output."""
    return values if geometry.kind == "linear" else values.view(-1, *[1] * len(geometry.stride))


def array(q: Tensor, op: ops.Array, tensors: Tensors) -> Tensor:
    """An array operation; see `ops.Array` and `ops.Split`."""
    passes = [(q, tensors[op.weight_tensor])]
    if op.negative_weight_tensor is not None:
        passes = [(q.clamp(min=0), tensors[op.weight_tensor]), ((-q).clamp(min=0), tensors[op.negative_weight_tensor])]

    def accumulated(part: Callable[[Tensor], Tensor], bias_tensor: str) -> Tensor:
        total = per_channel(tensors[bias_tensor], op.geometry)
        for codes, weight in passes:
            total = total + linear_map(part(codes), weight, op.geometry)
        return total

    if op.split is None:
        total = accumulated(lambda codes: codes, op.bias_tensor)
        return array_quotient(total, op.log2_g, op.rounding).clamp(op.lo, op.hi)
    analog = array_quotient(accumulated(lambda codes: codes % 256, op.bias_tensor), op.log2_g, op.rounding)
    digital = accumulated(lambda codes: codes - codes % 256, op.split.digital_bias_tensor)
    analog = analog.clamp(op.split.analog_lo, op.split.analog_hi)
    return (analog + shifted(digital, -op.log2_g)).clamp(op.lo, op.hi)


def gru(op: ops.Gru, args: list[Tensor], tensors: Tensors, run_array: Callable[..., Tensor] = array) -> Tensor:
    """One GRU cell over a sequence; see `ops.Gru`."""
    steps = list(run_array(args[0], op.input, tensors).unbind(op.time_dim))
    size = steps[0].shape[-1] // 3
    h = args[1] if len(args) == 2 else steps[0].new_zeros(*steps[0].shape[:-1], size)
    gate_table, candidate_table = tensors[op.gate_table_tensor], tensors[op.candidate_table_tensor]

    def index(mine: Tensor, other: Tensor, shift: int) -> Tensor:
        return shifted((mine << op.input_shift) + (other << op.hidden_shift), shift).clamp(-512, 511) + 512

    states = []
    for a in reversed(steps) if op.reverse else steps:
        b = run_array(h, op.hidden, tensors)
        r, z = gate_table[index(a[..., : 2 * size], b[..., : 2 * size], op.gate_shift)].chunk(2, dim=-1)
        reset = shifted(r * b[..., 2 * size :], -7)
        n = candidate_table[index(a[..., 2 * size :], reset, op.candidate_shift)]
        h = shifted((128 - z) * n + z * h, -7).clamp(-128, 127)
        states.append(h)
    return torch.stack(states[::-1] if op.reverse else states, op.time_dim)


# --- the digital unit


def _add(op: ops.Add, args: list[Tensor], _: Tensors) -> Tensor:
    return shifted(args[0] + args[1], op.shift).clamp(op.lo, op.hi)


def _mul(op: ops.Mul, args: list[Tensor], _: Tensors) -> Tensor:
    return shifted(args[0] * args[1], op.shift).clamp(op.lo, op.hi)


def _matmul(op: ops.MatMul, args: list[Tensor], _: Tensors) -> Tensor:
    return shifted(torch.matmul(args[0], args[1]), op.shift).clamp(op.lo, op.hi)


def _divide(op: ops.Divide, args: list[Tensor], _: Tensors) -> Tensor:
    a, b = args
    quotient = half_even_quotient(a * b.sign(), b.abs().clamp(min=1))
    by_sign = torch.where(a > 0, op.hi, torch.where(a < 0, op.lo, 0))
    return torch.where(b == 0, by_sign, shifted(quotient, op.shift)).clamp(op.lo, op.hi)


def _lifted(v: Tensor, bits: int) -> Tensor:
    """`floor(v * 2^bits)`: the operand of a root, whose floor takes nothing from the root's."""
    return v << bits if bits >= 0 else v >> -bits


def _hypot(op: ops.Hypot, args: list[Tensor], _: Tensors) -> Tensor:
    root = integer_root(_lifted(args[0] ** 2 + args[1] ** 2, op.root_shift))
    return shifted(root, op.shift).clamp(op.lo, op.hi)


def _multiply_add(op: ops.MultiplyAdd, args: list[Tensor], tensors: Tensors) -> Tensor:
    channels = (-1, *[1] * (args[0].dim() - 2))
    total = args[0] * tensors[op.weight_tensor].view(channels) + tensors[op.bias_tensor].view(channels)
    return shifted(total, op.shift).clamp(op.lo, op.hi)


def _mean_code(q: Tensor, dims: tuple[int, ...], keepdim: bool, sum_lo: int, sum_hi: int) -> Tensor:
    n = 1
    for dim in dims:
        n *= q.shape[dim]
    return half_even_quotient(q.sum(dims, keepdim=keepdim).clamp(sum_lo, sum_hi), n)


def _mean(op: ops.Mean, args: list[Tensor], _: Tensors) -> Tensor:
    return _mean_code(args[0], op.dims, op.keepdim, op.sum_lo, op.sum_hi)


def _layer_norm(op: ops.LayerNorm, args: list[Tensor], _: Tensors) -> Tensor:
    deviation = args[0] if op.simple else args[0] - _mean_code(args[0], (1, 3), True, op.sum_lo, op.sum_hi)
    variance = _mean_code(deviation**2, (1, 3), True, op.sum_lo, op.sum_hi)
    root = integer_root(_lifted(variance, op.root_shift))
    power = op.root_shift // 2 + op.log2_scale
    quotient = half_even_quotient(deviation << max(power, 0), root.clamp(min=1) << max(-power, 0))
    return torch.where(root == 0, 0, quotient).clamp(op.lo, op.hi)


# --- moving and selecting


def _max_pool(op: ops.MaxPool, args: list[Tensor], _: Tensors) -> Tensor:
    pool: Any = F.max_pool1d if len(op.kernel) == 1 else F.max_pool2d
    # codes have far fewer than 53 bits, so float64 orders them exactly; torch's int64 pooling lacks the 1-D case
    pooled: Tensor = pool(args[0].double(), op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode)
    return pooled.to(args[0].dtype)


def _sum_pool(op: ops.SumPool, args: list[Tensor], _: Tensors) -> Tensor:
    windows = args[0]
    for axis, (kernel, stride) in enumerate(zip(op.kernel, op.stride, strict=True)):
        windows = windows.unfold(args[0].dim() - len(op.kernel) + axis, kernel, stride)
    return windows.sum(tuple(range(-len(op.kernel), 0)))


def _pad(op: ops.Pad, args: list[Tensor], _: Tensors) -> Tensor:
    if op.mode == "constant":
        return F.pad(args[0], op.pads, value=op.value)
    return F.pad(args[0].double(), op.pads, mode=op.mode).to(args[0].dtype)


def _slice(op: ops.Slice, args: list[Tensor], _: Tensors) -> Tensor:
    stop = args[0].shape[op.dim] if op.stop is None else op.stop
    return args[0].movedim(op.dim, 0)[op.start : stop : op.step].movedim(0, op.dim)


_COMPUTE: dict[type[ops.Op], Callable[[Any, list[Tensor], Tensors], Tensor]] = {
    ops.Rescale: _rescale,
    ops.Array: lambda op, args, tensors: array(args[0], op, tensors),
    ops.Gru: gru,
    ops.LookUp: _look_up,
    ops.Constant: lambda op, args, tensors: tensors[op.codes_tensor],
    ops.Relu: lambda op, args, tensors: args[0].clamp(min=0),
    ops.Clamp: lambda op, args, tensors: args[0].clamp(op.lo, op.hi),
    ops.Add: _add,
    ops.Mul: _mul,
    ops.MatMul: _matmul,
    ops.Divide: _divide,
    ops.Hypot: _hypot,
    ops.MultiplyAdd: _multiply_add,
    ops.Mean: _mean,
    ops.LayerNorm: _layer_norm,
    ops.MaxPool: _max_pool,
    ops.SumPool: _sum_pool,
    ops.Sum: lambda op, args, tensors: args[0].sum(op.dims, keepdim=op.keepdim),
    ops.Max: lambda op, args, tensors: args[0].amax(op.dims, op.keepdim),
    ops.Pad: _pad,
    ops.Reshape: lambda op, args, tensors: args[0].reshape(op.shape),
    ops.Permute: lambda op, args, tensors: args[0].permute(op.dims),
    ops.Slice: _slice,
    ops.Select: lambda op, args, tensors: args[0].select(op.dim, op.index),
    ops.Flip: lambda op, args, tensors: args[0].flip(op.dims),
    ops.Cat: lambda op, args, tensors: torch.cat(args, op.dim),
    **interpreter_ingenic.COMPUTE,
}
