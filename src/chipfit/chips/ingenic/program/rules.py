"""The table of Ingenic's dialect: one row an operation that only its programs have."""

from __future__ import annotations

from typing import Any

import torch

from chipfit.chips.ingenic.program import c, certificate, fast, onnx, ops, ranges, reference
from chipfit.program.core.fast import as_given
from chipfit.program.core.ranges import at_the_ends, limits, of_tensor
from chipfit.program.dialect import Dialect, Meaning


def _of_image(op: ops.PixelCodes) -> dict[str, Any]:
    """As `Preprocess` has them."""
    return {"mean": -op.lo, "var": op.n}


DIALECT = Dialect(
    "ingenic",
    (
        Meaning(
            ops.PixelCodes, reference.pixel_codes, as_given, limits, onnx.pixel_codes, c.PIXEL_CODES, of_input=_of_image
        ),
        Meaning(
            ops.Finish,
            reference.finish,
            fast.finish,
            ranges.of_requantised,
            onnx.finish,
            c.FINISH,
            row=certificate.of_layer,
        ),
        Meaning(
            ops.Combine,
            reference.combine,
            fast.combine,
            ranges.of_requantised,
            onnx.combine,
            c.COMBINE,
            row=certificate.of_layer,
        ),
        Meaning(
            ops.AverageCodes,
            reference.average_codes,
            fast.average,
            at_the_ends,
            onnx.average_codes,
            c.AVERAGE,
            row=certificate.of_layer,
        ),
        Meaning(ops.FloatMean, reference.float_mean, onnx=onnx.float_mean, c=c.FLOAT_MEAN),
        Meaning(
            ops.Maximum,
            lambda op, args, _: torch.maximum(args[0], args[1]),
            as_given,
            at_the_ends,
            onnx.maximum,
            c.MAXIMUM,
        ),
        Meaning(ops.Enlarge, reference.enlarge, as_given, ranges.enlarge, onnx.enlarge, c.ENLARGE),
        Meaning(
            ops.TableRows, reference.table_rows, as_given, of_tensor("table_tensor"), onnx.table_rows, c.TABLE_ROWS
        ),
    ),
    fuse=fast.fuse,
    columns=certificate.COLUMNS,
)
