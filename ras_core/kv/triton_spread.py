"""Triton kernels for the corrections of kv/spread.py. Arguments: see `triton_kernels`.

`extrapolate_rows` has written the forecasts of all cached rows to `whole`, the errors E of active tokens to
`errors`, (bb, rows, ...), and |f| before the multiplication by the forecast change to `sizes`, (2, bb, rows).
Then these kernels run in the order of this file. `around`, (bb, n), is `Spread.around`: which of the 3 x 3
tokens around a token are active. `line` is the number of tokens in one row of the image.

Memory traffic, in multiples of the bytes of all rows of a key and a value, if half of the rows are fresh and
two evaluations are kept: `extrapolate_rows` 5, `sum_rates` 0.5, `correct_rows` 1.5, if a row of errors that
several programs read comes from the L2 cache. That is 7 (with three evaluations 8.5); at 3 TB/s, a layer of
SD3-medium at 1024 px takes at least 122 (148) us.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import spread
from .triton_forecasts import fitted_gains, store_products
from .triton_rows import pointer_of, pointer_to

SMALLEST = tl.constexpr(spread.SMALLEST)
SMALLEST_SCALE = tl.constexpr(spread.SMALLEST_SCALE)
RIDGE = tl.constexpr(spread.RIDGE)
CENTRE = tl.constexpr(4)  # the bit of `around` for the token itself


@triton.jit
def _scale_of(sizes, weight, ages, token, inside, mean):
    """s of some tokens, before the division by the mean of s."""
    size = tl.load(sizes + token, mask=inside, other=0.0) * tl.load(weight + token, mask=inside, other=0.0)
    return tl.sqrt((size + SMALLEST * mean) * tl.load(ages + token, mask=inside, other=0.0))


@triton.jit
def scale_rows(
    sizes: tl.int64, weight: tl.int64, ages: tl.int64, scales: tl.int64, images, rows, prefix, n,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute s as `Spread.scales` does, for image rows only, and 1 / s as in R = E / s. Writes both to
    `scales`, (2, 2, bb, rows). `weight`, (bb, rows), has the forecast changes. Grid: (2 * bb,).
    """
    which, each = tl.program_id(0), tl.arange(0, BLOCK)
    image = which % images
    sizes = pointer_to(sizes, tl.float32) + which * rows + prefix
    scales = pointer_to(scales, tl.float32) + which * rows + prefix
    weight = pointer_to(weight, tl.float32) + image * rows + prefix
    ages = pointer_to(ages, tl.float32) + image * n
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n, BLOCK):
        token, inside = first + each, first + each < n
        size = tl.load(sizes + token, mask=inside, other=0.0)
        sums += size * tl.load(weight + token, mask=inside, other=0.0)
    mean_size = tl.sum(sums, axis=0) / n
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n, BLOCK):
        sums += _scale_of(sizes, weight, ages, first + each, first + each < n, mean_size)
    mean = tl.sum(sums, axis=0) / n
    divisor = tl.where(mean > 0, tl.maximum(mean, 1e-30), 1.0)
    for first in range(0, n, BLOCK):
        token, inside = first + each, first + each < n
        scale = _scale_of(sizes, weight, ages, token, inside, mean_size) / divisor
        tl.store(scales + token, scale, mask=inside)
        inverse = tl.where(scale > 0, 1.0 / tl.maximum(scale, SMALLEST_SCALE), 0.0)
        tl.store(scales + 2 * images * rows + token, inverse, mask=inside)


