"""Constants of the float8 format: each row is stored with a scale, which is a power of two."""

from __future__ import annotations

import torch

FLOAT8 = torch.float8_e4m3fn
SCALE_OF_POWER = 2.0**-7
"""A row's scale is this factor times the row's largest magnitude, after that is rounded down to a power of
two. A row is divided by its scale before it is stored, so stored numbers are below 256; float8_e4m3fn
represents numbers up to 448."""
EXPONENT = 0x7F800000  # mask of the exponent bits of a float32
SMALLEST_SCALE = 2.0**-24  # lower bound of a row's scale: the smallest positive float16
