"""Counts how often each call of the network occurs in a run, to decide when it is due for capture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from .eligibility import MAX_POSTPONED, SIGHTINGS


class Sightings:
    """Counts the calls of one network in one run, and the captures that had to be postponed."""

    def __init__(self) -> None:
        self._seen: Counter[Hashable] = Counter()
        self._n_postponed: Counter[Hashable] = Counter()
        self._reasons: dict[Hashable, str] = {}  # why captures that have not succeeded since were postponed

    def is_due(self, key: Hashable) -> bool:
        """Count an occurrence of the call with this key (`RegionalCall.key`). Returns whether to capture it
        now, if nothing else prevents that.
        """
        self._seen[key] += 1
        return self._seen[key] >= SIGHTINGS and self._n_postponed[key] < MAX_POSTPONED

    def postpone(self, key: Hashable, reason: str) -> None:
        """Note that the call cannot be captured now. It is due again at its next occurrence, unless its
        capture has been postponed `MAX_POSTPONED` times.
        """
        self._n_postponed[key] += 1
        self._reasons[key] = reason

    def succeed(self, key: Hashable) -> None:
        """Note that the call has been captured."""
        self._reasons.pop(key, None)

    @property
    def postponed(self) -> str | None:
        """Why a capture was postponed and has not succeeded since, or None."""
        return next(iter(self._reasons.values()), None)
