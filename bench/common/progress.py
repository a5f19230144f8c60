"""One line of progress, with the time still to go."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO


def say(text: str) -> None:
    """For people; tables go to standard output."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Counts work in any unit that is proportional to time.

    The first job's time is left out of the rate: models and references are made ready in it.

    Args:
        jobs: how many.
        work: sum of their work.
        stream: where to write; standard error, so that tables can be piped.
        clock: seconds.
    """

    def __init__(
        self,
        jobs: int,
        work: float,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._jobs, self._done = jobs, 0
        self._work_left = work
        self._stream, self._clock = stream or sys.stderr, clock
        self._begun = clock()
        self._first: float | None = None  # when the first job was done
        self._work_since = 0.0

    def step(self, work: float, text: str) -> None:
        """One job is done."""
        now = self._clock()
        self._done += 1
        self._work_left -= work
        if self._first is None:
            self._first = now
        else:
            self._work_since += work
        print(f"[{self._done}/{self._jobs}] {text} | {self._end(now)}", file=self._stream, flush=True)

    def _end(self, now: float) -> str:
        if self._done == self._jobs:
            return f"done in {_minutes(now - self._begun)}"
        if not self._work_since:
            return "..."
        return f"{_minutes((now - self._first) * self._work_left / self._work_since)} to go"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
