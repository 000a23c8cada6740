"""What the WTM2101's compiler reads, as data: node kinds, their inputs and attributes, and the ranges of integers.

Source: spec/wtm2101-silicon.md, sections 1 to 3 (the vendor's documents and example files). The compiler itself was
never run against these rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from chipfit.chips.witmem.wtm2101 import LOG2_G

OPSET = 15
"""What we write."""
OPSETS = (14, 15, 16, 17, 18, 21)
"""What occurs in the vendor's own files."""
IR_VERSION = 8
WEIGHT_RANGE = (-128, 127)
INPUT_RANGE = (0, 255)
SIGNED_INPUT_RANGE = (-128, 127)
OUTPUT_RANGE = (-128, 127)
G_RANGE = (1 << LOG2_G[0], 1 << LOG2_G[1])
BIAS_UNIT = 128
CELL_LIMIT = 275
"""Largest value of a cell: decides how many bias rows a bias needs."""
BIAS_LIMIT = 16 * CELL_LIMIT * BIAS_UNIT
"""16 bias rows of cells, each driven with 128."""
ROWS_PER_OPERATION = 896
CALIBRATION_SAMPLES = 100
GRU_TABLE = (2, 1024)
GATES = ("sigmoid", "tanh")
LSTM_GATES = ("sigmoid", "tanh", "tanh")
"""`activate_type`, a list of strings; the vendor's importer rejects a single one."""
ACT_TABLE = (1, 256)


@dataclass(frozen=True)
class NodeRule:
    """What a node of one kind must look like.

    Args:
        inputs: Allowed numbers of inputs.
        required: Attributes that must be there, each with its kind: 'int', 'ints', 'float', 'number' (an int or a
            float), 'string', 'strings' or 'tensor'.
        optional: Attributes that may be there.
        constants: Positions of inputs that must be initializers.
        array: Whether it stands on the array, so that it needs a name and an entry in the side file.
        scaled: Whether a Scale node must follow directly.
    """

    inputs: tuple[int, ...]
    required: dict[str, str]
    optional: dict[str, str]
    constants: tuple[int, ...] = ()
    array: bool = False
    scaled: bool = False


def _pool(**required: str) -> NodeRule:
    return NodeRule((1,), required, {"strides": "ints", "pads": "ints", **_POOL_SCALES})


_POOL_SCALES = {"scale_in": "number", "scale_out": "number"}
_TABLES = {"activate_table": "tensor", "shift_bits": "ints"}

NODES: dict[str, NodeRule] = {
    "Gemm": NodeRule((3,), {}, {}, constants=(1, 2), array=True, scaled=True),
    "Conv": NodeRule(
        (3,),
        {"kernel_shape": "ints", "strides": "ints", "pads": "ints"},
        {"dilations": "ints", "group": "int"},
        constants=(1, 2),
        array=True,
        scaled=True,
    ),
    "ConvTranspose": NodeRule(
        (3,),
        {"kernel_shape": "ints", "strides": "ints", "pads": "ints", "output_padding": "ints"},
        {},
        constants=(1, 2),
        array=True,
        scaled=True,
    ),
    "Tdnn": NodeRule(
        (2,),
        {"time_offsets": "tensor", "bias_params": "tensor", "scale_params": "int"},
        {},
        constants=(1,),
        array=True,
    ),
    "Gru2Array": NodeRule(
        (5,),
        {
            "input_offset": "int",
            "hidden_shift_bit": "int",
            "scale_input": "int",
            "scale_hidden": "int",
            "scale_ones": "int",
            "activate_type": "strings",
            "clean_ht": "int",
            **_TABLES,
        },
        {},
        constants=(1, 2, 3, 4),
        array=True,
    ),
    "Gru": NodeRule(
        (5, 7),
        {"scale_zr": "int", "scale_ht": "int", "scale_in": "int", "scale_ones": "int", "clean_ht": "int", **_TABLES},
        {"activate_type": "strings"},
        constants=(1, 2, 3, 4),
        array=True,
    ),
    "Lstm": NodeRule(
        (5,),
        {"scale_ioft": "int", "scale_ct": "int", "activate_type": "strings", "clean_ctht": "int", **_TABLES},
        {},
        constants=(1, 2, 3, 4),
        array=True,
    ),
    "Scale": NodeRule((1,), {"scale": "float"}, {}),
    "Relu": NodeRule((1,), {}, {}),
    "ActLut": NodeRule((1,), {"act_type": "string", "table_params": "tensor"}, {}),
    "Add": NodeRule((2,), {}, {"shift_bit": "int"}),
    "Mul": NodeRule((2,), {}, {"shift_bit": "int"}),
    "FloatScale": NodeRule((1,), {"scale": "float", "clip_bits": "int"}, {}),
    "AveragePool": _pool(kernel_shape="ints"),
    "GlobalAveragePool": NodeRule((1,), {}, _POOL_SCALES),
    "MaxPool": _pool(kernel_shape="ints"),
    "Softmax": NodeRule((1,), {}, {"axis": "int"}),
    "ReduceMean": NodeRule((1, 2), {"keepdims": "int"}, {"axes": "ints"}, constants=(1,)),
    "Slice": NodeRule((3, 4, 5), {}, {}, constants=(1, 2, 3, 4)),
    "Concat": NodeRule(tuple(range(2, 65)), {"axis": "int"}, {}),
    "Split": NodeRule((1, 2), {}, {"axis": "int", "num_outputs": "int"}, constants=(1,)),
    "Reshape": NodeRule((2,), {}, {}, constants=(1,)),
    "Flatten": NodeRule((1,), {}, {"axis": "int"}),
    "Permute": NodeRule((1,), {"dims": "ints"}, {}),
}
"""Every node that the compiler is known to read."""

INDEX_INPUTS = {"ReduceMean", "Reshape", "Slice", "Split"}
"""Kinds whose second and later inputs are positions and sizes: int64, as ONNX has it, not codes."""

FORBIDDEN = {"Div": "the compiler silently reads Div as Mul"}
"""Kinds that ONNX knows and that must never be written, each with the reason."""


def is_allowed_g(g: float) -> bool:
    """Whether the chip can divide an accumulator by `g`.

    Example:
        >>> is_allowed_g(1024), is_allowed_g(1000), is_allowed_g(128)
        (True, False, False)
    """
    return G_RANGE[0] <= g <= G_RANGE[1] and g == int(g) and int(g) & (int(g) - 1) == 0
