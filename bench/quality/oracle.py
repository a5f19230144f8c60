"""An upper bound on the quality of RAS: regional steps with exact instead of cached keys and values.

A regional step of RAS computes only the active tokens, which attend to cached keys and values of the other
tokens. With exact keys and values in every layer, the output at active tokens would be that of a dense call.
So this module makes a dense call and keeps its output at active tokens only; the other tokens keep their
cached output. The call takes the time of a dense step, but its cost is counted as that of a regional step. No
real method can get exact keys and values at this cost. The bound shows by how much the quality of RAS could
rise at most if its cached keys and values were better.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ...ras_core.run.call import Call
from ...ras_core.run.regional import RegionalCalls


@contextmanager
def exact_keys_and_values() -> Iterator[None]:
    """Context manager: in all runs inside its body, regional calls compute with exact keys and values."""

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
