"""One line of progress, with the time still to go."""

from __future__ import annotations

import sys
import time
from typing import TextIO


def say(text: str) -> None:
    """For people; tables go to standard output."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Counts work in any unit that is proportional to time.

    Args:
        jobs: how many.
        work: sum of their work.
        stream: where to write; standard error, so that tables can be piped.
    """

    def __init__(self, jobs: int, work: float, stream: TextIO | None = None):
        self._jobs, self._work = jobs, work
        self._done_jobs, self._done_work = 0, 0.0
        self._stream = stream or sys.stderr
        self._started = time.monotonic()

    def step(self, work: float, text: str) -> None:
        """One job is done."""
        self._done_jobs += 1
        self._done_work += work
        elapsed = time.monotonic() - self._started
        left = elapsed * (self._work - self._done_work) / max(self._done_work, 1e-9)
        end = f"{_minutes(left)} to go" if self._done_jobs < self._jobs else f"done in {_minutes(elapsed)}"
        print(f"[{self._done_jobs}/{self._jobs}] {text} | {end}", file=self._stream, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
