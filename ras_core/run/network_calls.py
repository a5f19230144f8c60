"""The wrappers of one run: around each guided evaluation, and around each call of the network in it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RegionalAbort
from ..graphs.capture import RowsAdvanced
from ..graphs.code_identity import CORE_GRAPH
from ..graphs.eligibility import (
    MULTIGPU,
    RESIDUAL,
    call_obstacle,
    calls_are_plain,
    frozen_options,
    without_residuals,
)
from ..graphs.network_graphs import NetworkGraphs
from ..graphs.network_identity import inspect
from ..graphs.preset import EvictableWeights
from ..graphs.session import GraphSession
from ..kv.storage import Keep
from ..kv.store import Branch, Sequence, Slot
from ..models import network_of
from ..models.base import ModelAdapter
from .grouped_attention import GroupedAttention
from .live import View, live_step
from .noise_levels import NoiseLevels
from .partial_forward import NetworkCall
from .sampler import RUN
from .state import RunState
from .timing import mark
from .torch_compile import wrappers_that_compile

OVERRIDE = "optimized_attention_override"
"""The host's name for an attention function that stands in for its own."""

NO_MEMORY = "there is not enough memory for the K/V cache"

SEVERAL_DEVICES = "ComfyUI runs copies of the model on several devices in parallel (multi-GPU)"

LEFT_ORDER = "the sampler left the order of its schedule; up to two evaluations were assigned to wrong steps"

# Raised by code that was not written for shortened sequences; anything else is not ours to catch.
_SURPRISES = (RegionalAbort, RuntimeError, ValueError, IndexError, TypeError, KeyError)


@dataclass(frozen=True)
class HostCall:
    """One call of the host's model, with its tensors by name, so that others can be put in their place."""

    executor: Any
    inputs: dict[str, Any]

    def __call__(self, control: dict | None, options: dict, inputs: dict[str, Any] | None = None) -> Tensor:
        named = dict(self.inputs if inputs is None else inputs)
        first = [named.pop(name) for name in ("x", "t", "c_concat", "c_crossattn")]
        return self.executor(*first, control, options, **named)

    def is_wrapped(self, options: dict) -> bool:
        """Whether others wrap the model's calls beside us, and do more than compile it."""
        return len(getattr(self.executor, "wrappers", ())) - wrappers_that_compile(options) > 1

    @property
    def sampling(self) -> object:
        """What turns a noise level into the network's time."""
        return getattr(self.executor.class_obj, "model_sampling", None)


def residuals_of(control: dict | None) -> dict[str, Tensor | None]:
    """A ControlNet's residuals as named inputs of a call."""
    return {f"{RESIDUAL}{i}": each for i, each in enumerate((control or {}).get("output", ()))}


def with_residuals(control: dict | None, inputs: dict[str, Any]) -> dict | None:
    """The same control, with its residuals replaced by those among the inputs of a call."""
    return control and {**control, "output": [inputs[name] for name in residuals_of(control)]}


