"""A stand-in for CUDA graphs, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ras_pack.ras_core.graphs import GraphStore
from ras_pack.ras_core.host import GRAPHS


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


def record_on(model: Any, tape: Any) -> GraphStore:
    """Runs of this model record on the tape; gives where its recordings are kept."""
    store = GraphStore(lambda: tape)
    setattr(model.model, GRAPHS, store)
    return store
