"""The bound of the method: regional steps whose keys and values are those of a dense call.

With exact rows in every layer, active tokens come out as in a dense call. So that call is made; its output is
taken at active tokens, the cached one elsewhere. It costs a dense step and counts as a regional one: not
achievable, and only here to show what better keys and values could give.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ...ras_core.run.call import Call
from ...ras_core.run.regional import RegionalCalls


@contextmanager
def exact_keys_and_values() -> Iterator[None]:
    """Regional calls of runs inside the body have exact keys and values."""

    def run(self: RegionalCalls, call: Call) -> Tensor | None:
        state = self._run
        if not state.is_ready(call.branches):
            return None
        active_idx = state.evaluation.active_idx.repeat(len(call.branches), 1)
        return state.merge(call.branches, active_idx, call.forward())

    original = RegionalCalls.run
    RegionalCalls.run = run
    try:
        yield
    finally:
        RegionalCalls.run = original
