"""A stand-in for CUDA graphs, on any device."""

from __future__ import annotations

from collections.abc import Callable


class AgainTape:
    """Replays by doing the work again: whatever is not in the recording's places stays as it was."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        work()

        def replay() -> None:
            self.replayed += 1
            work()

        return replay
