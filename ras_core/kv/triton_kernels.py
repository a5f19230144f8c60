"""All Triton kernels for rows of the K/V cache. Not every system has Triton, so only `triton_check` imports
this module.

Each program processes one row of one key or value, except where a kernel's docstring gives another grid.
Tensors of all rows are contiguous, (bb, rows, ...), with DIM numbers per row. Fresh rows have the network's
layout: heads of HEAD numbers, and three strides: from image to image, row to row, head to head. WIDTH is DIM
rounded up to a power of two.

Arguments are addresses of tensors of type TYPE, and strides as multiples of UNIT numbers. UNIT numbers take
16 bytes if all rows are aligned to 16 bytes; otherwise UNIT is 1. If tensors were passed, not addresses,
Triton would ask the driver which device owns the memory; this fails in a capture with cudaMallocAsync.
"""

from __future__ import annotations

from .triton_float8 import encode_float8, update_float8
from .triton_forecasts import compare, extrapolate_rows, weigh, weigh_both
from .triton_rows import tl
from .triton_spread import compare_errors, correct_rows, fit_gains, mean_rates, scale_rows, sum_rates

__all__ = [
    "compare",
    "compare_errors",
    "correct_rows",
    "encode_float8",
    "extrapolate_rows",
    "fit_gains",
    "mean_rates",
    "scale_rows",
    "sum_rates",
    "tl",
    "update_float8",
    "weigh",
    "weigh_both",
]
