"""User preferences for token selection: image regions whose tokens are to be selected more often."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .grid import TokenGrid

PRIORITY_WEIGHT = 3.0
"""Extra weight at priority 1. It is added to the usual factor of 1: the score is multiplied by 1 + 3 = 4."""


@dataclass(frozen=True)
class Preferences:
    """Preferences for each token.

    Attributes:
        priority: (b or 1, n) float in [0, 1], how strongly each token is favoured; None if none is favoured.
    """

    priority: Tensor | None = None

    @classmethod
    def of(cls, grid: TokenGrid, priority: Tensor | None) -> Preferences:
        """Preferences from a mask of the latent's size, (b or 1, *size) in [0, 1], or None."""
        return cls(None if priority is None else grid.pool(priority.float()).clamp(0, 1))

    @property
    def weight(self) -> Tensor | float:
        """Factor by which each token's selection score is multiplied. It rises linearly from 1 at priority 0
        to 4 at priority 1.
        """
        return 1.0 if self.priority is None else 1 + PRIORITY_WEIGHT * self.priority

    def in_order(self, order: Tensor) -> Preferences:
        """The preferences of the tokens in this order, (n,)."""
        return self if self.priority is None else Preferences(self.priority[:, order])
