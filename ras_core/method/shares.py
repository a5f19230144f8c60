"""Shares of tokens: as the texts of a run say them, and as a step can compute them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .schedule import StepKind, StepPlan


def percent(share: float) -> str:
    """A share as a whole number of percent: "78 %". Halves are rounded up; web/words.js does the same with
    the four decimals that it gets.
    """
    return f"{math.floor(round(100 * round(share, 4), 2) + 0.5)} %"


def in_whole_tokens(shares: Sequence[float], n_tokens: int) -> tuple[float, ...]:
    """The shares that steps compute if they are to compute these: a step computes whole tokens."""
    steps = (StepPlan(0, StepKind.REGIONAL, share) for share in shares)
    return tuple(step.active_count(n_tokens) / n_tokens for step in steps)
