"""Triton's kernels for rows of the K/V cache. Only `fused.py` imports this: Triton may not be there.

A program is one row of one key or value, but for `weigh`. Whole tensors are contiguous, (bb, rows, ...), and
their rows DIM numbers long; fresh rows come as the network made them, in heads of HEAD numbers, with three
strides: from one picture to the next, from row to row, from head to head. WIDTH is DIM rounded up to a power
of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

# float8_e4m3fn by its bits, since not every GPU that Triton knows has instructions for it.
NAN = tl.constexpr(0x7F)
SIGN = tl.constexpr(0x80)
SMALLEST_NORMAL = tl.constexpr(0x3C800000)  # 2 ** -6 as a float32
BIAS = tl.constexpr(120 << 3)  # of exponents: a float32's less a float8's
DENORMAL = tl.constexpr(16384.0)  # a float32 of this size has the steps of small float8 numbers, 2 ** -9
DENORMAL_BITS = tl.constexpr(0x46800000)
HALF_STEP = tl.constexpr(0x7FFFF)  # of a float8's mantissa in a float32, less one

EXPONENT = tl.constexpr(0x7F800000)  # as in kv_storage.py, with what follows
SCALE_OF_POWER = tl.constexpr(2.0**-7)
SMALLEST_SCALE = tl.constexpr(2.0**-24)


@triton.jit
def _fresh_row(fresh, place, kept, by_picture, by_row, by_head, cols, inside, HEAD: tl.constexpr):
    """Row `place` of (bb * kept) fresh ones."""
    place = place.to(tl.int64)
    start = (place // kept) * by_picture + (place % kept) * by_row
    return tl.load(fresh + start + (cols // HEAD) * by_head + cols % HEAD, mask=inside, other=0.0)


@triton.jit
def _scale(row):
    """The power of two by which a row is divided."""
    largest = tl.max(tl.abs(row), axis=0)
    power = (largest.to(tl.int32, bitcast=True) & EXPONENT).to(tl.float32, bitcast=True)
    return tl.maximum(power * SCALE_OF_POWER, SMALLEST_SCALE)


@triton.jit
def _encoded(numbers):
    """float32 -> float8 as bytes, to the nearest, to even ones between two."""
    bits = numbers.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = ((size + HALF_STEP + ((size >> 20) & 1)) >> 20) - BIAS
    small = (tl.abs(numbers) + DENORMAL).to(tl.int32, bitcast=True) - DENORMAL_BITS
    code = tl.where(size < SMALLEST_NORMAL, small, normal)
    code = tl.where(numbers == numbers, code, NAN)
    return (code | ((bits >> 24) & SIGN)).to(tl.uint8)


@triton.jit
def _decoded(codes, scale):
    """float8 as bytes -> float32, times a scale: as a float16 with the same bits a code is 2 ** -8 of it."""
    code = codes.to(tl.int32)
    bits = ((code & SIGN) << 8) | ((code & NAN) << 7)
    numbers = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((code & NAN) == NAN, float("nan"), numbers) * scale


@triton.jit
def _encode_row(row, at, number, codes, scales, inside):
    numbers = row.to(tl.float32)
    scale = _scale(numbers)
    tl.store(scales + number, scale.to(scales.dtype.element_ty))
    inverse = 1.0 / scale  # exact, and so is what it multiplies
    tl.store(codes + at, _encoded(numbers * inverse), mask=inside)


@triton.jit
def encode_float8(
    fresh, codes, scales, kept, by_picture, by_row, by_head,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All rows of (bb, kept, ...) as codes and scales. Grid: (bb * kept,)."""
    number = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    inside = cols < DIM
    row = _fresh_row(fresh, number, kept, by_picture, by_row, by_head, cols, inside, HEAD)
    _encode_row(row, number * DIM + cols, number, codes, scales, inside)


