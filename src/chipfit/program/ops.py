"""The core operations under a short name.

Those that one vendor's programs have are that vendor's own; asked for here, where they once stood, they come with a
warning.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from chipfit.program.core.ops import Accumulate as Accumulate
from chipfit.program.core.ops import Add as Add
from chipfit.program.core.ops import Cat as Cat
from chipfit.program.core.ops import Clamp as Clamp
from chipfit.program.core.ops import Constant as Constant
from chipfit.program.core.ops import Dequantise as Dequantise
from chipfit.program.core.ops import Flip as Flip
from chipfit.program.core.ops import Geometry as Geometry
from chipfit.program.core.ops import LookUp as LookUp
from chipfit.program.core.ops import MatMul as MatMul
from chipfit.program.core.ops import Max as Max
from chipfit.program.core.ops import MaxPool as MaxPool
from chipfit.program.core.ops import Mean as Mean
from chipfit.program.core.ops import Mul as Mul
from chipfit.program.core.ops import MultiplyAdd as MultiplyAdd
from chipfit.program.core.ops import Op as Op
from chipfit.program.core.ops import Pad as Pad
from chipfit.program.core.ops import Permute as Permute
from chipfit.program.core.ops import Quantise as Quantise
from chipfit.program.core.ops import Relu as Relu
from chipfit.program.core.ops import Rescale as Rescale
from chipfit.program.core.ops import Reshape as Reshape
from chipfit.program.core.ops import Select as Select
from chipfit.program.core.ops import Slice as Slice
from chipfit.program.core.ops import Sum as Sum
from chipfit.program.core.ops import SumPool as SumPool


def __getattr__(name: str) -> Any:
    """What a vendor's dialect defines beside its operations or as one of them."""
    from chipfit.program.dialect import operations

    rooms = set() if name.startswith("_") else {kind.__module__ for kind in operations().values()}
    for room in sorted(rooms):
        if hasattr(sys.modules[room], name):
            warnings.warn(f"{__name__}.{name} is now {room}.{name}", DeprecationWarning, stacklevel=2)
            return getattr(sys.modules[room], name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
