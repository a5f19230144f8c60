"""Dense calls: they process all tokens, and keep K/V and output for the regional steps that follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import RegionalAbort
from ..kv.plain import Keep, KVRows
from .call import Call
from .captured import CapturedCalls, Slots
from .coverage import Coverage
from .partial_forward import CallContext, NetworkCall
from .recorder import UNCACHED_ONCE
from .state import NO_MEMORY, RunState
from .tools import Tools
from .torch_compile import is_compiled

COMPILED = "the network's blocks skipped this pack's hooks (compiled code skips hooks attached later)"

NO_BLOCKS = "another node skips or replaces all blocks of the network"


class DenseCalls:
    """A run's calls on all tokens."""

    def __init__(self, run: RunState, tools: Tools, coverage: Coverage, captured: CapturedCalls):
        self._run = run
        self._tools = tools
        self._other_code = tools.other_code
        self._coverage = coverage
        self._captured = captured

    def run(self, call: Call) -> Tensor:
        """Run the call and return its output, (bb, c, H, W). Keeps its K/V and output if a regional step may
        use them.
        """
        run = self._run
        if not run.evaluation.fill_cache:
            return call.forward()
        if run.evaluation.active_idx is not None:
            run.recorder.count_uncached()
            run.warn(UNCACHED_ONCE)
        slots = self._slots_for(call)
        failure = None
        try:
            hooks, output = self._fill(call, slots)
        except RegionalAbort as error:
            failure = str(error)
        except torch.cuda.OutOfMemoryError:
            failure = NO_MEMORY
            self._captured.drop()
        if failure is not None:  # not in the except block, in which the failed call's tensors live
            slots.clear()
            run.go_dense(failure)
            return call.forward()
        if gap := self._gap(call, hooks) or self._other_code.finding():
            run.go_dense(gap)
        else:
            run.end_fill(call.branches, slots, hooks.text_rows)
            run.frozen_rows = max(run.frozen_rows, hooks.frozen_rows)
            self._tools.references.keep(call, hooks.frozen_rows)
            run.keep_output(call.branches, output)
        return output

    def _slots_for(self, call: Call) -> Slots:
        """The K/V slots that a dense call fills: the slots that this run already has for its branches; if it
        has none, slots of an earlier run, so that its CUDA graphs can be replayed on them; else new slots.
        """
        kv = self._run.kv
        slots = kv.begin_fill(call.branches)
        if not slots and (graphs := self._captured.graphs_of(call)):
            return graphs.lend(call.branches, call.forward.captured_inputs, kv.format_name)
        return slots

    def _fill(self, call: Call, slots: Slots) -> tuple[NetworkCall, Tensor]:
        """Run the call with hooks that fill `slots`. This is a function of its own so that, if
        the call fails, its tensors are freed together with this function's stack frame.
        """
        kv, forward = self._run.kv, call.forward
        keep = self._outside_compiler(kv.keep_for(call.branches))
        sigma = forward.inputs["t"] if kv.forecasts else None
        with self._other_code.observed(call.network) as observations:
            override = observations.watch_attention(forward.other_attention, call.network)
            context = CallContext(forward.inputs, sigma, keep, override, times=kv.times)
            hooks = NetworkCall(self._tools.adapter, call.network, self._run.grid.n, slots, None, context)
            with hooks.attached():
                return hooks, forward.observed_by(observations)(hooks.attend)

    def _gap(self, call: Call, hooks: NetworkCall) -> str | None:
        if hooks.blocks_seen:
            return self._coverage.gap(call, hooks)
        blocks = self._tools.adapter.blocks(call.network)
        return COMPILED if any(map(is_compiled, (call.forward.model.diffusion_model, *blocks))) else NO_BLOCKS

    def _outside_compiler(self, keep: Keep | None) -> Keep | None:
        """A function that stores K/V rows as `keep` does (see `kv.plain.Keep`), but pauses ComfyUI's compiler
        meanwhile, so that the compiler does not track the allocations of the rows.
        """
        pause = self._tools.pause
        if keep is None or pause is None:
            return keep

        def paused(*args: Any, **kwargs: Any) -> KVRows:
            with pause():
                return keep(*args, **kwargs)

        return paused
