"""Constants of the float8 format: each row is stored with a scale, which is a power of two."""

from __future__ import annotations

import torch

FLOAT8 = torch.float8_e4m3fn
SCALE_OF_POWER = 2.0**-7
"""A row's scale is this number times the largest power of two that is not above the row's largest number. So
codes are at most 256, of 448."""
EXPONENT = 0x7F800000  # bits of a float32
SMALLEST_SCALE = 2.0**-24  # the smallest number of float16
