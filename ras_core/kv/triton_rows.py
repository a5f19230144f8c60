"""Functions that the pack's Triton kernels for rows of the K/V cache share (`triton_kernels`)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pointer_to(address, TYPE: tl.constexpr, UNIT: tl.constexpr = 1):
    """The address as a pointer to numbers of type TYPE."""
    pointer = address.to(tl.pointer_type(TYPE))
    if UNIT > 1:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def pointer_of(is_key, key, value, TYPE: tl.constexpr, UNIT: tl.constexpr):
    """The address of the keys or that of the values as a pointer."""
    return pointer_to(tl.where(is_key, key, value), TYPE, UNIT)


@triton.jit
def load_fresh(
    first, number, kept, by_image, by_row, by_head, cols,
    TYPE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Load row `number` of the (bb * kept) fresh rows."""
    start = ((number // kept) * by_image + (number % kept) * by_row) * UNIT
    pointers = pointer_to(first, TYPE, UNIT) + start + (cols // HEAD) * by_head * UNIT + cols % HEAD
    return tl.load(pointers, mask=cols < DIM, other=0.0)


@triton.jit
def load_fresh_of(
    is_key, key_first, value_first, number, kept, key_by_image, key_by_row, key_by_head,
    value_by_image, value_by_row, value_by_head, cols,
    TYPE: tl.constexpr, UNIT: tl.constexpr, DIM: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Load row `number` of the fresh keys or of the fresh values."""
    return load_fresh(
        tl.where(is_key, key_first, value_first), number, kept,
        tl.where(is_key, key_by_image, value_by_image), tl.where(is_key, key_by_row, value_by_row),
        tl.where(is_key, key_by_head, value_by_head), cols, TYPE, UNIT, DIM, HEAD,
    )  # fmt: skip
