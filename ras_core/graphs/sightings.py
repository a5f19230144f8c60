"""Counts the calls of a run, to decide which are due for capture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from .eligibility import MAX_POSTPONED, SIGHTINGS


class Sightings:
    """Counts the calls of one network in one run, and the captures that had to be postponed."""

    def __init__(self) -> None:
        self._seen: Counter[Hashable] = Counter()
        self._n_postponed: Counter[Hashable] = Counter()
        self._reasons: dict[Hashable, str] = {}  # of postponed captures that are still outstanding

    def is_due(self, key: Hashable) -> bool:
        """Count a call. Returns whether to capture it, if nothing prevents that."""
        self._seen[key] += 1
        return self._seen[key] >= SIGHTINGS and self._n_postponed[key] < MAX_POSTPONED

    def postpone(self, key: Hashable, reason: str) -> None:
        """Note that the call cannot be captured now. It is due again at its next sightings, up to a limit."""
        self._n_postponed[key] += 1
        self._reasons[key] = reason

    def succeed(self, key: Hashable) -> None:
        """Note that the call has been captured."""
        self._reasons.pop(key, None)

    @property
    def postponed(self) -> str | None:
        """Why a capture is still outstanding, or None."""
        return next(iter(self._reasons.values()), None)
