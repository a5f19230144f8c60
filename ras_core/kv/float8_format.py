"""The numbers of the float8 format: rows are stored with a scale that is a power of two."""

from __future__ import annotations

import torch

FLOAT8 = torch.float8_e4m3fn
SCALE_OF_POWER = 2.0**-7
"""Times a power of two, the scale of a row whose largest number is below twice that power: codes are 256 at
most, of 448."""
EXPONENT = 0x7F800000  # bits of a float32
SMALLEST_SCALE = 2.0**-24  # the smallest number of float16
