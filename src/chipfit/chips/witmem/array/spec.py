"""From a layer's options, scales and mode to the numbers that `array_rule` computes with."""

from __future__ import annotations

import dataclasses

from chipfit.chips.witmem.array.numbers import ArraySpec
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.noise import noise_in_force

LINEAR = ArraySpec(1.0, 1.0, 1.0, splits=True, shift_limit=0)
"""The kind of layer that WitinLinear is, and each array operation of a GRU."""


def spec_from_config(config: WitinLayerConfig, kind: ArraySpec) -> ArraySpec:
    """The numbers of a layer as configured, without noise.

    Args:
        config: The options.
        kind: What this kind of layer does differently from others: `signed_input`, `per_pass_quotient`, whether it
            `splits` wide inputs, a `shift_limit` of its own (0: the width of the input), whether it has an `fp_clip`.

    Example:
        >>> spec = spec_from_config(WitinLayerConfig(1, x_quant_bits=10, scale_x=32, scale_y=16), LINEAR)
        >>> spec.splits, spec.shift_limit, spec.scale_x
        (True, 1024, 32)
    """
    return dataclasses.replace(
        kind,
        scale_x=config.scale_x,
        scale_weight=config.scale_weight,
        scale_y=config.scale_y,
        x_bits=config.x_quant_bits,
        y_bits=config.y_quant_bits,
        weight_bits=config.weight_quant_bits,
        negative=config.handle_neg_in,
        splits=kind.splits and config.x_quant_bits > 8,
        shift_num=config.shift_num,
        shift_limit=kind.shift_limit or 1 << config.x_quant_bits,
        bias_rows=config.bias_row_N,
        bias_digital=config.bias_d.detach().clone().flatten(),
        fp_clip=config.output_fp_clip if kind.fp_clip else None,
        w_clip=config.w_clip,
    )


def input_scale_bits(spec: ArraySpec) -> int:
    """Width of the input for the scale formula: one bit more where its codes are unsigned.

    Example:
        >>> input_scale_bits(ArraySpec(1, 1, 1, negative=HandleNegInType.PN)), input_scale_bits(ArraySpec(1, 1, 1))
        (9, 9)
        >>> input_scale_bits(ArraySpec(1, 1, 1, signed_input=True))
        8
    """
    if spec.negative is HandleNegInType.FALSE:
        return spec.x_bits if spec.signed_input else spec.x_bits + 1
    return spec.x_bits + 1 if spec.negative is HandleNegInType.PN else spec.x_bits


def spec_with_scales(
    template: ArraySpec, layer: WitinLayer, scales: tuple[float, float, float], suffix: str = ""
) -> ArraySpec:
    """The numbers that a layer's coming forward uses.

    Args:
        template: The layer as configured.
        layer: Whose mode, noise and rounding are in force.
        scales: Codes per unit of input, weight and output.
        suffix: Which part of the layer this is, for errors.

    Raises:
        UnpublishedError: mode 'nat' with noise model ARRMDL.
    """
    level = layer.noise_level if layer.mode == "nat" else 0.0
    where = f"{layer.where}{suffix}"
    noise, shared_offset = noise_in_force(layer.noise_model, level, template.bias_rows, where)
    return dataclasses.replace(
        template,
        scale_x=scales[0],
        scale_weight=scales[1],
        scale_y=scales[2],
        rounding=layer.rounding,
        noise=noise,
        noise_level=level,
        shared_offset=shared_offset,
        where=where,
    )
