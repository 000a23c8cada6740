"""onnxruntime on the exported ONNX file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipfit.engines.engine import Engine
from chipfit.errors import UnsupportedError
from chipfit.program.types import Program


class Session:
    """A session that gives every edge of codes and the outputs."""

    def __init__(self, program: Program) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            hint = "pip install onnxruntime"
            raise UnsupportedError("onnxruntime is not installed", where="onnxruntime", hint=hint) from error
        from chipfit.export.onnx.writer import onnx_model

        codes = [node.name for node in program.nodes if not node.output.real and node.name not in program.outputs]
        self.names, self.inputs = [*program.outputs, *codes], [given.name for given in program.inputs]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = onnx_model(program, codes).SerializeToString()
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.version = f"onnxruntime {onnxruntime.__version__}"

    def edges(
        self, inputs: tuple[Tensor, ...], reference: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Every edge of codes, and the outputs; see `Prepared`."""
        feeds = {name: x.to(torch.float32).numpy() for name, x in zip(self.inputs, inputs, strict=True)}
        for name, value in zip(self.names, self.session.run(None, feeds), strict=True):
            yield name, reference[name], torch.from_numpy(np.asarray(value))


@contextmanager
def prepared(program: Program, options: Mapping[str, Any]) -> Iterator[Session]:
    """A session on a program's ONNX model."""
    yield Session(program)


ENGINE = Engine("onnxruntime", prepared)