class RunHooks:
    """The wrappers of one run."""

    def __init__(
        self,
        adapter: ModelAdapter,
        run: RunState,
        view: View | None = None,
        graphs: GraphSession | None = None,
        grouped: GroupedAttention | None = None,
        weights: EvictableWeights | None = None,
        pause: Callable[[], AbstractContextManager] | None = None,
    ):
        self._weights = weights
        self._adapter = adapter
        self._run = run
        self._view = view
        self._graphs = graphs
        self._grouped = grouped
        self._levels = NoiseLevels(run.sigmas)
        self._pause = pause  # around allocations that outlive a call
        self._seen: dict[Hashable, tuple[int, int]] = {}  # blocks and attentions of a dense call, by variant
        self._networks: list[nn.Module] = []  # called by this run

    def evaluate(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """PREDICT_NOISE: one guided evaluation."""
        sigma, self._run.known_sigma = self._run.known_sigma, None
        if sigma is None and self._view is None and not self._run.any_regional:
            self._run.record_plain_evaluation(timestep.flatten()[:1].clone(), mark(x.device))
            return executor(x, timestep, model_options or {}, seed)
        if (model_options or {}).get(MULTIGPU) and not self._run.is_dense:
            self._refuse_threads()
        if sigma is None:
            sigma = self._levels.read(timestep.flatten()[:1])
            if self._levels.was_wrong:
                self._run.warn(LEFT_ORDER)
        if self._graphs is not None:
            are_plain = calls_are_plain(model_options or {}, executor.class_obj)
            if trouble := self._graphs.begin_evaluation(are_plain):
                self._run.go_dense(trouble)
        self._run.begin_evaluation(sigma, mark(x.device))
        if self._view is not None:
            self._view.step(live_step(self._run))
        try:
            denoised = executor(x, timestep, model_options or {}, seed)
        except BaseException:
            self._run.abandon_evaluation()
            raise
        self._run.end_evaluation(x, denoised, sigma)
        return denoised

    def call(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: dict | None = None,
        transformer_options: dict | None = None,
        **kwargs,
    ) -> Tensor:
        """APPLY_MODEL: one call of the network for one or more branches."""
        if self._graphs is not None:
            self._graphs.begin_call(executor.class_obj)
        options = transformer_options or {}
        inputs = {"x": x, "t": t, "c_concat": c_concat, "c_crossattn": c_crossattn, **kwargs}
        forward = HostCall(executor, inputs)
        evaluation = self._run.evaluation
        if evaluation is None or not self._is_ours(x, options):
            return forward(control, options)
        network = network_of(executor.class_obj.diffusion_model)
        if not self._adapter.matches(network):
            self._run.go_dense(
                f"the guider also calls a network of another family ({type(network).__name__})"
            )
            return forward(control, options)
        variant = (self._number_of(network), _replaced_blocks(options))
        branches = evaluation.branches(options["uuids"], variant)
        if evaluation.active_idx is not None:
            output = self._try_regional(network, branches, forward, control, options)
            if output is not None:
                return output
        return self._dense(network, branches, forward, control, options)

    def end(self) -> None:
        """The last evaluation is over."""
        if self._graphs is not None and (trouble := self._graphs.end()):
            self._run.warn(trouble)

    def _is_ours(self, x: Tensor, options: dict) -> bool:
        """Whether this call can be shortened at all; the run goes dense, and says why, where it cannot."""
        run = self._run
        if not run.any_regional or run.is_dense:
            return False
        if self._adapter.runs_wrappers and options.get("wrappers", {}).get("diffusion_model"):
            run.go_dense("another node (EasyCache, say) wraps the network and would keep shortened outputs")
            return False
        uuids = options.get("uuids")
        if uuids and x.shape[0] == run.batch * len(uuids) and tuple(x.shape[2:]) == run.grid.size:
            return True
        run.go_dense(
            f"a call covers {tuple(x.shape)}, not the whole latent {run.grid.size} for each conditioning "
            "(area conditioning, tiling and context windows do this)"
        )
        return False

    def _dense(
        self,
        network: nn.Module,
        branches: tuple[Branch, ...],
        forward: HostCall,
        control: dict | None,
        options: dict,
    ) -> Tensor:
        """All tokens; keeps K/V and output when a regional step may follow."""
        run = self._run
        if not run.evaluation.fill_cache:
            return forward(control, options)
        if run.evaluation.active_idx is not None:
            run.warn("a conditioning with nothing cached yet ran dense once")
        slots = run.kv.begin_fill(branches)
        if not slots and (graphs := self._graphs_for(network, forward, options)):
            slots = graphs.lend(branches, forward.inputs, run.kv.storage)
        inner, keep = options.get(OVERRIDE), self._outside(run.kv.keep_for(branches))
        sigma = forward.inputs["t"] if run.kv.forecasts else None
        call = NetworkCall(self._adapter, network, run.grid.n, slots, None, inner, keep, sigma=sigma)
        trouble = None
        try:
            with call.placed():
                output = forward(control, {**options, OVERRIDE: call.attend})
        except RegionalAbort as surprise:
            trouble = str(surprise)
        except torch.cuda.OutOfMemoryError:
            trouble = NO_MEMORY
            self._drop_graphs()
        if trouble is not None:  # outside the handler, which keeps the failed call's tensors alive
            slots.clear()
            del call, keep  # which hold the memory for what they would have kept
            run.go_dense(trouble)
            return forward(control, options)
        if call.blocks_seen == 0:
            run.go_dense("the network's blocks cannot be followed (compiled code runs no hooks placed later)")
            return output
        if missed := self._missed(network, branches, call):
            run.go_dense(missed)
            return output
        run.kv.end_fill(branches, slots)
        run.text_rows = max(run.text_rows, call.text_rows)
        run.kv_bytes = max(run.kv_bytes, run.kv.nbytes())
        self._keep_output(branches, output)
        return output

    def _try_regional(
        self,
        network: nn.Module,
        branches: tuple[Branch, ...],
        forward: HostCall,
        control: dict | None,
        options: dict,
    ) -> Tensor | None:
        """Active tokens only, the rest from the cache; None when this call has to be dense."""
        run = self._run
        if not run.is_ready(branches):
            return None
        active_idx = run.evaluation.active_idx.repeat(len(branches), 1)
        slots = run.kv.slots_for(branches)
        try:
            shortened = self._adapter.gather_control(control, options, active_idx, run.grid.n)
        except _SURPRISES as surprise:
            run.go_dense(f"a regional step failed ({type(surprise).__name__}: {surprise})")
            return None
        try:
            output = self._by_recording(network, branches, forward, shortened, options, active_idx, slots)
        except RowsAdvanced:
            run.kv.drop(branches)
            return None
        if output is not None:
            run.evaluation.ran_regional = True
            return self._merge(branches, active_idx, output)
        inner, keep = options.get(OVERRIDE), run.kv.keep
        call = NetworkCall(
            self._adapter, network, run.grid.n, slots, active_idx, inner, keep, self._grouped,
            forward.inputs["t"],
        )  # fmt: skip
        try:
            with call.placed(), self._weights_preset(network, active_idx.device):
                output = forward(shortened, {**options, OVERRIDE: call.attend})
        except torch.cuda.OutOfMemoryError:
            self._drop_graphs()
            run.go_dense(NO_MEMORY)
            return None
        except _SURPRISES as surprise:
            run.go_dense(f"a regional step failed ({type(surprise).__name__}: {surprise})")
            return None
        if not call.gathered:
            run.go_dense("the main blocks never ran on the active tokens")
            return output
        if missed := self._missed(network, branches, call):
            run.go_dense(missed)
            return None
        run.evaluation.ran_regional = True
        return self._merge(branches, active_idx, output)

    def _by_recording(
        self,
        network: nn.Module,
        branches: tuple[Branch, ...],
        forward: HostCall,
        control: dict | None,
        options: dict,
        active_idx: Tensor,
        slots: dict[Slot, Sequence],
    ) -> Tensor | None:
        """A regional call's output from a CUDA graph, or None if it must run eagerly. `control` has the
        residuals of the active tokens.

        Raises:
            RowsAdvanced: the call can neither be replayed nor run eagerly on these K/V rows.
        """
        output = None
        if graphs := self._graphs_for(network, forward, options):
            recorded = self._recorded(network, branches, forward, control, options)
            inputs = forward.inputs | residuals_of(control)
            try:
                read = frozen_options(options, own=(OVERRIDE, RUN))
            except TypeError as name:
                graphs.refuse(f"another node sets an option of an unknown kind ({name})")
            else:
                output = graphs.run(branches, inputs, active_idx, slots, recorded, read)
        known = self._graphs and self._graphs.of(forward.executor.class_obj)
        if output is None and known and known.has_advanced(branches):
            raise RowsAdvanced("a call was launched early, but requested in another form")
        return output

    def _graphs_for(self, network: nn.Module, forward: HostCall, options: dict) -> NetworkGraphs | None:
        """The network's graphs, if this call may use them."""
        model = forward.executor.class_obj
        graphs = self._graphs and self._graphs.of(model)
        if graphs is None or graphs.obstacle is not None:
            return None
        if not graphs.is_ready:
            device = forward.inputs["x"].device
            weights = self._weights and self._weights.of(network, device)
            graphs.prepare(inspect(network, device, forward.sampling, model, weights))
        if obstacle := call_obstacle(options, forward.is_wrapped(options), options.get(OVERRIDE)):
            self._graphs.refuse(obstacle)
        return None if graphs.obstacle is not None else graphs

    def _weights_preset(self, network: nn.Module, device: torch.device) -> AbstractContextManager[None]:
        """Preset evictable weights for an eager regional call. Not for a dense one: it needs more working
        memory, for which weights may have to be evicted.
        """
        return nullcontext() if self._weights is None else self._weights.preset(network, device)

    def _number_of(self, network: nn.Module) -> int:
        """Number the networks, to keep the branches of two networks apart (a guider with two models)."""
        for number, each in enumerate(self._networks):
            if each is network:
                return number
        self._networks.append(network)
        return len(self._networks) - 1

    def _refuse_threads(self) -> None:
        """Run dense: ComfyUI is about to call copies of the model on other devices, one thread each."""
        if self._graphs is not None:
            self._graphs.refuse("the run is dense")
        self._run.go_dense(SEVERAL_DEVICES)

    def _recorded(
        self,
        network: nn.Module,
        branches: tuple[Branch, ...],
        forward: HostCall,
        control: dict | None,
        options: dict,
    ) -> Callable[..., Tensor]:
        """A regional call as a function of all that changes from step to step."""

        def call(inputs: dict[str, Any], active_idx: Tensor, slots: dict[Slot, Sequence]) -> Tensor:
            inside = NetworkCall(
                self._adapter, network, self._run.grid.n, slots, active_idx, grouped=self._grouped,
                sigma=inputs["t"],
            )  # fmt: skip
            with inside.placed():
                placed = with_residuals(control, inputs)
                output = forward(placed, {**options, OVERRIDE: inside.attend}, without_residuals(inputs))
            if not inside.gathered:
                raise RegionalAbort("the main blocks never ran on the active tokens")
            if missed := self._missed(network, branches, inside):
                raise RegionalAbort(missed)
            return output

        return call

    def _missed(self, network: nn.Module, branches: tuple[Branch, ...], call: NetworkCall) -> str | None:
        """Which part of the network ran without our hooks in a call, because a graph or compiled code ran
        in its place; None if nothing did. The first dense call of each variant shows what to expect.
        """
        seen, blocks = (call.blocks_seen, call.attentions_seen), self._adapter.blocks(network)
        has_graphs = any(vars(block).get(CORE_GRAPH) for block in blocks)
        if has_graphs and seen[0] < len(blocks):
            expected = (len(blocks), seen[1])
        else:
            expected = self._seen.setdefault(branches[0][1], seen)  # the variant
        if seen == expected:
            return None
        by_others = "another node skips or replaces the rest"
        cause = "ComfyUI's own graphs run no hooks" if has_graphs else by_others
        return (
            f"{seen[0]} of {expected[0]} blocks and {seen[1]} of {expected[1]} attentions could be followed "
            f"({cause})"
        )

    def _outside(self, keep: Keep | None) -> Keep | None:
        """`keep`, with its allocations outside ComfyUI's compiler."""
        if keep is None or self._pause is None:
            return keep

        def paused(*args: Any, **kwargs: Any) -> Sequence:
            with self._pause():
                return keep(*args, **kwargs)

        return paused

    def _drop_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.drop()

    def _merge(self, branches: tuple[Branch, ...], active_idx: Tensor, fresh: Tensor) -> Tensor:
        """Fresh output at active tokens, cached output elsewhere: (bb, c, H, W)."""
        cached = torch.cat([self._run.cached_output[branch] for branch in branches])
        merged = torch.where(self._run.grid.active_pixels(active_idx), fresh, cached)
        self._keep_output(branches, merged)
        return merged

    def _keep_output(self, branches: tuple[Branch, ...], output: Tensor) -> None:
        for branch, part in zip(branches, output.clone().chunk(len(branches)), strict=True):
            self._run.cached_output[branch] = part


def _replaced_blocks(options: dict) -> tuple[str, ...]:
    """Blocks that other patches replace in this call."""
    return tuple(sorted(map(str, options.get("patches_replace", {}).get("dit", {}))))
