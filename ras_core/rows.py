"""Finds, gathers and writes the rows of active tokens in the sequences inside a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""The keys and the values of one attention layer, (bb, r, ...) each."""

WIDE = torch.complex128
"""Data type with elements of 16 bytes. Where possible, rows are viewed as this type when they are copied.
This is because kernels that copy rows by index take as long for an element of 16 bytes as for one of two
bytes (float16)."""


class Scratch:
    """Scratch memory for one call of the network. It is allocated once; each attention layer of the call
    overwrites what the layer before has written there.
    """

    def __init__(self) -> None:
        self._memory: dict[int, Tensor] = {}
        self._views: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}

    def empty(self, number: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """A contiguous tensor with the shape and device of `like`. Its values are undefined.

        `number` selects one of several pieces of memory. Calls with the same number return the same memory.
        """
        key = number, like.shape, dtype
        if (view := self._views.get(key)) is None:
            view = self._views[key] = self._taken(number, like, dtype)
        return view

    def _taken(self, number: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        nbytes = like.numel() * dtype.itemsize
        memory = self._memory.get(number)
        if memory is None or memory.numel() < nbytes or memory.device != like.device:
            self._views = {key: view for key, view in self._views.items() if key[0] != number}
            memory = self._memory[number] = like.new_empty(nbytes, dtype=torch.uint8)
        return memory[:nbytes].view(dtype).view(like.shape)


def row_index(active_idx: Tensor, n_tokens: int, prefix: int, suffix: int) -> Tensor:
    """Indices of the rows of a sequence [prefix | image | suffix] that remain if only active tokens are kept.

    Args:
        active_idx: (bb, n_active) int64, token indices.
        n_tokens: number of image tokens of the whole sequence.
        prefix, suffix: numbers of rows before and after the image rows (text, padding). All these rows are
            kept. The value `ALL` of models/base.py is not allowed here: `active_rows.borders_of` converts it
            to numbers.

    Returns:
        (bb * (prefix + n_active + suffix),) int64, indices into the sequence flattened over its first two
        axes.
    """
    bb, device = active_idx.shape[0], active_idx.device
    rows = prefix + n_tokens + suffix
    parts = [active_idx + prefix if prefix else active_idx]
    if prefix:
        parts.insert(0, torch.arange(prefix, device=device).expand(bb, -1))
    if suffix:
        parts.append(torch.arange(prefix + n_tokens, rows, device=device).expand(bb, -1))
    within = torch.cat(parts, dim=1) if len(parts) > 1 else active_idx  # (bb, prefix + n_active + suffix)
    if bb > 1:
        within = within + torch.arange(0, bb * rows, rows, device=device)[:, None]
    return within.flatten()


@dataclass(frozen=True)
class RowIndex:
    """Which rows of the whole sequence, (bb, rows, ...), a regional call computes.

    Attributes:
        flat: (bb * r_kept,) int64, as returned by `row_index`.
        total: number of rows of the whole sequence, bb * rows.
        scratch: the call's scratch memory.
    """

    flat: Tensor
    total: int
    scratch: Scratch = field(default_factory=Scratch, repr=False, compare=False)

    @classmethod
    def of(
        cls, active_idx: Tensor, n_tokens: int, prefix: int, suffix: int, scratch: Scratch | None = None
    ) -> RowIndex:
        """Create the index from the arguments of `row_index`. If `scratch` is None, new scratch memory is
        used.
        """
        rows = prefix + n_tokens + suffix
        flat_idx = row_index(active_idx, n_tokens, prefix, suffix)
        return cls(flat_idx, len(active_idx) * rows, scratch or Scratch())

    @cached_property
    def inverse(self) -> Tensor:
        """(total,) int32: for each row of the sequence, its position among the rows that the call computes,
        or -1 if the call does not compute it.
        """
        numbers = torch.arange(len(self.flat), device=self.flat.device, dtype=torch.int32)
        return numbers.new_full((self.total,), -1).index_copy_(0, self.flat, numbers)


def gather_rows(sequence: Tensor, flat_idx: Tensor) -> Tensor:
    """Copy the rows of `sequence` at the indices `flat_idx`: (bb, r, ...) -> (bb, r_kept, ...)."""
    (rows,) = _wide(sequence.flatten(0, 1))
    kept = rows.index_select(0, flat_idx).view(sequence.dtype)
    return kept.unflatten(0, (sequence.shape[0], -1))


def scatter_into(sequence: Tensor, flat_idx: Tensor, kept: Tensor) -> None:
    """Overwrite the rows of `sequence`, a contiguous (bb, r, ...), at these indices with the rows of `kept`,
    (bb, r_kept, ...).
    """
    rows, fresh = _wide(sequence.flatten(0, 1), kept.flatten(0, 1))
    rows.index_copy_(0, flat_idx, fresh)


class RowWriter:
    """Reads and writes rows of a contiguous sequence, (bb, r, ...), like `gather_rows` and `scatter_into`. A
    RowWriter is faster than these functions if many reads and writes follow, because it inspects the layout
    of its sequence only once, when it is created.
    """

    def __init__(self, sequence: Tensor):
        self._rows = sequence.flatten(0, 1)
        self._wide = _wide(self._rows)[0]
        self._is_wide = self._wide is not self._rows

    def put(self, flat_idx: Tensor, fresh: Tensor) -> None:
        """Write the rows `fresh`, (bb, r_kept, ...), at these indices of the sequence."""
        if self._is_wide:
            try:
                self._wide.index_copy_(0, flat_idx, fresh.view(WIDE).flatten(0, 1))
                return
            except RuntimeError:  # unsuitable strides or alignment of `fresh`, expected of later rows too
                self._is_wide = False
        self._rows.index_copy_(0, flat_idx, fresh.flatten(0, 1))

    def move(self, flat_idx: Tensor, target: RowWriter) -> None:
        """Copy the rows at these indices to the same indices of `target`, a sequence of the same shape and
        dtype.
        """
        here, there = self._wide, target._wide
        if here.dtype != there.dtype:  # only one of the two sequences is aligned to 16 bytes
            here, there = self._rows, target._rows
        there.index_copy_(0, flat_idx, here.index_select(0, flat_idx))

    def take(self, flat_idx: Tensor) -> Tensor:
        """The rows at these indices as a new tensor, (r_kept, ...)."""
        return self._wide.index_select(0, flat_idx).view(self._rows.dtype)


def rows_first(by_head: Tensor, repeats: int = 1) -> Tensor:
    """A view with the row axis before the head axis: (bb, heads, r, e) -> (bb, r, heads / repeats, e).

    Each group of `repeats` consecutive heads holds equal values; the view contains one head of each group.
    """
    if repeats == 1:
        return by_head.transpose(1, 2)
    bb, heads, rows, size = by_head.shape
    of_image, of_head, of_row, of_number = by_head.stride()
    strides = (of_image, of_row, of_head * repeats, of_number)
    return by_head.as_strided((bb, rows, heads // repeats, size), strides)


def scatter_rows(kept: Tensor, flat_idx: Tensor, rows: int) -> Tensor:
    """A new sequence of `rows` rows, with the rows of `kept` at the indices `flat_idx` and zeros in all other
    rows: (bb, r_kept, ...) -> (bb, rows, ...).
    """
    full = kept.new_zeros((kept.shape[0], rows, *kept.shape[2:]))
    scatter_into(full, flat_idx, kept)
    return full


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Views of these tensors, (r, ...) each, as tensors with elements of 16 bytes (dtype `WIDE`). All tensors
    are returned unchanged if the row length, a stride or the address of one of them is not a multiple of 16
    bytes.
    """
    for t in tensors:
        if t.ndim < 2 or t.shape[-1] * t.element_size() % 16 or t.data_ptr() % 16:
            return tensors
        if not (t.is_cuda or t.is_cpu):  # other devices may be unable to copy elements of 16 bytes
            return tensors
    try:
        return tuple([t.view(WIDE) for t in tensors])
    except RuntimeError:  # an unsuitable stride
        return tensors
