"""Finds the rows of active tokens, in every tensor that a regional call shortens.

The rows of a tensor inside the network are in the order [prefix | image | suffix]. Frozen rows, those of
reference images, count as image rows here that are never active. The prefix is text. Its
length may differ between hidden states, position tables, attentions and the final layer's
output: in one block, text may be a tensor of its own, and in the next block it may precede the image rows in
the same tensor. So the length of each tensor's prefix is computed from that tensor's number of rows. The
borders of a tensor are the lengths of its prefix and its suffix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RegionalAbort
from ..models.base import ALL
from ..rows import RowIndex, Scratch, gather_rows, scatter_rows

Borders = tuple[int, int]
"""Two numbers of a tensor: its rows before the image rows, and its rows after the image rows."""


def borders_of(rows: int, n_image: int, suffix: int, name: str) -> Borders:
    """The numbers of rows before and after the image rows of a tensor.

    Args:
        rows, n_image: all rows of the tensor, and how many of them are image rows.
        suffix: number of rows after the image rows. `ALL` means that there are no rows before the image rows,
            so that all remaining rows of the tensor come after them.
        name: description of the tensor, for the error message.

    Raises:
        RegionalAbort: the tensor has fewer rows than image rows and suffix rows together.
    """
    others = rows - n_image
    after = others if suffix == ALL else suffix
    if others < 0 or others < after:
        raise RegionalAbort(f"{name} has {rows} rows, too few for {n_image} image tokens")
    return others - after, after


class ActiveRows:
    """Shortens the tensors of one regional call to the rows that it processes, and restores their length.

    Args:
        active_idx: (bb, n_active) int64, token indices.
        n_tokens: image tokens of the whole image.
        suffix: number of rows after the image rows of each tensor. `ALL` means that all rows of a tensor
            except the image rows come after the image rows.
    """

    def __init__(self, active_idx: Tensor, n_tokens: int, suffix: int):
        self._active_idx = active_idx
        self._n = n_tokens
        self._suffix = suffix
        self._indices: dict[Borders, RowIndex] = {}
        self._scratch = Scratch()

    def index(self, borders: Borders) -> RowIndex:
        """Indices of the rows that the call keeps, in a tensor whose prefix and suffix have these lengths."""
        if borders not in self._indices:
            self._indices[borders] = RowIndex.of(self._active_idx, self._n, *borders, self._scratch)
        return self._indices[borders]

    def short_borders(self, rows: int, name: str) -> Borders:
        """The numbers of rows before and after the rows of active tokens, in a shortened tensor of `rows`
        rows.
        """
        return borders_of(rows, self._active_idx.shape[1], self._suffix, name)

    def gather(self, whole: Tensor, borders: Borders) -> Tensor:
        """Keep the rows of active tokens, prefix and suffix: (bb, r, ...) -> (bb, r_kept, ...)."""
        return gather_rows(whole, self.index(borders).flat)

    def gather_table(self, table: Tensor, axis: int) -> Tensor:
        """Keep the rows of active tokens, prefix and suffix of a position table, (bb or 1, ...), whose rows
        are along `axis`. The result has bb entries along axis 0.
        """
        borders = borders_of(table.shape[axis], self._n, self._suffix, "a position table")
        whole = table.expand(len(self._active_idx), *table.shape[1:])
        if axis == 1:
            return self.gather(whole, borders)
        return self.gather(whole.movedim(axis, 1), borders).movedim(1, axis)

    def scatter(self, kept: Tensor) -> Tensor:
        """Restore the full number of rows, with zeros in the rows of cached (inactive) tokens:
        (bb, r_kept, ...) -> (bb, r, ...).
        """
        index = self.index(self.short_borders(kept.shape[1], "the final layer's output"))
        return scatter_rows(kept, index.flat, index.total // len(self._active_idx))

    def short_mask(self, mask: Tensor, n_keys: int) -> Tensor:
        """Keep the `n_keys` columns of an attention mask, (bb or 1, ..., r), whose keys the call keeps. A
        mask that does not have r columns is for an attention over other keys, and is returned unchanged.
        """
        rows = n_keys - self._active_idx.shape[1] + self._n
        if mask.shape[-1] != rows or n_keys == rows:
            return mask
        index = self.index(self.short_borders(n_keys, "an attention"))
        within = index.flat.view(len(self._active_idx), -1) % rows
        return torch.take_along_dim(mask, within.view(len(within), *[1] * (mask.ndim - 2), -1), dim=-1)

    def wide_mask(self, mask: Tensor) -> Tensor:
        """Add columns of zeros for the keys of cached tokens to an attention mask with a column for each row
        that the call keeps: (bb or 1, ..., r_kept) -> (bb, ..., r).
        """
        index, bb = self.index(self.short_borders(mask.shape[-1], "an attention mask")), len(self._active_idx)
        within = index.flat.view(bb, *[1] * (mask.ndim - 2), -1) % (index.total // bb)
        mask = mask.expand(bb, *mask.shape[1:])
        wide = mask.new_zeros((*mask.shape[:-1], index.total // bb))
        return wide.scatter_(-1, within.expand_as(mask), mask)
