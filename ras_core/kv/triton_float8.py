"""Triton kernels for rows that are kept as float8 (kv/float8.py). Arguments: see `triton_kernels`."""

from __future__ import annotations

import triton
import triton.language as tl

from . import float8_format
from .triton_rows import load_fresh, load_fresh_of, pointer_to

# float8_e4m3fn is converted by bit operations: some GPUs that Triton supports have no instructions for it.
NAN = tl.constexpr(0x7F)
SIGN = tl.constexpr(0x80)
SMALLEST_NORMAL = tl.constexpr(0x3C800000)  # 2 ** -6 as a float32
BIAS = tl.constexpr(120 << 3)  # exponent bias of float32 minus that of float8
DENORMAL = tl.constexpr(16384.0)  # spacing of float32 numbers here = that of denormal float8: 2 ** -9
DENORMAL_BITS = tl.constexpr(0x46800000)
HALF_STEP = tl.constexpr(0x7FFFF)  # half the last mantissa bit of a float8, in float32 bits, minus one

EXPONENT = tl.constexpr(float8_format.EXPONENT)
SCALE_OF_POWER = tl.constexpr(float8_format.SCALE_OF_POWER)
SMALLEST_SCALE = tl.constexpr(float8_format.SMALLEST_SCALE)


@triton.jit
def _scale(row):
    """The float8 scale of a row of float32 numbers: a power of two (float8_format.py)."""
    largest = tl.max(tl.abs(row), axis=0)
    power = (largest.to(tl.int32, bitcast=True) & EXPONENT).to(tl.float32, bitcast=True)
    return tl.maximum(power * SCALE_OF_POWER, SMALLEST_SCALE)


@triton.jit
def _encoded(numbers):
    """Convert float32 numbers to float8 bytes, rounding to nearest, ties to even."""
    bits = numbers.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = ((size + HALF_STEP + ((size >> 20) & 1)) >> 20) - BIAS
    small = (tl.abs(numbers) + DENORMAL).to(tl.int32, bitcast=True) - DENORMAL_BITS
    code = tl.where(size < SMALLEST_NORMAL, small, normal)
    code = tl.where(numbers == numbers, code, NAN)
    return (code | ((bits >> 24) & SIGN)).to(tl.uint8)


@triton.jit
def _decoded(codes, scale):
    """Convert float8 bytes to float32, times `scale`. As float16 bits, they give the number / 256."""
    code = codes.to(tl.int32)
    bits = ((code & SIGN) << 8) | ((code & NAN) << 7)
    numbers = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((code & NAN) == NAN, float("nan"), numbers) * scale


@triton.jit
def _encode_row(row, at, number, codes, scales, inside):
    numbers = row.to(tl.float32)
    scale = _scale(numbers)
    tl.store(scales + number, scale.to(scales.dtype.element_ty))
    inverse = 1.0 / scale  # exact, because the scale is a power of two; so is `numbers * inverse`
    tl.store(codes + at, _encoded(numbers * inverse), mask=inside)


@triton.jit
def encode_float8(
    fresh: tl.int64, codes: tl.int64, scales: tl.int64,
    kept, by_image: tl.int64, by_row: tl.int64, by_head: tl.int64,
    TYPE: tl.constexpr, UNIT: tl.constexpr,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Encode all rows of `fresh`, (bb, kept, ...), as float8 codes and scales. Grid: (bb * kept,)."""
    number = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    row = load_fresh(fresh, number, kept, by_image, by_row, by_head, cols, TYPE, UNIT, DIM, HEAD)
    codes, scales = pointer_to(codes, tl.uint8, UNIT), pointer_to(scales, TYPE)
    _encode_row(row, number * DIM + cols, number, codes, scales, cols < DIM)


@triton.jit
def update_float8(
    key_codes: tl.int64, key_scales: tl.int64, key_fresh: tl.int64, key_whole: tl.int64,
    value_codes: tl.int64, value_scales: tl.int64, value_fresh: tl.int64, value_whole: tl.int64,
    fresh_of: tl.int64, kept,
    key_by_image: tl.int64, key_by_row: tl.int64, key_by_head: tl.int64,
    value_by_image: tl.int64, value_by_row: tl.int64, value_by_head: tl.int64,
    TYPE: tl.constexpr, UNIT: tl.constexpr,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store fresh rows as codes and scales; write all rows to the whole K and V, fresh rows unrounded.
    Grid: (bb * rows, 2).
    """
    is_key = tl.program_id(1) == 0
    codes = pointer_to(tl.where(is_key, key_codes, value_codes), tl.uint8, UNIT)
    scales = pointer_to(tl.where(is_key, key_scales, value_scales), TYPE)
    whole = pointer_to(tl.where(is_key, key_whole, value_whole), TYPE, UNIT)
    number = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    inside = cols < DIM
    at = number * DIM + cols
    fresh_row = tl.load(pointer_to(fresh_of, tl.int32) + number).to(tl.int64)
    if fresh_row >= 0:
        row = load_fresh_of(
            is_key, key_fresh, value_fresh, fresh_row, kept, key_by_image, key_by_row, key_by_head,
            value_by_image, value_by_row, value_by_head, cols, TYPE, UNIT, DIM, HEAD,
        )  # fmt: skip
        tl.store(whole + at, row, mask=inside)
        _encode_row(row, at, number, codes, scales, inside)
    else:
        scale = tl.load(scales + number).to(tl.float32)
        cached = _decoded(tl.load(codes + at, mask=inside, other=0), scale)
        if TYPE == tl.float16:  # the largest code and scale give 65536, which float16 cannot represent
            cached = tl.where(tl.abs(cached) == 65536.0, cached * (65504.0 / 65536.0), cached)
        tl.store(whole + at, cached.to(TYPE), mask=inside)
