"""The CUDA graphs of one run. A run may call several networks (a guider with two models); each has its own
`NetworkGraphs`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .eligibility import GraphReport
from .network_graphs import NO_MEMORY, NetworkGraphs
from .store import GraphEnvironment


class GraphSession:
    """The CUDA graphs of all networks that one run calls."""

    def __init__(self, environment: GraphEnvironment):
        self._environment = environment
        self._parts: dict[Any, NetworkGraphs | None] = {}
        self._refused: str | None = None
        self._logged: set[str] = set()
        self._calls = self._evaluations = 0  # calls in this evaluation; replayed evaluations before it
        self._replayed_before = 0

    def of(self, model: Any) -> NetworkGraphs | None:
        """The graphs of one of ComfyUI's models; None if this model gets no graphs in this run."""
        if model not in self._parts:
            store = self._environment.store_of(model)
            part = None if store is None else NetworkGraphs(store, self._environment, self._logged)
            if part is not None and self._refused is not None:
                part.refuse(self._refused)
            self._parts[model] = part
        return self._parts[model]

    @property
    def parts(self) -> list[NetworkGraphs]:
        """The graphs of each network called so far."""
        return [part for part in self._parts.values() if part is not None]

    @property
    def report(self) -> GraphReport:
        """What was captured and replayed so far, and how many layers are resident now. Does not wait for the
        device, but takes a few microseconds per layer that is not known to be resident.
        """
        reasons = [part.reason for part in self.parts if part.reason is not None]
        captured = sum(part.captured for part in self.parts)
        weights = [part.residency for part in self.parts if part.residency is not None]
        return GraphReport(
            captured,
            self._evaluations + self._is_replayed,
            next(iter(reasons), None),
            sum(each.resident for each in weights) if weights else None,
            sum(map(len, weights)) if weights else None,
        )

    def begin_evaluation(self, calls_are_plain: bool) -> str | None:
        """Prepare for the guided evaluation that starts now.

        Args:
            calls_are_plain: whether ComfyUI makes the evaluation's calls of the network one after the other,
                all with the same weights.

        Returns:
            A message if a call of an earlier evaluation was launched with wrong inputs, or None.
        """
        self._evaluations += self._is_replayed
        self._calls, self._replayed_before = 0, self._replayed
        return _first(part.begin_evaluation(calls_are_plain) for part in self.parts)

    def begin_call(self, model: Any) -> None:
        """Prepare for a call of a network by ComfyUI. If calls were launched early, i.e. before ComfyUI
        requested them (`overlap`), the device completes them first, so that the K/V buffers and outputs of
        these calls may be read and written.
        """
        self._calls += 1
        for part in self.parts:
            part.settle()
        if (part := self._parts.get(model)) is not None:
            part.begin_call()

    def end(self) -> str | None:
        """Finish after the run's last evaluation. Returns a message if any call whose check was still pending
        was launched with wrong inputs, or None.
        """
        return _first(part.end() for part in self.parts)

    def refuse(self, reason: str) -> None:
        """Use no graphs in the rest of this run, for any network."""
        self._refused = self._refused or reason
        for part in self.parts:
            part.refuse(reason)

    def close(self) -> None:
        """Return all K/V buffers to the models' stores at the end of the run."""
        for part in self.parts:
            part.close()

    def keep_only(self, format_name: str) -> None:
        """Free the K/V buffers in formats (kv/formats.py) other than `format_name`, the format of this run,
        because memory is short.
        """
        for part in self.parts:
            part.keep_only(format_name)

    def drop(self) -> None:
        """Free all graphs and K/V buffers of the networks called so far, because memory is short."""
        self._refused = self._refused or NO_MEMORY
        for part in self.parts:
            part.drop()

    @property
    def _replayed(self) -> int:
        return sum(part.replayed for part in self.parts)

    @property
    def _is_replayed(self) -> bool:
        """Whether all calls of this evaluation were replayed."""
        return 0 < self._calls == self._replayed - self._replayed_before


def _first(found: Iterable[str | None]) -> str | None:
    """The first text in `found`, or None. `found` is always read to its end, because each of its texts is
    returned by a method that must be called for every network.
    """
    return next(filter(None, list(found)), None)
