"""The wrappers of one run: ComfyUI calls each of them around one of its functions. They are attached when
sampling starts, and dropped with the run's copy of the model options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import comfy.patcher_extension
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..graphs.preset import EvictableWeights
from ..graphs.session import GraphSession
from ..models.base import ModelAdapter
from ..models.cost import profile_of
from ..run.joining import Joining
from ..run.live import View
from ..run.network_calls import NetworkCalls
from ..run.passes import Passes
from ..run.references import remark_on
from ..run.state import RunState
from ..run.timing import timestamp
from ..run.tools import Tools
from ..run.torch_compile import untraced
from ..run.trace import Trace
from . import compiler
from .attention import grouped_attention
from .cache_plan import CachePlan, evaluated_conditionings
from .call import ModelCall
from .conditionings import on_device
from .graphs_of_model import INTERRUPTS, end_graphs, graph_session, resident_weights
from .names import BETWEEN_CALLS, KEY, MULTIGPU_CLONES, RUN, START, TRANSFORMER_OPTIONS, WRAPPERS
from .outer_sample import OuterSample
from .samplers import cache_for, follows_schedule, is_corrected


class RunWrappers:
    """Attaches the wrappers of one run, and ends the run.

    Args:
        guider: ComfyUI's guider of this run.
        network, adapter: the network and the adapter of its family.
        run: the run's state.
        view: an observer of the run, or None.

    Attributes:
        passes: prepares the run for each pass of the sampler.
    """

    def __init__(
        self, guider: Any, network: nn.Module, adapter: ModelAdapter, run: RunState, view: View | None
    ):
        self.run = run
        self._guider, self._network, self._adapter, self._view = guider, network, adapter, view
        self._model = guider.model_patcher
        self._profile = profile_of(network, adapter.cost_profile)
        self._graphs: GraphSession | None = None
        self._calls: NetworkCalls | None = None
        self.passes = Passes(run)
        self._reports_steps = True

    def attach(self, given: OuterSample, asked_steps: int) -> None:
        """Add the wrappers to the run's copy of the model options. `asked_steps` is as in `CachePlan`."""
        run, options = self.run, self._guider.model_options
        self._reports_steps = follows_schedule(given.sampler)
        self._graphs = graph_session(self._model, run, given.noise.shape)
        weights, pause = EvictableWeights(resident_weights), compiler.pause()
        grouped = grouped_attention()
        tools = Tools(self._adapter, self._view, self._graphs, grouped, weights, pause, INTERRUPTS)
        self._calls = NetworkCalls(run, tools)
        _detach(options)  # what a run has left that could not end
        options[TRANSFORMER_OPTIONS][RUN] = run
        _attach(options, WrappersMP.PREDICT_NOISE, self._evaluate)
        _attach(options, WrappersMP.APPLY_MODEL, untraced(self._apply) if run.any_regional else self._apply)
        _attach(options, WrappersMP.SAMPLER_SAMPLE, self._sample)
        wanted = cache_for(given.sampler, run.config)
        corrects = is_corrected(given.sampler, run.config)
        CachePlan(
            self._guider, self._network, self._adapter, run, self._graphs, wanted, corrects, asked_steps
        ).attach()

    def _evaluate(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """The PREDICT_NOISE wrapper: runs one guided evaluation."""
        options = model_options or {}
        self.run.reads_levels = executor.idx > 0  # a wrapper outside this one may answer evaluations itself
        return self._calls.evaluate(
            x,
            timestep,
            lambda: executor(x, timestep, options, seed),
            is_parallel=bool(options.get(MULTIGPU_CLONES)),
            calls_are_plain=_calls_are_plain(options, executor.class_obj),
        )

    def _apply(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The APPLY_MODEL wrapper: runs one call of the network, for one or more conditionings."""
        return self._calls.call(ModelCall.of(executor, *args, **kwargs))

    def _sample(self, executor: Any, guider: Any, *args: Any, **kwargs: Any) -> Any:
        """The SAMPLER_SAMPLE wrapper: samples with the conditionings copied to the device."""
        self.passes.begin((args[0] if args else kwargs["sigmas"]).tolist())
        given = guider.conds
        late = evaluated_conditionings(guider, given)
        self._calls.joining = Joining(cond[START] for cond in late if START in cond)
        if self.run.is_regional:
            guider.conds = on_device(given, self._model.load_device)
        try:
            return executor(guider, *args, **kwargs)
        finally:
            guider.conds = given  # the guider may outlive this run, and would keep the copies

    def finish_step(self, number: int) -> None:
        """The sampler reports that it has finished step `number` of its current pass."""
        if self._reports_steps:
            self.run.steps.finish(number)

    def finish(self) -> Trace:
        """Finish the run after its last step. Returns the run's trace."""
        self._calls.end()
        run = self.run
        if run.any_regional and not (run.recorder.any_regional or run.recorder.any_note):
            run.warn(
                "nothing was accelerated: this guider does not call the model through ComfyUI's standard path"
            )
        if run.frozen_rows and run.recorder.any_regional:
            run.recorder.remark(remark_on(run.plan))
        now = timestamp(self._model.load_device)  # taken first: the report takes time for each layer
        report = None if self._graphs is None else self._graphs.report
        profile = replace(self._profile, frozen_rows=run.frozen_rows)
        return run.recorder.finish(now, len(run.plan), profile, run.text_rows, run.kv_bytes, report)

    def as_latents(self, denoised: Tensor | None) -> list[Tensor]:
        """The denoised estimate as the latent that a sampler node makes of it; no latent if it is None, or
        what a guider of another pack returned instead.
        """
        if not isinstance(denoised, Tensor):
            return []
        return [self._model.model.process_latent_out(denoised.cpu())]

    def end(self, trace: Trace | None) -> None:
        """Free the memory of the run, also after an error. `trace` is None if the run was interrupted or
        failed.
        """
        self.run.release()
        _detach(self._guider.model_options)  # another pack's wrapper may now start a further run with them
        end_graphs(self._model, self._graphs)
        if self._view is not None:
            self._view.end(trace)


def _calls_are_plain(model_options: Mapping[str, Any], guider: object) -> bool:
    """Whether all network calls of an evaluation use the same weights, and no code of another pack runs
    between these calls.

    Args:
        model_options: the run's model options. If they contain a function of another pack, this function may
            run between calls.
        guider: ComfyUI's guider during a run. Hooks on its model may patch the weights for some conditionings
            only.
    """
    wrappers = model_options.get(TRANSFORMER_OPTIONS, {}).get(WRAPPERS, {})
    between = [model_options.get(name) for name in BETWEEN_CALLS] + [wrappers.get("calc_cond_batch")]
    patcher = getattr(getattr(guider, "inner_model", None), "current_patcher", None)
    return not any(between) and getattr(patcher, "hook_patches", None) == {}


def _detach(model_options: dict) -> None:
    """Remove the wrappers of a run from the options; those of the node, OUTER_SAMPLE, stay."""
    options = model_options[TRANSFORMER_OPTIONS]
    options.pop(RUN, None)
    for kind, by_key in options.get(WRAPPERS, {}).items():
        if kind != WrappersMP.OUTER_SAMPLE:
            by_key.pop(KEY, None)


def _attach(model_options: dict, kind: str, wrapper: Callable) -> None:
    comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, model_options, is_model_options=True)
