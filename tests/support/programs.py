"""Small random integer programs, made directly of operations, and onnxruntime at every optimisation level."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
import torch

from chipfit.chips.witmem.program import ops
from chipfit.program.types import VERSION, Grid, Input, Node, Program, ValueType


@dataclass
class Maker:
    """Builds a program node by node; codes are those of the last edge unless said otherwise."""

    rng: np.random.Generator
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def start(self, shape: tuple[int, ...], bits: int, signed: bool = True, zero: int = 0, scale: float = 16.0) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(Input(name, ValueType(shape, None)))
        kind = ValueType(shape, bits, signed, Grid("plain", scale, zero))
        return self.node(f"{name}.q", ops.Quantise(scale, zero, kind.lo, kind.hi), (name,), kind)

    def node(self, name: str, op: ops.Op, inputs: tuple[str, ...], kind: ValueType) -> str:
        self.nodes.append(Node(name, op, inputs, kind, layer=name if isinstance(op, (ops.Array, ops.Gru)) else ""))
        return name

    def tensor(self, name: str, values: np.ndarray) -> str:
        dtype = torch.float64 if values.dtype.kind == "f" else torch.int64
        self.tensors[name] = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
        return name

    def array_op(self, name: str, geometry: ops.Geometry, weight: np.ndarray, **options: object) -> ops.Array:
        out = weight.shape[1] if geometry.kind == "conv_transpose" else weight.shape[0]
        negative = options.get("negative", "unsigned")
        bias = 128 * self.rng.integers(-8, 9, out)
        split = options.pop("split", None)
        if split:
            self.tensor(f"{name}.digital", 128 * self.rng.integers(-4, 5, out))
        defaults = {
            "geometry": geometry,
            "weight_tensor": self.tensor(f"{name}.weight", weight),
            "negative_weight_tensor": self.tensor(f"{name}.minus", np.clip(-weight, -128, 127))
            if negative == "pn"
            else None,
            "bias_tensor": self.tensor(f"{name}.bias", bias),
            "exact_bias_tensor": self.tensor(f"{name}.exact", bias.astype(float)),
            "negative": negative,
            "shift_code": 0,
            "log2_g": self.integer(3, 10),
            "rounding": ("witin_nn", "wtm2101")[self.integer(0, 1)],
            "lo": -128,
            "hi": 127,
            "bias_rows": 8,
            "x_bits": 8,
            "split": ops.Split(f"{name}.digital", -128, 127) if split else None,
        }
        return ops.Array(**(defaults | options))

    def weights(self, *shape: int, limit: int = 127) -> np.ndarray:
        return self.rng.integers(-limit - 1, limit + 1, shape)

    def finish(self, *outputs: str) -> Program:
        names = []
        for edge in outputs:
            shape = next(node.output.shape for node in self.nodes if node.name == edge)
            names.append(self.node(f"{edge}.real", ops.Dequantise(), (edge,), ValueType(shape, None)))
        return Program(VERSION, "wtm2101", tuple(self.nodes), tuple(self.inputs), tuple(names), self.tensors)

    def data(self, batch: int) -> list[torch.Tensor]:
        """Inputs up to twice the range, half of them on code boundaries."""
        drawn = []
        for given in self.inputs:
            reader = next(node for node in self.nodes if given.name in node.inputs)
            kind = reader.output
            values = self.rng.uniform(2 * kind.lo - 1, 2 * kind.hi + 1, (batch, *given.type.shape))
            on_ties = np.rint(2 * values) / 2
            values = np.where(self.rng.random(values.shape) < 0.5, on_ties, values) / kind.scale
            drawn.append(torch.from_numpy(values).float())
        return drawn


def two_layers(seed: int = 0, **options: object) -> Program:
    """A network that the chip's compiler takes: 6 -> 5, ReLU, 5 -> 3, scales that chain; `options` of the first."""
    made = Maker(np.random.default_rng(seed))
    x = made.start((6,), 8, signed=False)
    codes = ValueType((5,), 8, True, 16.0)
    linear = ops.Geometry("linear")
    first = made.array_op("fc1", linear, made.weights(5, 6), log2_g=8, rounding="wtm2101", **options)
    y = made.node("fc1", first, (x,), codes)
    y = made.node("relu", ops.Relu(), (y,), codes)
    second = made.array_op("fc2", linear, made.weights(3, 5), log2_g=10, rounding="wtm2101")
    y = made.node("fc2", second, (y,), ValueType((3,), 8, True, 4.0))
    return made.finish(y)


LEVELS = [
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
]


def run_at_every_level(model: bytes, inputs: dict[str, np.ndarray], optimised: str = "") -> list[list[np.ndarray]]:
    """The outputs by onnxruntime at every optimisation level; the last level's graph is kept where a path is given."""
    found = []
    for level in LEVELS:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1
        if optimised and level == LEVELS[-1]:
            options.optimized_model_filepath = optimised
            options.log_severity_level = 3  # it warns that such a file fits this machine only
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, inputs))
    return found
