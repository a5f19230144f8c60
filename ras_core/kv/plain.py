"""Keys and values of one attention, unchanged: the plain format, and the base class of all others.

In every format the first two axes of each tensor are (bb, rows), so all formats share the code here that
splits and joins rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..rows import Pair, RowIndex, RowWriter, scatter_into
from .arena import Arena, copies


@dataclass
class KVRows:
    """K and V of one attention, (bb, prefix + n + suffix, ...) each, kept unchanged in the network's dtype.

    Attributes:
        tensors: the tensors that the format keeps, (bb, prefix + n + suffix, ...) each.
        prefix, suffix: number of text rows before and of padding rows after the image rows.
    """

    tensors: tuple[Tensor, ...]
    prefix: int
    suffix: int
    _writers: tuple[RowWriter, ...] = field(default=(), init=False, repr=False, compare=False)
    _by_head: Pair | None = field(default=None, init=False, repr=False, compare=False)
    format_name: ClassVar[str] = "gpu"
    """The setting of `kv_cache` that uses this class; no two classes have the same setting."""
    is_fetched: ClassVar[bool] = False
    """Whether `prefetch` does anything."""
    evaluations: ClassVar[int] = 1
    """For each row, the K and V of this many evaluations are kept, most recent first."""

    @classmethod
    def of(cls, key: Tensor, value: Tensor, prefix: int, suffix: int, arena: Arena | None = None) -> KVRows:
        """Keep the K/V of a dense call: (bb, r, ...) each, copied, because the network owns its tensors."""
        return cls(copies((key, value), arena), prefix, suffix)

    @classmethod
    def keeper(cls) -> Keep:
        """`of`, with the resources that all attentions of one run share filled in as arguments. In this
        class, there are no such resources.
        """
        return cls.of

    @property
    def key(self) -> Tensor:
        return self.tensors[0]

    @property
    def value(self) -> Tensor:
        return self.tensors[1]

    def fits(self, key: Tensor, value: Tensor, prefix: int) -> bool:
        """Whether a dense call's K/V can overwrite these rows: they have the same shapes, dtypes, devices and
        number of text rows.
        """
        return self.prefix == prefix and _alike(self.key, key) and _alike(self.value, value)

    def write(self, key: Tensor, value: Tensor) -> None:
        """Overwrite all rows with a dense call's K/V."""
        self.key.copy_(key)
        self.value.copy_(value)

    def update(self, index: RowIndex, fresh: Pair) -> Pair:
        """Write fresh rows, (bb, r_kept, ...) each, and return K and V of all rows, fresh ones included."""
        if torch.compiler.is_compiling():  # torch.compile cannot trace the exception that RowWriter handles
            for kept, rows in zip(self.tensors, fresh, strict=True):
                scatter_into(kept, index.flat, rows)
            return self.key, self.value
        key, value = self._writers or self._make_writers()
        key.put(index.flat, fresh[0])
        value.put(index.flat, fresh[1])
        return self.tensors

    def heads_first(self, whole: Pair) -> Pair:
        """The K and V that `update` returned, as views with heads before rows: (bb, heads, rows, e)."""
        if whole[0] is not self.tensors[0]:
            return whole[0].transpose(1, 2), whole[1].transpose(1, 2)
        if self._by_head is None:
            self._by_head = whole[0].transpose(1, 2), whole[1].transpose(1, 2)
        return self._by_head

    def read(self) -> Pair:
        """K and V of all rows, (bb, prefix + n + suffix, ...) each, as numbers that attention can read."""
        return self.key, self.value

    def prefetch(self) -> None:
        """Start copying these rows to the device; called one attention before these rows are updated."""

    def forget(self) -> None:
        """Called before another run reuses these tensors: erase numbers that would affect the new run."""

    def chunk(self, part: int, parts: int) -> KVRows:
        """A view of part number `part` if the rows are divided along bb into `parts` equal parts."""
        size = self.tensors[0].shape[0] // parts
        rows = slice(part * size, (part + 1) * size)
        return replace(self, tensors=tuple(t[rows] for t in self.tensors))

    def image_only(self) -> KVRows:
        """A view of the image rows, without text and padding rows."""
        rows = slice(self.prefix, self.tensors[0].shape[1] - self.suffix)
        return replace(self, tensors=tuple(t[:, rows] for t in self.tensors), prefix=0, suffix=0)

    def with_borders(self, prefix: int, suffix: int) -> KVRows:
        """A copy with the same image rows and room for different numbers of text and padding rows."""
        self._settle()
        framed = tuple(self._framed(t, prefix, suffix) for t in self.image_only().tensors)
        return replace(self, tensors=framed, prefix=prefix, suffix=suffix)

    def joined(self, others: Sequence[KVRows]) -> KVRows:
        """These rows and others of the same format, joined along bb. If the parts have different numbers of
        text or padding rows, text and padding rows are dropped: every call writes them again anyway.
        """
        if not others:
            return self
        parts = [self, *others]
        if len({(part.prefix, part.suffix) for part in parts}) > 1:
            parts = [part.image_only() for part in parts]
        self._settle()
        columns = zip(*(part.tensors for part in parts), strict=True)
        whole = tuple(self._cat(column) for column in columns)
        return replace(self, tensors=whole, prefix=parts[0].prefix, suffix=parts[0].suffix)

    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)

    def _make_writers(self) -> tuple[RowWriter, ...]:
        """Create a `RowWriter`, which reads and writes rows, for each of `tensors`. This is done when the
        writers are first needed.
        """
        self._writers = tuple(map(RowWriter, self.tensors))
        return self._writers

    def _put(self, number: int, index: RowIndex, fresh: Tensor) -> None:
        """Write fresh rows into the `number`th of `tensors`."""
        if torch.compiler.is_compiling():
            scatter_into(self.tensors[number], index.flat, fresh)
        else:
            (self._writers or self._make_writers())[number].put(index.flat, fresh)

    def _framed(self, rows: Tensor, prefix: int, suffix: int) -> Tensor:
        framed = self._empty(rows, (rows.shape[0], prefix + rows.shape[1] + suffix, *rows.shape[2:]))
        framed[:, prefix : prefix + rows.shape[1]] = rows
        return framed

    def _cat(self, parts: Sequence[Tensor]) -> Tensor:
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return torch.cat(list(parts), out=self._empty(parts[0], shape))

    def _empty(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return like.new_empty(shape)

    def _settle(self) -> None:
        """Wait until copies into `tensors` have completed."""


Keep = Callable[..., KVRows]
"""A function that keeps the key and value of a dense call, (bb, r, ...) each; it also gets the numbers of
text and padding rows. In formats that keep rows on the device, it accepts `arena=`, the memory for all rows
of the call."""

Slot = tuple[int, int]
"""Identifies an attention: (index of its block, index of the attention within the block). Blocks are counted
from the first block that regional calls run on active tokens only."""

Slots = dict[Slot, KVRows]
"""The cached rows of one call, in the order of its attentions."""


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
