"""What analog silicon adds to a computation: effects, simulated chips, fits to measurements."""

from chipfit.noise.effects import AffineLaw, CellNoise, ColumnNoise, draw_shared_offset

__all__ = ["AffineLaw", "CellNoise", "ColumnNoise", "draw_shared_offset"]
