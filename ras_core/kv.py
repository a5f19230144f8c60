"""Keys and values of every token, kept per branch, so that active tokens attend to the whole picture
(equation 2).

The host may evaluate two branches in one call at one step and in two calls at the next, as free memory
allows. Rows are therefore kept under their branch, and a call with another grouping gets them cut and joined
anew.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import RegionalAbort
from .tokens import row_index

Branch = Hashable
Slot = tuple[int, int]
"""Which attention: (main block, how many attentions of that block came before it)."""


@dataclass
class Sequence:
    """K and V of one attention: (bb, prefix + n + suffix, ...) each."""

    key: Tensor
    value: Tensor
    prefix: int
    suffix: int

    def chunk(self, part: int, parts: int) -> Sequence:
        """The rows of one branch (a view)."""
        size = self.key.shape[0] // parts
        rows = slice(part * size, (part + 1) * size)
        return Sequence(self.key[rows], self.value[rows], self.prefix, self.suffix)

    def image_only(self) -> Sequence:
        """Without text and padding rows (a view)."""
        rows = slice(self.prefix, self.key.shape[1] - self.suffix)
        return Sequence(self.key[:, rows], self.value[:, rows], 0, 0)

    def with_borders(self, prefix: int, suffix: int) -> Sequence:
        """The same image rows with room for other numbers of text and padding rows (a copy)."""
        image = self.image_only()
        key, value = (_framed(t, prefix, suffix) for t in (image.key, image.value))
        return Sequence(key, value, prefix, suffix)

    def nbytes(self) -> int:
        return self.key.nbytes + self.value.nbytes


@dataclass
class _Group:
    """The branches of one call, and the sequences they share, branch after branch."""

    branches: tuple[Branch, ...]
    slots: dict[Slot, Sequence] = field(default_factory=dict)


class KVStore:
    """The K/V cache of one run."""

    def __init__(self, n_tokens: int):
        self.n_tokens = n_tokens
        self._groups: dict[Branch, _Group] = {}

    def __contains__(self, branch: Branch) -> bool:
        return branch in self._groups

    def nbytes(self) -> int:
        groups = {id(group): group for group in self._groups.values()}
        return sum(seq.nbytes() for group in groups.values() for seq in group.slots.values())

    def drop(self, branches: tuple[Branch, ...]) -> None:
        """Forget what is cached for these branches; other branches of their calls keep theirs."""
        for branch in branches:
            if branch in self._groups:
                self._isolate(self._groups[branch])
        for branch in branches:
            self._groups.pop(branch, None)

    def begin_fill(self, branches: tuple[Branch, ...]) -> dict[Slot, Sequence]:
        """Slots to write a dense call's K/V into; buffers of the same grouping are written over."""
        group = self._groups.get(branches[0])
        if group is not None and group.branches == branches:
            return group.slots
        self.drop(branches)
        return {}

    def end_fill(self, branches: tuple[Branch, ...], slots: dict[Slot, Sequence]) -> None:
        """The dense call went through: its slots are whole now."""
        group = _Group(branches, slots)
        for branch in branches:
            self._groups[branch] = group

    def slots_for(self, branches: tuple[Branch, ...]) -> dict[Slot, Sequence]:
        """Slots of a regional call over these branches, regrouped when the last call had other groups."""
        group = self._groups[branches[0]]
        if group.branches != branches:
            group = self._join(branches)
        return group.slots

    def _isolate(self, group: _Group) -> None:
        for part, branch in enumerate(group.branches):
            own = {slot: seq.chunk(part, len(group.branches)) for slot, seq in group.slots.items()}
            self._groups[branch] = _Group((branch,), own)

    def _join(self, branches: tuple[Branch, ...]) -> _Group:
        for branch in branches:
            self._isolate(self._groups[branch])
        parts = [self._groups[branch].slots for branch in branches]
        joined = _Group(branches, {slot: _concat([part[slot] for part in parts]) for slot in parts[0]})
        for branch in branches:
            self._groups[branch] = joined
        return joined


def fill(
    slots: dict[Slot, Sequence], slot: Slot, key: Tensor, value: Tensor, prefix: int, suffix: int
) -> None:
    """Keep the K/V of a dense call: (bb, r, ...) each, copied, since the host owns its tensors."""
    kept = slots.get(slot)
    if kept is not None and kept.prefix == prefix and _alike(kept.key, key) and _alike(kept.value, value):
        kept.key.copy_(key)
        kept.value.copy_(value)
        return
    contiguous = torch.contiguous_format
    slots[slot] = Sequence(
        key.clone(memory_format=contiguous), value.clone(memory_format=contiguous), prefix, suffix
    )


def update(
    slots: dict[Slot, Sequence],
    slot: Slot,
    fresh: tuple[Tensor, Tensor],
    active_idx: Tensor,
    n_tokens: int,
    borders: tuple[int, int],
    flat_idx: Tensor | None = None,
) -> Sequence:
    """Write a regional call's fresh rows over the cached ones and return the whole sequence.

    Args:
        slots, slot: where.
        fresh: key and value of [prefix | active | suffix], (bb, r_kept, ...) each.
        active_idx: (bb, n_active) int64.
        n_tokens: image tokens of the whole picture.
        borders: rows of text before and of padding after the image rows in this call.
        flat_idx: `row_index` of the above where the caller has it.

    Raises:
        RegionalAbort: this attention was never seen in a dense call.
    """
    if slot not in slots:
        raise RegionalAbort(f"attention {slot} has no cached keys and values")
    prefix, suffix = borders
    sequence = slots[slot]
    if (sequence.prefix, sequence.suffix) != borders:
        sequence = slots[slot] = sequence.with_borders(prefix, suffix)
    if flat_idx is None:
        flat_idx = row_index(active_idx, n_tokens, prefix, suffix)
    sequence.key.flatten(0, 1).index_copy_(0, flat_idx, fresh[0].flatten(0, 1))
    sequence.value.flatten(0, 1).index_copy_(0, flat_idx, fresh[1].flatten(0, 1))
    return sequence


def _concat(parts: list[Sequence]) -> Sequence:
    """Branch after branch; text rows are dropped where their numbers differ, since every call writes them
    anew.
    """
    if len(parts) == 1:
        return parts[0]
    if len({(part.prefix, part.suffix) for part in parts}) > 1:
        parts = [part.image_only() for part in parts]
    key = torch.cat([part.key for part in parts])
    value = torch.cat([part.value for part in parts])
    return Sequence(key, value, parts[0].prefix, parts[0].suffix)


def _framed(rows: Tensor, prefix: int, suffix: int) -> Tensor:
    framed = rows.new_empty((rows.shape[0], prefix + rows.shape[1] + suffix, *rows.shape[2:]))
    framed[:, prefix : prefix + rows.shape[1]] = rows
    return framed


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
