"""The WTM2101 as data (spec/wtm2101-silicon.md, sections 1 and 2)."""

from __future__ import annotations

from chipfit.hardware import ArrayGeometry, Chip

LOG2_G = (8, 13)
"""log2 of the smallest and of the largest G that the array divides by."""

WTM2101 = Chip(
    name="wtm2101",
    vendor="witmem",
    title="Witmem WTM2101, analog in-memory compute",
    activation_bits=(8, 9, 10, 11, 12),
    weight_bits=(8,),
    g_range=(1 << LOG2_G[0], 1 << LOG2_G[1]),
    rounding="wtm2101",
    array=ArrayGeometry(rows=1792, columns=1024, rows_per_pass=896, bias_rows=16),
    operators={
        "Linear": "WitinLinear",
        "Conv1d": "WitinConv1d",
        "Conv2d": "WitinConv2d",
        "ConvTranspose2d": "WitinConvTranspose2d",
        "GRUCell": "WitinGruCell",
        "GRU": "WitinGru",
        "GELU": "WitinGELU",
        "Sigmoid": "WitinSigmoid",
        "Tanh": "WitinTanh",
        "PReLU": "WitinPReLU",
        "BatchNorm2d": "WitinBatchNorm2d",
    },
    source="vendor toolchain and manual, spec/wtm2101-silicon.md; the bias rows and rows per pass are estimates",
)
