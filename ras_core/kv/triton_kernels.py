"""Triton kernels for rows of the K/V cache. Not every system has Triton, so only `triton_check` imports them.

Each program processes one row of one key or value, except in `weigh`. Tensors of all rows are contiguous,
(bb, rows, ...), with DIM numbers a row. Fresh rows have the network's layout: heads of HEAD numbers,
and three strides: from image to image, row to row, head to head. WIDTH is DIM rounded up to a power of two.

Arguments are addresses of tensors of type TYPE, and strides as multiples of UNIT numbers. UNIT numbers take
16 bytes if all rows are aligned to 16 bytes; otherwise UNIT is 1. If tensors were passed, not addresses,
Triton would ask the driver which device owns the memory; this fails in a capture with cudaMallocAsync.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import float8_format

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
def _at(address, TYPE: tl.constexpr, UNIT: tl.constexpr = 1):
    """The address as a pointer to numbers of type TYPE."""
    pointer = address.to(tl.pointer_type(TYPE))
    if UNIT > 1:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _fresh_row(
    first, number, kept, by_image, by_row, by_head, cols,
    TYPE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Load row `number` of the (bb * kept) fresh rows."""
    start = ((number // kept) * by_image + (number % kept) * by_row) * UNIT
    pointers = _at(first, TYPE, UNIT) + start + (cols // HEAD) * by_head * UNIT + cols % HEAD
    return tl.load(pointers, mask=cols < DIM, other=0.0)


@triton.jit
def _fresh_row_of(
    is_key, key_first, value_first, number, kept, key_by_image, key_by_row, key_by_head,
    value_by_image, value_by_row, value_by_head, cols,
    TYPE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Load row `number` of the fresh keys or of the fresh values."""
    return _fresh_row(
        tl.where(is_key, key_first, value_first), number, kept,
        tl.where(is_key, key_by_image, value_by_image), tl.where(is_key, key_by_row, value_by_row),
        tl.where(is_key, key_by_head, value_by_head), cols, TYPE, UNIT, DIM, HEAD,
    )  # fmt: skip


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
    """Convert float8 bytes to float32, times `scale`. As bits of a float16, they give the number / 256."""
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
    row = _fresh_row(fresh, number, kept, by_image, by_row, by_head, cols, TYPE, UNIT, DIM, HEAD)
    codes, scales = _at(codes, tl.uint8, UNIT), _at(scales, TYPE)
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
    codes = _at(tl.where(is_key, key_codes, value_codes), tl.uint8, UNIT)
    scales = _at(tl.where(is_key, key_scales, value_scales), TYPE)
    whole = _at(tl.where(is_key, key_whole, value_whole), TYPE, UNIT)
    number = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    inside = cols < DIM
    at = number * DIM + cols
    fresh_row = tl.load(_at(fresh_of, tl.int32) + number).to(tl.int64)
    if fresh_row >= 0:
        row = _fresh_row_of(
            is_key, key_fresh, value_fresh, fresh_row, kept, key_by_image, key_by_row, key_by_head,
            value_by_image, value_by_row, value_by_head, cols, TYPE, UNIT, DIM, HEAD,
        )  # fmt: skip
        tl.store(whole + at, row, mask=inside)
        _encode_row(row, at, number, codes, scales, inside)
    else:
        scale = tl.load(scales + number).to(tl.float32)
        cached = _decoded(tl.load(codes + at, mask=inside, other=0), scale)
        if TYPE == tl.float16:  # the largest code and scale give 65536, which has no float16
            cached = tl.where(tl.abs(cached) == 65536.0, cached * (65504.0 / 65536.0), cached)
        tl.store(whole + at, cached.to(TYPE), mask=inside)


@triton.jit
def extrapolate_rows(
    key_last: tl.int64, key_before: tl.int64, key_fresh: tl.int64, key_whole: tl.int64,
    value_last: tl.int64, value_before: tl.int64, value_fresh: tl.int64, value_whole: tl.int64,
    weights: tl.int64, fresh_of: tl.int64, kept,
    key_by_image: tl.int64, key_by_row: tl.int64, key_by_head: tl.int64,
    value_by_image: tl.int64, value_by_row: tl.int64, value_by_head: tl.int64,
    TYPE: tl.constexpr, UNIT: tl.constexpr,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store fresh rows in `last` and the rows that they replace in `before`; write all rows to
    the whole K and V, cached rows extrapolated. `weights`: (2, bb, rows), of K and V. Grid: (bb * rows, 2).
    """
    is_key = tl.program_id(1) == 0
    last = _at(tl.where(is_key, key_last, value_last), TYPE, UNIT)
    before = _at(tl.where(is_key, key_before, value_before), TYPE, UNIT)
    whole = _at(tl.where(is_key, key_whole, value_whole), TYPE, UNIT)
    number = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    inside = cols < DIM
    at = number * DIM + cols
    known = tl.load(last + at, mask=inside, other=0.0)
    fresh_row = tl.load(_at(fresh_of, tl.int32) + number).to(tl.int64)
    if fresh_row >= 0:
        row = _fresh_row_of(
            is_key, key_fresh, value_fresh, fresh_row, kept, key_by_image, key_by_row, key_by_head,
            value_by_image, value_by_row, value_by_head, cols, TYPE, UNIT, DIM, HEAD,
        )  # fmt: skip
        tl.store(before + at, known, mask=inside)
        tl.store(last + at, row, mask=inside)
        tl.store(whole + at, row, mask=inside)
    else:
        weight = tl.load(_at(weights, TYPE) + tl.program_id(1) * tl.num_programs(0) + number)
        end = known.to(tl.float32)
        change = end - tl.load(before + at, mask=inside, other=0.0).to(tl.float32)
        now = end + change * (weight.to(tl.float32) - 1.0)
        tl.store(whole + at, now.to(TYPE), mask=inside)


@triton.jit
def compare(
    key_last: tl.int64, key_before: tl.int64, key_fresh: tl.int64,
    value_last: tl.int64, value_before: tl.int64, value_fresh: tl.int64,
    trial: tl.int64, sums: tl.int64, flat_idx: tl.int64, kept, stride,
    key_by_image: tl.int64, key_by_row: tl.int64, key_by_head: tl.int64,
    value_by_image: tl.int64, value_by_row: tl.int64, value_by_head: tl.int64,
    TYPE: tl.constexpr, UNIT: tl.constexpr,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compare the forecast change of each sampled fresh row with its actual change. Writes `sums`,
    (2, bb, samples, 2), for keys and values: for each sampled row, two sums over its numbers, of
    (forecast x actual change) and of (forecast x forecast). Grid: (samples, bb, 2).
    """
    is_key = tl.program_id(2) == 0
    sample, image = tl.program_id(0), tl.program_id(1)
    number = image * tl.num_programs(0) + sample  # index among the samples of all images
    cols = tl.arange(0, WIDTH)
    inside = cols < DIM
    fresh_row = (image * kept + sample * stride).to(tl.int64)
    at = tl.load(_at(flat_idx, tl.int64) + fresh_row) * DIM + cols
    last = _at(tl.where(is_key, key_last, value_last), TYPE, UNIT)
    before = _at(tl.where(is_key, key_before, value_before), TYPE, UNIT)
    end = tl.load(last + at, mask=inside, other=0.0).to(tl.float32)
    start = tl.load(before + at, mask=inside, other=0.0).to(tl.float32)
    row = _fresh_row_of(
        is_key, key_fresh, value_fresh, fresh_row, kept, key_by_image, key_by_row, key_by_head,
        value_by_image, value_by_row, value_by_head, cols, TYPE, UNIT, DIM, HEAD,
    )  # fmt: skip
    forecast = (end - start) * tl.load(_at(trial, tl.float32) + number)
    sums = _at(sums, tl.float32) + 2 * (tl.program_id(2) * tl.num_programs(1) * tl.num_programs(0) + number)
    tl.store(sums, tl.sum(forecast * (row.to(tl.float32) - end), axis=0))
    tl.store(sums + 1, tl.sum(forecast * forecast, axis=0))


@triton.jit
def weigh(
    sums: tl.int64, weight: tl.int64, weights: tl.int64, samples, rows,
    TYPE: tl.constexpr, SAMPLES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Computes `weights`, (2, bb, rows), as `Extrapolation.judge` (kv/extrapolation.py) does, from the
    sums of `compare` and from `weight`, (bb, rows): the forecast change of each row, in multiples of its
    last change. Grid: (2 * bb, ceil(rows / BLOCK)).
    """
    which, images = tl.program_id(0), tl.num_programs(0) // 2
    each = tl.arange(0, SAMPLES)
    at = _at(sums, tl.float32) + (which * samples + each) * 2
    agreement = tl.sum(tl.load(at, mask=each < samples, other=0.0), axis=0)
    squares = tl.sum(tl.load(at + 1, mask=each < samples, other=0.0), axis=0)
    gain = tl.minimum(tl.maximum(agreement / tl.maximum(squares, 1e-9), 0.0), 1.0)
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    of_token = _at(weight, tl.float32) + (which % images) * rows + row
    to_now = 1.0 + tl.load(of_token, mask=inside, other=0.0) * gain
    tl.store(_at(weights, TYPE) + which * rows + row, to_now.to(TYPE), mask=inside)
