"""Keys and values kept as float8 with a scale for each row, in about half the memory of float16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rows import Pair, RowIndex, scatter_into
from .arena import Arena, copies
from .float8_format import EXPONENT, FLOAT8, SCALE_OF_POWER, SMALLEST_SCALE
from .plain import KVRows
from .spec import CacheSize, KVFormat
from .triton_check import kernels_for

LARGEST_HALF = torch.finfo(torch.float16).max


@dataclass
class Float8Rows(KVRows):
    """K and V as float8_e4m3fn, with one scale for each row of K and one for each row of V.

    On keys and values of the demo models, which are small models in this repository (demo/), rounding to
    float8 causes a relative RMS error of 2.65 % with one scale per row or per tensor, and of 2.4 to 2.5 %
    with one scale per head. There is one scale per row because it costs only two bytes per row, and because a
    row can then be overwritten without changing the other rows. Scales are powers of two, so multiplying by
    them adds no rounding error. Attention reads fresh rows unrounded; only cached rows, kept from an earlier
    step, have been rounded to float8.

    `tensors` has four tensors: the key as float8 bytes, in the key's shape; the key's scales, (bb, r) in the
    key's dtype; the value as float8 bytes; and the value's scales.
    """

    format_name: ClassVar[str] = "fp8"

    @classmethod
    def of(
        cls, key: Tensor, value: Tensor, prefix: int, suffix: int, arena: Arena | None = None
    ) -> Float8Rows:
        return cls(copies((*to_float8(key), *to_float8(value)), arena), prefix, suffix)

    @property
    def value(self) -> Tensor:
        return self.tensors[2]

    def fits(self, key: Tensor, value: Tensor, prefix: int) -> bool:
        kept = zip(self.tensors[::2], self.tensors[1::2], (key, value), strict=True)
        return self.prefix == prefix and all(
            codes.shape == t.shape and codes.device == t.device and scales.dtype == t.dtype
            for codes, scales, t in kept
        )

    def write(self, key: Tensor, value: Tensor) -> None:
        kernels = kernels_for(key, value)
        if kernels is not None:
            kernels.encode_float8(key, *self.tensors[:2])
            kernels.encode_float8(value, *self.tensors[2:])
            return
        for kept, new in zip(self.tensors, (*to_float8(key), *to_float8(value)), strict=True):
            kept.copy_(new)

    def update(self, index: RowIndex, fresh: Pair) -> Pair:
        kernels = kernels_for(*fresh)
        if kernels is not None:
            return kernels.update_float8(self.tensors, index, fresh)
        memory = index.scratch
        whole = tuple(
            from_float8(*self.tensors[2 * i : 2 * i + 2], memory.empty(i, self.tensors[2 * i], rows.dtype))
            for i, rows in enumerate(fresh)
        )
        for number, new in enumerate((*to_float8(fresh[0]), *to_float8(fresh[1]))):
            self._put(number, index, new)
        for t, rows in zip(whole, fresh, strict=True):
            scatter_into(t, index.flat, rows)
        return whole

    def read(self) -> Pair:
        return from_float8(*self.tensors[:2]), from_float8(*self.tensors[2:])


def has_float8(device: torch.device) -> bool:
    """Whether PyTorch can convert numbers to float8 and back on this device."""
    try:
        return float(torch.ones(1, device=device).to(FLOAT8).float()) == 1.0
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def to_float8(rows: Tensor) -> Pair:
    """Convert rows, (bb, r, ...), to float8 bytes, (bb, r, ...), and scales, (bb, r) in the rows' dtype."""
    kernels = kernels_for(rows, rows)
    if kernels is not None:
        codes, scales = rows.new_empty(rows.shape, dtype=torch.uint8), rows.new_empty(rows.shape[:2])
        kernels.encode_float8(rows, codes, scales)
        return codes, scales
    flat = rows.flatten(2)
    largest = torch.linalg.vector_norm(flat, torch.inf, dim=2, dtype=torch.float32)
    largest.view(torch.int32).bitwise_and_(EXPONENT)  # rounds `largest` down to a power of two
    scales = largest.mul_(SCALE_OF_POWER).clamp_min_(SMALLEST_SCALE).to(rows.dtype)
    codes = (flat / scales[..., None]).to(FLOAT8)
    # Not every device can slice, concatenate and scatter float8 tensors; every device can do this with bytes.
    return codes.view(torch.uint8).view(rows.shape), scales


def from_float8(codes: Tensor, scales: Tensor, rows: Tensor | None = None) -> Tensor:
    """The inverse of `to_float8`: returns the rows, (bb, r, ...), which are written into `rows` if it is
    given.
    """
    numbers = codes.view(FLOAT8)
    rows = numbers.to(scales.dtype) if rows is None else rows.copy_(numbers)
    rows.flatten(2).mul_(scales[..., None])
    if rows.dtype is torch.float16:  # the largest code and scale give 65536, which has no float16
        rows.clamp_(-LARGEST_HALF, LARGEST_HALF)
    return rows


def _nbytes(size: CacheSize) -> int:
    return size.numbers + size.rows * size.itemsize  # a byte for each number, a scale for each row


FORMAT = KVFormat(
    name="fp8",
    rows=Float8Rows,
    nbytes=_nbytes,
    text="the K/V cache is kept as fp8 ({size})",
    transients=1,
    needs_float8=True,
    auto_rank=20,
)