@triton.jit
def _update_float8_row(
    codes, scales, fresh, whole, place, kept, by_picture, by_row, by_head,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    inside = cols < DIM
    at = number * DIM + cols
    if place >= 0:
        row = _fresh_row(fresh, place, kept, by_picture, by_row, by_head, cols, inside, HEAD)
        tl.store(whole + at, row, mask=inside)
        _encode_row(row, at, number, codes, scales, inside)
    else:
        scale = tl.load(scales + number).to(tl.float32)
        cached = _decoded(tl.load(codes + at, mask=inside, other=0), scale)
        tl.store(whole + at, cached.to(whole.dtype.element_ty), mask=inside)


@triton.jit
def update_float8(
    key_codes, key_scales, key_fresh, key_whole, value_codes, value_scales, value_fresh, value_whole,
    place_of, kept,
    key_by_picture, key_by_row, key_by_head, value_by_picture, value_by_row, value_by_head,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Fresh rows into codes and scales; all rows, fresh ones as they came, into the whole.
    Grid: (bb * rows, 2).
    """
    place = tl.load(place_of + tl.program_id(0))
    if tl.program_id(1) == 0:
        _update_float8_row(
            key_codes, key_scales, key_fresh, key_whole, place, kept,
            key_by_picture, key_by_row, key_by_head, DIM, HEAD, WIDTH,
        )  # fmt: skip
    else:
        _update_float8_row(
            value_codes, value_scales, value_fresh, value_whole, place, kept,
            value_by_picture, value_by_row, value_by_head, DIM, HEAD, WIDTH,
        )  # fmt: skip


@triton.jit
def _continue_row(
    last, before, fresh, whole, weights, place, kept, by_picture, by_row, by_head,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, WIDTH)
    inside = cols < DIM
    at = number * DIM + cols
    known = tl.load(last + at, mask=inside, other=0.0)
    if place >= 0:
        row = _fresh_row(fresh, place, kept, by_picture, by_row, by_head, cols, inside, HEAD)
        tl.store(before + at, known, mask=inside)
        tl.store(last + at, row, mask=inside)
        tl.store(whole + at, row, mask=inside)
    else:
        weight = tl.load(weights + number).to(tl.float32)
        end = known.to(tl.float32)
        change = end - tl.load(before + at, mask=inside, other=0.0).to(tl.float32)
        ahead = end + change * (weight - 1.0)
        tl.store(whole + at, ahead.to(whole.dtype.element_ty), mask=inside)


@triton.jit
def continue_rows(
    key_last, key_before, key_fresh, key_whole, value_last, value_before, value_fresh, value_whole,
    weights, place_of, kept,
    key_by_picture, key_by_row, key_by_head, value_by_picture, value_by_row, value_by_head,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Fresh rows are kept, with what was before; all rows, cached ones continued, into the whole. Weights are
    (2, bb, rows), of keys and of values. Grid: (bb * rows, 2).
    """
    place = tl.load(place_of + tl.program_id(0))
    if tl.program_id(1) == 0:
        _continue_row(
            key_last, key_before, key_fresh, key_whole, weights, place, kept,
            key_by_picture, key_by_row, key_by_head, DIM, HEAD, WIDTH,
        )  # fmt: skip
    else:
        _continue_row(
            value_last, value_before, value_fresh, value_whole, weights + tl.num_programs(0), place, kept,
            value_by_picture, value_by_row, value_by_head, DIM, HEAD, WIDTH,
        )  # fmt: skip


@triton.jit
def _compare_row(
    last, before, fresh, trial, sums, flat_idx, kept, stride, by_picture, by_row, by_head,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sample, picture = tl.program_id(0), tl.program_id(1)
    number = picture * tl.num_programs(0) + sample  # among the samples of all pictures
    cols = tl.arange(0, WIDTH)
    inside = cols < DIM
    place = picture * kept + sample * stride
    at = tl.load(flat_idx + place) * DIM + cols
    end = tl.load(last + at, mask=inside, other=0.0).to(tl.float32)
    start = tl.load(before + at, mask=inside, other=0.0).to(tl.float32)
    now = _fresh_row(fresh, place, kept, by_picture, by_row, by_head, cols, inside, HEAD).to(tl.float32)
    forecast = (end - start) * tl.load(trial + number)
    tl.store(sums + 2 * number, tl.sum(forecast * (now - end), axis=0))
    tl.store(sums + 2 * number + 1, tl.sum(forecast * forecast, axis=0))


@triton.jit
def compare(
    key_last, key_before, key_fresh, value_last, value_before, value_fresh,
    trial, sums, flat_idx, kept, stride,
    key_by_picture, key_by_row, key_by_head, value_by_picture, value_by_row, value_by_head,
    DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What fresh rows say of their own forecasts: sums (2, bb, samples, 2), of keys and of values, of
    forecast times real move and of forecast squared. Grid: (samples, bb, 2).
    """
    if tl.program_id(2) == 0:
        _compare_row(
            key_last, key_before, key_fresh, trial, sums, flat_idx, kept, stride,
            key_by_picture, key_by_row, key_by_head, DIM, HEAD, WIDTH,
        )  # fmt: skip
    else:
        _compare_row(
            value_last, value_before, value_fresh, trial, sums + 2 * tl.num_programs(0) * tl.num_programs(1),
            flat_idx, kept, stride, value_by_picture, value_by_row, value_by_head, DIM, HEAD, WIDTH,
        )  # fmt: skip


@triton.jit
def weigh(sums, weight, weights, samples, rows, SAMPLES: tl.constexpr, BLOCK: tl.constexpr):
    """Weights (2, bb, rows) from `compare`'s sums and the tokens' weights (bb, rows), as kv_forecast.py has
    them. Grid: (2 * bb, rows / BLOCK).
    """
    which, pictures = tl.program_id(0), tl.num_programs(0) // 2
    each = tl.arange(0, SAMPLES)
    at = sums + (which * samples + each) * 2
    agreement = tl.sum(tl.load(at, mask=each < samples, other=0.0), axis=0)
    squares = tl.sum(tl.load(at + 1, mask=each < samples, other=0.0), axis=0)
    gain = tl.minimum(tl.maximum(agreement / tl.maximum(squares, 1e-9), 0.0), 1.0)
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    token = tl.load(weight + (which % pictures) * rows + row, mask=inside, other=0.0)
    ahead = 1.0 + token * gain
    tl.store(weights + which * rows + row, ahead.to(weights.dtype.element_ty), mask=inside)
