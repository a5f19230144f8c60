"""User preferences for token selection: regions to favour, and regions not worth computing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .grid import TokenGrid

MARGIN = 2
"""Width, in tokens along h and w, of the border around an inpaint mask that is computed too: the mask's edge
is soft, and attention carries changes across it."""

PRIORITY_WEIGHT = 3.0
"""Extra weight of full priority: such a token counts as if its estimate changed four times as fast."""


@dataclass(frozen=True)
class Preferences:
    """Preferences for each token.

    Attributes:
        priority: (b or 1, n) float in [0, 1], regions to favour; None for none.
        needed: (b or 1, n) bool, tokens whose output is used; None for all of them.
        needed_count: largest number of needed tokens of any image; None for all of them.
    """

    priority: Tensor | None = None
    needed: Tensor | None = None
    needed_count: int | None = None

    @classmethod
    def of(cls, grid: TokenGrid, priority: Tensor | None, mask: Tensor | None) -> Preferences:
        """Preferences from masks of the latent's size.

        Args:
            grid: token grid of the latent.
            priority: (b or 1, *size) in [0, 1], or None.
            mask: (b or 1, *size) inpaint mask, above 0 where the image is generated; or None.
        """
        favoured = None if priority is None else grid.pool(priority.float()).clamp(0, 1)
        if mask is None:
            return cls(favoured)
        needed = grid.grow(grid.pool((mask > 0).float()) > 0, MARGIN)
        return cls(favoured, needed, max(int(needed.sum(dim=1).max()), 1))

    @property
    def weight(self) -> Tensor | float:
        """Factor on the score of each token: 1, up to 4 if it is favoured."""
        return 1.0 if self.priority is None else 1 + PRIORITY_WEIGHT * self.priority

    def replace_unneeded(self, score: Tensor, value: float) -> Tensor:
        """Scores with those of unneeded tokens set to `value`."""
        return score if self.needed is None else score.masked_fill(~self.needed, value)

    def limit(self, active_count: int) -> int:
        """`active_count`, at most the number of needed tokens."""
        return active_count if self.needed_count is None else min(active_count, self.needed_count)
