"""Progress lines with the estimated time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO


def say(text: str) -> None:
    """Print a message for the user to standard error, because standard output is for tables."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Prints a line after each job, with the estimated time left.

    The estimate assumes that a job's duration is proportional to its work. It leaves out the first job, whose
    duration also includes loading models and sampling the images that results are compared with.

    Args:
        jobs: number of jobs.
        work: total work of all jobs, in any unit that is proportional to their duration.
        stream: where to write; standard error by default, so that tables can be piped.
        clock: returns the time in seconds.
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
        self._first: float | None = None  # time at which the first job finished
        self._work_since = 0.0

    def step(self, work: float, text: str) -> None:
        """Report that a job with this much work is done."""
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
        return f"{_minutes((now - self._first) * self._work_left / self._work_since)} left"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
