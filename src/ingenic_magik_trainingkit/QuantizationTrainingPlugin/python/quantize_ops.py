"""The parts of operators that old pickled checkpoints name, from `chipfit.chips.ingenic`."""

from chipfit.chips.ingenic import AWeight as AWeight
from chipfit.chips.ingenic import Conv2d_Q as Conv2d_Q
from chipfit.chips.ingenic import NOp as NOp
from chipfit.chips.ingenic import QuantizeFeature as QuantizeFeature
from chipfit.chips.ingenic import QuantizeWeight as QuantizeWeight
from chipfit.chips.ingenic import batchNorm2d as batchNorm2d
