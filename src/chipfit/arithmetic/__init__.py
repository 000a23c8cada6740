"""Integers on silicon: rounding rules, grids, fake-quantisation kernels, accumulator bounds.

Pure functions on tensors. Nothing here knows a chip or an `nn.Module`.
"""
