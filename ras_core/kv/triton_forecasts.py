"""Triton kernels for rows that are extrapolated (kv/forecast.py, kv/quadratic.py). Rows are kept as of their
last two or three evaluations; EVALUATIONS is this number. Other arguments: see `triton_kernels`.

Memory traffic of `extrapolate_rows`: for a cached row, EVALUATIONS rows are read and one is written; for a
fresh row, EVALUATIONS rows are read and EVALUATIONS + 1 are written. If half of the rows are fresh, this is 4
times the bytes of all rows of a key and a value with two evaluations, and 5.5 times with three. On SD3-medium
at 1024 px (two branches of 4250 rows of 1536 float16 numbers, 52 MB for a key and a value) and at 3 TB/s, a
layer takes at least 70 or 96 us.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_rows import load_fresh_of, pointer_of, pointer_to


@triton.jit
def _forecast(
    end, start, earlier, is_forecast, weights, number, total, TYPE: tl.constexpr, EVALUATIONS: tl.constexpr
):
    """Row `number` of `total` rows, extrapolated, as float32. `end` and `start` are its numbers at its last
    two evaluations; `weights` points to the weights of all keys or of all values.
    """
    weight = tl.load(weights + number).to(tl.float32)
    if EVALUATIONS == 2:
        return end + (end - start) * (weight - 1.0)
    else:
        before = start - tl.load(earlier, mask=is_forecast, other=0.0).to(tl.float32)
        return (end - start) * weight + before * tl.load(weights + total + number).to(tl.float32) + end


@triton.jit
def _stored_error(row, forecast, TYPE: tl.constexpr):
    """The error of a forecast as TYPE; exact where the two numbers differ by a factor of at most two."""
    error = row.to(tl.float32) - forecast.to(tl.float32)
    if TYPE == tl.float16:  # two numbers of opposite signs may differ by more than the largest float16
        error = tl.minimum(tl.maximum(error, -65504.0), 65504.0)
    return error.to(TYPE)


@triton.jit
def extrapolate_rows(
    key_last: tl.int64, key_before: tl.int64, key_earlier: tl.int64, key_fresh: tl.int64,
    key_whole: tl.int64, key_errors: tl.int64, value_last: tl.int64, value_before: tl.int64,
    value_earlier: tl.int64, value_fresh: tl.int64, value_whole: tl.int64, value_errors: tl.int64,
    weights: tl.int64, sizes: tl.int64, fresh_of: tl.int64, kept,
    key_by_image: tl.int64, key_by_row: tl.int64, key_by_head: tl.int64,
    value_by_image: tl.int64, value_by_row: tl.int64, value_by_head: tl.int64,
    TYPE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
    EVALUATIONS: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """Store fresh rows in `last`, the rows that they replace in `before` (and those in `earlier`); write all
    rows to the whole K and V, cached rows extrapolated. If SPREAD, also write the errors of the fresh rows'
    forecasts to `errors` and the norms of all rows' last changes to `sizes`, (2, bb, rows) float32.
    `weights`: as in `Extrapolation`. Grid: (bb * rows, 2).
    """
    which, total, cols = tl.program_id(1), tl.num_programs(0), tl.arange(0, WIDTH)
    number, is_key, inside = tl.program_id(0).to(tl.int64), which == 0, cols < DIM
    at = number * DIM + cols
    last = pointer_of(is_key, key_last, value_last, TYPE, UNIT) + at
    before = pointer_of(is_key, key_before, value_before, TYPE, UNIT) + at
    earlier = pointer_of(is_key, key_earlier, value_earlier, TYPE, UNIT) + at
    fresh_row = tl.load(pointer_to(fresh_of, tl.int32) + number).to(tl.int64)
    is_forecast = inside if SPREAD else inside & (tl.broadcast_to(fresh_row, [WIDTH]) < 0)
    known = tl.load(last, mask=inside, other=0.0)
    known_before = tl.load(before, mask=inside if EVALUATIONS == 3 else is_forecast, other=0.0)
    end, start = known.to(tl.float32), known_before.to(tl.float32)
    weights = pointer_to(weights, TYPE) + which * (EVALUATIONS - 1) * total
    now = _forecast(end, start, earlier, is_forecast, weights, number, total, TYPE, EVALUATIONS).to(TYPE)
    if SPREAD:
        norm = tl.sqrt(tl.sum((end - start) * (end - start), axis=0))
        tl.store(pointer_to(sizes, tl.float32) + which * total + number, norm)
    if fresh_row >= 0:
        row = load_fresh_of(
            is_key, key_fresh, value_fresh, fresh_row, kept, key_by_image, key_by_row, key_by_head,
            value_by_image, value_by_row, value_by_head, cols, TYPE, UNIT, DIM, HEAD,
        )  # fmt: skip
        if SPREAD:
            errors = pointer_of(is_key, key_errors, value_errors, TYPE, UNIT) + at
            tl.store(errors, _stored_error(row, now, TYPE), mask=inside)
        if EVALUATIONS == 3:
            tl.store(earlier, known_before, mask=inside)
        tl.store(before, known, mask=inside)
        tl.store(last, row, mask=inside)
        now = row
    tl.store(pointer_of(is_key, key_whole, value_whole, TYPE, UNIT) + at, now, mask=inside)


@triton.jit
def store_products(sums, first, second, target):
    """Store the five sums of products that `fitted_gains` needs for one sample."""
    tl.store(sums, tl.sum(first * first, axis=0))
    tl.store(sums + 1, tl.sum(second * second, axis=0))
    tl.store(sums + 2, tl.sum(first * second, axis=0))
    tl.store(sums + 3, tl.sum(first * target, axis=0))
    tl.store(sums + 4, tl.sum(second * target, axis=0))


@triton.jit
def _total(sums, number: tl.constexpr, each, samples):
    return tl.sum(tl.load(sums + 5 * each + number, mask=each < samples, other=0.0), axis=0)


@triton.jit
def fitted_gains(sums, samples, SAMPLES: tl.constexpr, RIDGE: tl.constexpr):
    """The two gains that kv/gains.py computes, from the sums that `store_products` has stored for each
    sample, (samples, 5).
    """
    each = tl.arange(0, SAMPLES)
    own = _total(sums, 0, each, samples) * (1.0 + RIDGE) + 1e-9
    other = _total(sums, 1, each, samples) * (1.0 + RIDGE) + 1e-9
    both, of_first = _total(sums, 2, each, samples), _total(sums, 3, each, samples)
    of_second = _total(sums, 4, each, samples)
    determinant = own * other - both * both
    gain = (other * of_first - both * of_second) / determinant
    gain2 = (own * of_second - both * of_first) / determinant
    fitted = tl.where(gain2 > 0, gain, of_first / own)
    fitted2 = tl.where(gain2 > 0, tl.where(gain > 0, gain2, of_second / other), 0.0)
    return tl.minimum(tl.maximum(fitted, 0.0), 1.0), tl.minimum(tl.maximum(fitted2, 0.0), 1.0)


@triton.jit
def compare(
    key_last: tl.int64, key_before: tl.int64, key_earlier: tl.int64, key_fresh: tl.int64,
    value_last: tl.int64, value_before: tl.int64, value_earlier: tl.int64, value_fresh: tl.int64,
    trial: tl.int64, sums: tl.int64, flat_idx: tl.int64, kept, stride,
    key_by_image: tl.int64, key_by_row: tl.int64, key_by_head: tl.int64,
    value_by_image: tl.int64, value_by_row: tl.int64, value_by_head: tl.int64,
    TYPE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
    EVALUATIONS: tl.constexpr,
):  # fmt: skip
    """Compare the forecast changes of each sampled fresh row with its actual change. Writes `sums`, for keys
    and values: with two evaluations (2, bb, samples, 2), the sums over a row's numbers of (forecast x actual
    change) and of (forecast x forecast); with three (2, bb, samples, 5), for `fitted_gains`. `trial`: as in
    `RowKernels.weigh`. Grid: (samples, bb, 2).
    """
    is_key, sample, image = tl.program_id(2) == 0, tl.program_id(0), tl.program_id(1)
    samples = tl.num_programs(0) * tl.num_programs(1)  # of all images
    number = image * tl.num_programs(0) + sample
    cols = tl.arange(0, WIDTH)
    inside = cols < DIM
    fresh_row = (image * kept + sample * stride).to(tl.int64)
    at = tl.load(pointer_to(flat_idx, tl.int64) + fresh_row) * DIM + cols
    last = pointer_of(is_key, key_last, value_last, TYPE, UNIT) + at
    before = pointer_of(is_key, key_before, value_before, TYPE, UNIT) + at
    end = tl.load(last, mask=inside, other=0.0).to(tl.float32)
    start = tl.load(before, mask=inside, other=0.0).to(tl.float32)
    row = load_fresh_of(
        is_key, key_fresh, value_fresh, fresh_row, kept, key_by_image, key_by_row, key_by_head,
        value_by_image, value_by_row, value_by_head, cols, TYPE, UNIT, DIM, HEAD,
    )  # fmt: skip
    moved, trial = row.to(tl.float32) - end, pointer_to(trial, tl.float32) + number
    forecast = (end - start) * tl.load(trial)
    if EVALUATIONS == 2:
        sums = pointer_to(sums, tl.float32) + 2 * (tl.program_id(2) * samples + number)
        tl.store(sums, tl.sum(forecast * moved, axis=0))
        tl.store(sums + 1, tl.sum(forecast * forecast, axis=0))
    else:
        earlier = pointer_of(is_key, key_earlier, value_earlier, TYPE, UNIT) + at
        change_before = start - tl.load(earlier, mask=inside, other=0.0).to(tl.float32)
        curved = (end - start) * tl.load(trial + samples) - change_before * tl.load(trial + 2 * samples)
        sums = pointer_to(sums, tl.float32) + 5 * (tl.program_id(2) * samples + number)
        store_products(sums, forecast, curved, moved)


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
    at = pointer_to(sums, tl.float32) + (which * samples + each) * 2
    agreement = tl.sum(tl.load(at, mask=each < samples, other=0.0), axis=0)
    squares = tl.sum(tl.load(at + 1, mask=each < samples, other=0.0), axis=0)
    gain = tl.minimum(tl.maximum(agreement / tl.maximum(squares, 1e-9), 0.0), 1.0)
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    of_token = pointer_to(weight, tl.float32) + (which % images) * rows + row
    to_now = 1.0 + tl.load(of_token, mask=inside, other=0.0) * gain
    tl.store(pointer_to(weights, TYPE) + which * rows + row, to_now.to(TYPE), mask=inside)


@triton.jit
def weigh_both(
    sums: tl.int64, weight: tl.int64, weights: tl.int64, samples, rows,
    TYPE: tl.constexpr, SAMPLES: tl.constexpr, BLOCK: tl.constexpr, RIDGE: tl.constexpr,
):  # fmt: skip
    """As `weigh`, for three evaluations: computes `weights`, (2, 2, bb, rows), as
    `QuadraticExtrapolation.judge` (kv/quadratic.py) does. `weight`, (3, bb, rows), are w, q and q_1 of the
    formula there. Grid: (2 * bb, ceil(rows / BLOCK)).
    """
    which, images = tl.program_id(0), tl.num_programs(0) // 2
    sums = pointer_to(sums, tl.float32) + which * samples * 5
    gain, gain2 = fitted_gains(sums, samples, SAMPLES, RIDGE)
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    of_token = pointer_to(weight, tl.float32) + (which % images) * rows + row
    w = tl.load(of_token, mask=inside, other=0.0)
    q = tl.load(of_token + images * rows, mask=inside, other=0.0)
    q_before = tl.load(of_token + 2 * images * rows, mask=inside, other=0.0)
    to = pointer_to(weights, TYPE) + ((which // images) * 2 * images + which % images) * rows + row
    tl.store(to, (gain * w + gain2 * q).to(TYPE), mask=inside)
    tl.store(to + images * rows, (-gain2 * q_before).to(TYPE), mask=inside)
