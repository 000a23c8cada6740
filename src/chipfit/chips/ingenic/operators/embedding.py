"""Embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.devices import T40F, TXX, check_int, device
from chipfit.chips.ingenic.operators.blocks import QuantizeFeature
from chipfit.chips.ingenic.operators.features import Tagged, read
from chipfit.chips.ingenic.operators.operator import Operator
from chipfit.chips.ingenic.operators.options import OperatorOptions
from chipfit.chips.ingenic.operators.precision import at_full_precision
from chipfit.errors import InvalidValueError, ShapeError


class Embedding(Operator):
    """Table of vectors, quantised without sign and with clip 6.

    The chips' embedding has no sign: negative entries become 0 when quantised.

    Args:
        num_embeddings: Rows of the table.
        embedding_dim: Length of a row, D.
        padding_idx: Row that gets no gradient.
        first_layer: The input comes from `Preprocess`.
        quantize: Quantise the output.
        input_bitwidth: Not used: the input is indices.
        output_bitwidth: 2 to 12, or 32.
        multi_inputs: The input holds two sequences, (N, 2T); their vectors are joined to (N, T, 2D).
        target_device: Any target but T02.
        pre_lstm_layer: An LSTM follows; no effect on the numbers.

    Inputs:
        Indices (N, T), ints or floats that hold ints; bare or as a tuple.

    Returns:
        (N, T, D), or (N, T, 2D) with `multi_inputs`: bare for a bare tensor, else `(tensor, bit, 0.0)`.

    Raises:
        InvalidValueError: An index outside the table.
        ShapeError: `multi_inputs` with an odd length.

    Source:
        Manual section Embedding; spec/ingenic.md, section 3.

    Example:
        >>> Embedding(100, 128, padding_idx=2, multi_inputs=False, target_device="T40")(torch.rand(2, 4) * 5).shape
        torch.Size([2, 4, 128])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        first_layer: bool = False,
        quantize: bool = False,
        input_bitwidth: int = 32,
        output_bitwidth: int = 32,
        multi_inputs: bool = True,
        target_device: str = "Txx",
        pre_lstm_layer: bool = False,
    ) -> None:
        super().__init__()
        dev = device(target_device, "Embedding", TXX + T40F)
        check_int(num_embeddings, "Embedding", "num_embeddings")
        check_int(embedding_dim, "Embedding", "embedding_dim")
        OperatorOptions.of("Embedding", dev, locals())  # checks them
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise InvalidValueError(
                "no such row", given=padding_idx, allowed=f"below {num_embeddings}", where="Embedding.padding_idx"
            )
        self.first_layer, self.quantize, self.multi_inputs = bool(first_layer), bool(quantize), bool(multi_inputs)
        self.output_bitwidth, self.target_device, self.pre_lstm_layer = output_bitwidth, dev.name, bool(pre_lstm_layer)
        self.embedding = nn.Embedding(num_embeddings, embedding_dim, padding_idx)
        self.QuantizeFeature = QuantizeFeature(output_bitwidth, False, 6.0, dev.name)

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Look up."""
        prepared = self.first_layer and not isinstance(inputs, Tensor)  # indices need no preparation
        feature = read(inputs, "Embedding", first_layer=prepared)
        index = feature.tensor.long()
        rows = self.embedding.num_embeddings
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= rows):
            raise InvalidValueError(
                "an index lies outside the table",
                given=(int(index.min()), int(index.max())),
                allowed=f"0 to {rows - 1}",
                where="Embedding",
            )
        if self.multi_inputs:
            if index.dim() != 2 or index.shape[1] % 2:
                raise ShapeError(
                    "two sequences of one length are needed",
                    given=tuple(index.shape),
                    allowed="(N, 2T)",
                    where="Embedding",
                    hint="Set multi_inputs=False for one sequence.",
                )
            y = torch.cat([self.embedding(half) for half in index.chunk(2, dim=1)], dim=-1)
        else:
            y = self.embedding(index)
        if self.quantize:
            y = self.QuantizeFeature(y)
        return (y, self.output_bitwidth, 0.0) if feature.tagged else y