@triton.jit
def sum_rates(
    key_errors: tl.int64, value_errors: tl.int64, inverses: tl.int64, flat_idx: tl.int64, sums: tl.int64,
    kept, prefix, active, rows_in_part, total,
    TYPE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Sum R over parts of the active tokens: COLS numbers of `rows_in_part` active rows in each program.
    `inverses`, (2, bb, rows), is 1 / s; `total` is bb * rows. Writes `sums`, (2 * bb, parts, DIM).
    Grid: (ceil(DIM / COLS), parts, 2 * bb).
    """
    which, images = tl.program_id(2), tl.num_programs(2) // 2
    is_key = which < images
    errors = pointer_of(is_key, key_errors, value_errors, TYPE, UNIT)
    inverses = pointer_to(inverses, tl.float32) + tl.where(is_key, 0, total)
    flat_idx = pointer_to(flat_idx, tl.int64) + (which % images) * kept + prefix
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    first = tl.program_id(1) * rows_in_part
    result = tl.zeros([COLS], tl.float32)
    for start in range(first, tl.minimum(first + rows_in_part, active), ROWS):
        each = start + tl.arange(0, ROWS)
        inside = each < tl.minimum(first + rows_in_part, active)
        row = tl.load(flat_idx + each, mask=inside, other=0)
        inverse = tl.load(inverses + row, mask=inside, other=0.0)
        found = inside[:, None] & (cols < DIM)[None, :]
        error = tl.load(errors + row[:, None] * DIM + cols[None, :], mask=found, other=0.0)
        result += tl.sum(error.to(tl.float32) * inverse[:, None], axis=0)
    to = pointer_to(sums, tl.float32) + (which * tl.num_programs(1) + tl.program_id(1)) * DIM
    tl.store(to + cols, result, mask=cols < DIM)


@triton.jit
def mean_rates(
    sums: tl.int64, means: tl.int64, parts, active,
    DIM: tl.constexpr, PARTS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Compute mean(R), (2 * bb, DIM), from the sums of `sum_rates`. Grid: (ceil(DIM / COLS), 2 * bb)."""
    cols, part = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.arange(0, PARTS)
    at = (tl.program_id(1) * parts + part)[:, None] * DIM + cols[None, :]
    inside = (part < parts)[:, None] & (cols < DIM)[None, :]
    result = tl.sum(tl.load(pointer_to(sums, tl.float32) + at, mask=inside, other=0.0), axis=0)
    tl.store(pointer_to(means, tl.float32) + tl.program_id(1) * DIM + cols, result / active, mask=cols < DIM)


@triton.jit
def _near(errors, inverses, around, number, line, cols, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """The sum of R over the active tokens around row `number`, and their count."""
    result, count = tl.zeros([WIDTH], tl.float32), 0
    for bit in tl.static_range(9):
        is_active = (around >> bit) & 1
        row = number + (bit // 3 - 1) * line + (bit % 3 - 1)
        inverse = tl.load(inverses + row, mask=is_active != 0, other=0.0)
        inside = (cols < DIM) & (tl.broadcast_to(is_active, [WIDTH]) != 0)
        error = tl.load(errors + row * DIM + cols, mask=inside, other=0.0)
        result += error.to(tl.float32) * inverse
        count += is_active
    return result, count


@triton.jit
def compare_errors(
    key_errors: tl.int64, value_errors: tl.int64, scales: tl.int64, means: tl.int64, around: tl.int64,
    flat_idx: tl.int64, sums: tl.int64, kept, stride, active, rows, prefix, n, line,
    TYPE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compare the error of each sampled active token with those that the other active tokens predict. Writes
    `sums`, (2, bb, samples, 5), for `fit_gains`. Grid: (samples, bb, 2).
    """
    sample, image, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    cols = tl.arange(0, WIDTH)
    number = tl.load(pointer_to(flat_idx, tl.int64) + image * kept + prefix + sample * stride)
    errors = pointer_of(which == 0, key_errors, value_errors, TYPE, UNIT)
    part = which * tl.num_programs(1) + image  # index among the keys and values of all images
    total = tl.num_programs(1) * rows
    scales = pointer_to(scales, tl.float32) + which * total
    inverses, scale = scales + 2 * total, tl.load(scales + number)
    own = tl.load(errors + number * DIM + cols, mask=cols < DIM, other=0.0).to(tl.float32)
    own *= tl.load(inverses + number)
    bits = tl.load(pointer_to(around, tl.int32) + image * n + number - image * rows - prefix)
    near, count = _near(errors, inverses, bits, number, line, cols, DIM, WIDTH)
    mean = tl.load(pointer_to(means, tl.float32) + part * DIM + cols, mask=cols < DIM, other=0.0)
    others = (mean * active - own) / tl.maximum(active - 1, 1)
    nearby = tl.where(count > 1, (near - own) / tl.maximum(count - 1, 1), others)
    sums = pointer_to(sums, tl.float32) + 5 * (part * tl.num_programs(0) + sample)
    store_products(sums, nearby * scale, others * scale, own * scale)


@triton.jit
def fit_gains(sums: tl.int64, gains: tl.int64, samples, SAMPLES: tl.constexpr):
    """Compute the gains g and g2, (2 * bb, 2), from the sums of `compare_errors`. Grid: (2 * bb,)."""
    which = tl.program_id(0)
    sums = pointer_to(sums, tl.float32) + which * samples * 5
    gain, gain2 = fitted_gains(sums, samples, SAMPLES, RIDGE)
    tl.store(pointer_to(gains, tl.float32) + 2 * which, gain)
    tl.store(pointer_to(gains, tl.float32) + 2 * which + 1, gain2)


@triton.jit
def correct_rows(
    key_errors: tl.int64, key_whole: tl.int64, value_errors: tl.int64, value_whole: tl.int64,
    scales: tl.int64, means: tl.int64, around: tl.int64, gains: tl.int64, images, rows, prefix, n, line,
    TYPE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Add s (g near(R) + g2 mean(R)) to the forecasts of cached rows in `whole`. Grid: (bb * n, 2)."""
    bits = tl.load(pointer_to(around, tl.int32) + tl.program_id(0))
    if ((bits >> CENTRE) & 1) == 0:
        which, image, token = tl.program_id(1), tl.program_id(0) // n, tl.program_id(0) % n
        cols, number = tl.arange(0, WIDTH), (image * rows + prefix + token).to(tl.int64)
        errors = pointer_of(which == 0, key_errors, value_errors, TYPE, UNIT)
        whole = pointer_of(which == 0, key_whole, value_whole, TYPE, UNIT) + number * DIM + cols
        own = pointer_to(scales, tl.float32) + which * images * rows
        inverses = own + 2 * images * rows
        part = which * images + image  # index among the keys and values of all images
        gain = tl.load(pointer_to(gains, tl.float32) + 2 * part)
        gain2 = tl.load(pointer_to(gains, tl.float32) + 2 * part + 1)
        forecast = tl.load(whole, mask=cols < DIM, other=0.0).to(tl.float32)
        mean = tl.load(pointer_to(means, tl.float32) + part * DIM + cols, mask=cols < DIM, other=0.0)
        near, count = _near(errors, inverses, bits, number, line, cols, DIM, WIDTH)
        scale = tl.load(own + number)
        of_near = tl.where(count > 0, gain * scale * (1.0 / tl.maximum(count, 1)), 0.0)
        of_mean = scale * tl.where(count > 0, gain2, gain2 + gain)
        tl.store(whole, (forecast + (near * of_near + mean * of_mean)).to(TYPE), mask=cols < DIM)
