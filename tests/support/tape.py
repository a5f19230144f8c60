"""Stand-ins for CUDA graphs, on any device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from ras_pack.ras_core.graphs import GraphStore
from ras_pack.ras_core.host import GRAPHS
from ras_pack.ras_core.recording import Around

Work = Callable[[], None]


class AgainTape:
    """Replays by doing the work again: whatever is not in the recording's places stays as it was.

    As on a GPU, nothing may use a tape while something that was begun on it has not been waited for.

    Attributes:
        begun: replays that were asked for beside other work.
        waiting: those of them that nobody has waited for.
    """

    def __init__(self):
        self.recorded = self.replayed = self.begun = self.waiting = 0

    def record(self, work: Work, around: Around = nullcontext) -> Work:
        assert not self.waiting
        self.recorded += 1
        with around():
            work()

        def replay() -> None:
            assert not self.waiting
            self.replayed += 1
            work()

        return replay

    def begin(self, replay: Work) -> Work:
        """The replay is over before the other work starts."""
        replay()
        self.begun += 1
        self.waiting += 1
        return self._waited_for

    def _waited_for(self) -> None:
        self.waiting -= 1


class LateTape(AgainTape):
    """The replay starts when the other work is over."""

    def begin(self, replay: Work) -> Work:
        waited_for = super().begin(lambda: None)

        def wait() -> None:
            waited_for()
            replay()

        return wait


class BrokenTape(AgainTape):
    """Records nothing."""

    def record(self, work: Work, around: Around = nullcontext) -> Work:
        raise RuntimeError("planted")


class Tapes:
    """Makes tapes of a kind, and counts what they did."""

    def __init__(self, kind: type[AgainTape] = AgainTape):
        self._kind = kind
        self._made: list[AgainTape] = []

    def __call__(self, number: int = 0) -> AgainTape:
        self._made.append(self._kind())
        return self._made[-1]

    def __getattr__(self, count: str) -> int:
        return sum(getattr(tape, count) for tape in self._made)


def record_on(model: Any, tape: Any) -> GraphStore:
    """Runs of this model record on the tape, or on the tapes; gives where its recordings are kept."""
    store = GraphStore(tape if isinstance(tape, Tapes) else lambda number: tape)
    setattr(model.model, GRAPHS, store)
    return store
