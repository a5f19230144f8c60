"""The rhythm of a plan: how dense and regional steps follow each other.

A run begins with dense steps, because the whole image changes then. After them, either all steps are
regional, or regional and dense steps alternate. The dense steps refresh all keys and values, so that each of
them is at most one step old in the regional step that uses it. The last steps may be dense again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rhythm:
    """How the dense and the regional steps of a run follow each other.

    Attributes:
        start: number of dense steps at the start.
        share: share of the tokens in each regional step, below 1.
        every: after the start, each `every`-th step is dense; 0 if none is.
        end: number of dense steps at the end.
    """

    start: int
    share: float
    every: int = 0
    end: int = 0

    @classmethod
    def of(cls, shares: Sequence[float]) -> Rhythm | None:
        """The rhythm of a plan with these token shares (1 for a dense step); None if the plan has no regional
        step, or if no rhythm gives these shares.
        """
        start = next((step for step, share in enumerate(shares) if share != 1), len(shares))
        if start == len(shares):
            return None
        end = next(step for step, share in enumerate(reversed(shares)) if share != 1)
        rest = shares[start : len(shares) - end]
        every = next((step + 1 for step, share in enumerate(rest) if share == 1), 0)
        found = cls(start, rest[0], every, end)
        return found if found.shares(len(shares)) == tuple(shares) else None

    def shares(self, steps: int) -> tuple[float, ...]:
        """The token share of each step of a run."""
        return tuple(1.0 if self._is_dense(step, steps) else self.share for step in range(steps))

    def stretched(self, steps: int, new_steps: int, least_start: int) -> Rhythm:
        """The rhythm of a run of `new_steps` steps that replaces a run of `steps` steps; it has at least
        `least_start` dense steps at the start.
        """
        start = max(math.ceil(self.start * new_steps / steps), least_start)
        return replace(self, start=start)

    def _is_dense(self, step: int, steps: int) -> bool:
        after = step - self.start
        if after < 0 or step >= steps - self.end:
            return True
        return self.every > 0 and after % self.every == self.every - 1
