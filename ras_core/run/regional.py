"""Regional calls: they process active tokens only; K, V and outputs of other tokens come from the cache."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import RegionalAbort, shortened
from ..graphs.capture import RowsAdvanced
from ..models.control import ignored_lists
from .call import Call
from .captured import CapturedCalls, Slots
from .coverage import Coverage
from .partial_forward import CallContext, NetworkCall
from .references import CHANGED
from .state import NO_MEMORY, RunState
from .tools import Tools

logger = logging.getLogger(__name__)

IGNORED = "this model ignores residuals of a ControlNet ({}), which therefore have no effect"

LONGEST_CAUSE = 160
"""Number of characters of a message that a reason quotes."""

FAILED = "code in the network failed on the rows of active tokens (the error is logged at level DEBUG)"


class RegionalCalls:
    """A run's calls on active tokens."""

    def __init__(self, run: RunState, tools: Tools, coverage: Coverage, captured: CapturedCalls):
        self._run = run
        self._tools = tools
        self._coverage = coverage
        self._captured = captured

    def run(self, call: Call) -> Tensor | None:
        """Run the call and return its output, (bb, c, H, W), which is fresh at active tokens and cached
        elsewhere. Return None if the call must run dense.
        """
        run = self._run
        if not run.is_ready(call.branches):
            return None
        n_frozen = self._tools.adapter.frozen_rows(call.network, call.forward.inputs)
        if self._tools.references.have_changed(call, n_frozen):
            run.kv.drop(call.branches)
            run.warn(CHANGED)
            return None
        active_idx = run.evaluation.active_idx.repeat(len(call.branches), 1)
        slots = run.kv.slots_for(call.branches)
        try:
            shortened = self._shortened(call, active_idx)
        except RegionalAbort as error:
            run.go_dense(_failure(error))
            return None
        try:
            output = self._captured.run(shortened, active_idx, slots)
        except RowsAdvanced:
            run.kv.drop(call.branches)
            return None
        if output is None:
            return self._eager(shortened, active_idx, slots)
        return run.merge(call.branches, active_idx, output)

    def _shortened(self, call: Call, active_idx: Tensor) -> Call:
        """The call with the ControlNet residuals of active tokens only."""
        forward, adapter = call.forward, self._tools.adapter
        ignored = ignored_lists(call.network, forward.control)
        if ignored:
            self._run.recorder.remark(IGNORED.format(", ".join(ignored)))
        # If the network reads such a list after all, it fails on the number of rows, and the run is dense.
        kept = {name: forward.control[name] for name in ignored if name not in adapter.control_lists}
        control = forward.control and {n: each for n, each in forward.control.items() if n not in kept}
        if control or not kept:
            control = adapter.gather_control(control, forward.options, active_idx, self._run.grid.n)
        return replace(call, forward=forward.with_control({**control, **kept} if kept else control))

    def _eager(self, call: Call, active_idx: Tensor, slots: Slots) -> Tensor | None:
        """Run a regional call eagerly, without a CUDA graph; returns what `run` returns."""
        run = self._run
        try:
            hooks, output = self._forward(call, active_idx, slots)
        except torch.cuda.OutOfMemoryError:
            self._captured.drop()
            run.go_dense(NO_MEMORY)
            return None
        except (MemoryError, *self._tools.interrupts):  # not due to fewer rows
            raise
        except Exception as error:  # any code in the network may fail on fewer rows, with any error
            run.go_dense(_failure(error))
            return None
        if not hooks.gathered:
            run.go_dense("the main blocks never ran on the active tokens")
            return output
        if gap := self._coverage.gap(call, hooks) or self._tools.other_code.finding():
            run.go_dense(gap)
            return None
        return run.merge(call.branches, active_idx, output)

    def _forward(self, call: Call, active_idx: Tensor, slots: Slots) -> tuple[NetworkCall, Tensor]:
        """Run the network on the active tokens. Returns what happened in the call, and the output, (bb, c, H,
        W), with zeros at cached tokens.
        """
        run, forward, tools = self._run, call.forward, self._tools
        with tools.other_code.observed(call.network, is_regional=True) as observations:
            override = observations.watch_attention(forward.other_attention, (call.network, "regional"))
            context = CallContext(
                forward.inputs, forward.inputs["t"], run.kv.keep, override, tools.grouped,
                spread_over=run.spread_over,
            )  # fmt: skip
            hooks = NetworkCall(tools.adapter, call.network, run.grid.n, slots, active_idx, context)
            with hooks.attached(), self._weights_preset(call.network, active_idx.device):
                return hooks, forward.observed_by(observations)(hooks.attend)

    def _weights_preset(self, network: nn.Module, device: torch.device) -> AbstractContextManager[None]:
        """If all weights of the network are in device memory, they cannot be evicted in the body of the
        `with`, and layers use them without asking the driver whether they are there (graphs/preset.py). Dense
        calls do not use this function: they need more working memory, and to provide it, ComfyUI may have to
        evict weights.
        """
        weights = self._tools.weights
        return nullcontext() if weights is None else weights.preset(network, device)


def _failure(error: Exception) -> str:
    """The reason for the log. Only messages of this pack are written for users."""
    if isinstance(error, RegionalAbort):
        return shortened(str(error), LONGEST_CAUSE)
    logger.debug("Multirate RAS: the first failure of a regional step:", exc_info=error)
    return FAILED
