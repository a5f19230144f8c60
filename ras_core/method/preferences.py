"""User preferences for token selection: regions to favour, and regions not to waste time on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .grid import TokenGrid

MARGIN = 2
"""Tokens along h and w around an inpaint mask that are computed too: its soft edge and what attention carries
across it."""

PRIORITY_WEIGHT = 3.0
"""A token of full priority counts as if its estimate moved four times as fast."""


@dataclass(frozen=True)
class Preferences:
    """Token by token.

    Attributes:
        priority: (b or 1, n) float in [0, 1], regions to favour; None for none.
        needed: (b or 1, n) bool, tokens whose output is not thrown away; None for all of them.
        needed_count: the most needed tokens of any image.
    """

    priority: Tensor | None = None
    needed: Tensor | None = None
    needed_count: int | None = None

    @classmethod
    def of(cls, grid: TokenGrid, priority: Tensor | None, mask: Tensor | None) -> Preferences:
        """From masks of the latent's size.

        Args:
            grid: token grid of the latent.
            priority: (b or 1, *size) in [0, 1], or None.
            mask: (b or 1, *size) inpaint mask, above 0 where the image is to be generated again; or None.
        """
        favoured = None if priority is None else grid.pool(priority.float()).clamp(0, 1)
        if mask is None:
            return cls(favoured)
        needed = grid.grow(grid.pool((mask > 0).float()) > 0, MARGIN)
        return cls(favoured, needed, max(int(needed.sum(dim=1).max()), 1))

    @property
    def weight(self) -> Tensor | float:
        """Factor on the worth of each token: 1, and up to 4 where it is favoured."""
        return 1.0 if self.priority is None else 1 + PRIORITY_WEIGHT * self.priority

    def without_waste(self, score: Tensor, last: float) -> Tensor:
        """Scores in which tokens that are thrown away have the value `last`."""
        return score if self.needed is None else score.masked_fill(~self.needed, last)

    def limit(self, active_count: int) -> int:
        """At most the tokens that are needed."""
        return active_count if self.needed_count is None else min(active_count, self.needed_count)
