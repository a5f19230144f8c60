"""Runs regional calls as CUDA graphs: passes a run's calls to `graphs/`, which captures or replays them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import RegionalAbort
from ..graphs.capture import RowsAdvanced
from ..graphs.network_graphs import NetworkGraphs
from ..graphs.network_identity import inspect
from ..graphs.weight_casts import quick_casts
from ..kv.plain import Slots
from .call import Call
from .coverage import Coverage
from .partial_forward import CallContext, NetworkCall
from .tools import Tools


class CapturedCalls:
    """Runs regional calls from CUDA graphs.

    Args:
        n_tokens: image tokens of the latent.
        tools: the run's tools.
        coverage: checks that this pack's hooks ran in all blocks.
        spread_over: as in `CallContext`.
    """

    def __init__(
        self,
        n_tokens: int,
        tools: Tools,
        coverage: Coverage,
        spread_over: tuple[int, ...] | None = None,
    ):
        self._n_tokens = n_tokens
        self._spread_over = spread_over
        self._tools = tools
        self._session = tools.graphs
        self._coverage = coverage

    def run(self, call: Call, active_idx: Tensor, slots: Slots) -> Tensor | None:
        """Run a regional call as a CUDA graph. Returns its output, or None if the call must run eagerly.

        Args:
            call: the call, with the ControlNet residuals of active tokens only.
            active_idx: (bb, n_active).
            slots: the cached K/V rows of the call's branches, by attention.

        Raises:
            RowsAdvanced: the call can neither be replayed nor run eagerly, because a call that was launched
                early has already changed the rows in `slots` (graphs/overlap.py).
        """
        graphs = self.graphs_of(call)
        output = None if graphs is None else self._output_of(graphs, call, active_idx, slots)
        known = self._session and self._session.of(call.forward.model)
        if output is None and known and known.has_advanced(call.branches):
            raise RowsAdvanced("a call was launched early, but then requested with other inputs or options")
        return output

    def graphs_of(self, call: Call) -> NetworkGraphs | None:
        """The CUDA graphs of the call's network; None if this call must run without them."""
        forward = call.forward
        graphs = self._session and self._session.of(forward.model)
        if graphs is None or graphs.obstacle is not None:
            return None
        if not graphs.is_ready:
            device = forward.inputs["x"].device
            weights = self._tools.weights and self._tools.weights.of(call.network, device)
            graphs.prepare(inspect(call.network, device, forward.sampling, forward.model, weights))
        if obstacle := self._tools.adapter.capture_obstacle or forward.graph_obstacle():
            self._session.refuse(obstacle)
        return None if graphs.obstacle is not None else graphs

    def drop(self) -> None:
        """Free all memory of CUDA graphs, because device memory is short."""
        if self._session is not None:
            self._session.drop()

    def _output_of(
        self, graphs: NetworkGraphs, call: Call, active_idx: Tensor, slots: Slots
    ) -> Tensor | None:
        forward = call.forward
        try:
            options = forward.frozen_options(), self._spread_over
        except TypeError as name:
            graphs.refuse(f"another node sets a transformer option that cannot be compared ({name})")
            return None
        function = self._function_of(call)
        return graphs.run(call.branches, forward.captured_inputs, active_idx, slots, function, options)

    def _function_of(self, call: Call) -> Callable[[dict[str, Any], Tensor, Slots], Tensor]:
        """The regional call as a function of all inputs that change from step to step."""

        def function(inputs: dict[str, Any], active_idx: Tensor, slots: Slots) -> Tensor:
            forward = call.forward.on(inputs)
            spread_over, grouped = self._spread_over, self._tools.grouped
            context = CallContext(forward.inputs, inputs["t"], grouped=grouped, spread_over=spread_over)
            hooks = NetworkCall(self._tools.adapter, call.network, self._n_tokens, slots, active_idx, context)
            with quick_casts(call.network, active_idx.device), hooks.attached():
                output = forward(hooks.attend)
            if not hooks.gathered:
                raise RegionalAbort("the main blocks never ran on the active tokens")
            if gap := self._coverage.gap(call, hooks):
                raise RegionalAbort(gap)
            return output

        return function
