"""An upper bound on the quality of RAS: regional steps with exact instead of cached keys and values.

If the keys and values of all tokens were exact in every layer, the output at active tokens would be that of a
dense call. So this module makes a dense call, takes its output at active tokens, and the cached output at the
other tokens. The call takes the time of a dense step, but its cost is counted as that of a regional step. No
real method can achieve this; the bound shows how much quality better keys and values could add at most.
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
