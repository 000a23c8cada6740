"""Plain torch networks onto a chip: `check` says what maps, `convert` does it."""

from chipfit.convert.checking import Report, Row, check
from chipfit.convert.fold import fold_batch_norms
from chipfit.convert.replace import convert
from chipfit.convert.trace import Traced, trace

__all__ = ["Report", "Row", "Traced", "check", "convert", "fold_batch_norms", "trace"]
