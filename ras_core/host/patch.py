"""The entry point: nodes attach RAS to a clone of a model here, and read the trace of its last run.

`RASPatch` is ComfyUI's OUTER_SAMPLE wrapper on the clone. When sampling starts, `RASPatch` starts a run and
adds the run's wrappers to the run's copy of the model options, which is dropped with the run. After a run,
only two things are kept: its CUDA graphs (on ComfyUI's model) and its trace (on the `RASPatch`).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP
from torch import Tensor

from ..config import RASConfig
from ..errors import RASError
from ..kv.choose import check_setting
from ..method.preferences import as_priority
from ..models import adapter_for, network_of
from ..models.base import ModelAdapter
from ..run.live import ViewFactory
from ..run.network_calls import SEVERAL_DEVICES
from ..run.trace import Trace
from . import compiler
from .names import KEY, MULTIGPU
from .outer_sample import (
    COMPARES_RESULTS,
    INPAINTING,
    CustomSettings,
    OuterSample,
    RunSettings,
    Settings,
    begin_run,
    compares_results,
    is_inpainting,
)
from .requirements import check_comfyui, class_of
from .samplers import sampler_of_run
from .second_models import NO_EFFECT, Presence
from .traces import NO_RUN, NOT_PATCHED, OTHER_LATENT, Progress, Traces, no_trace
from .wrappers import RunWrappers

logger = logging.getLogger(__name__)


def patch_model(
    model: ModelPatcher,
    settings: Settings | RASConfig,
    priority: Tensor | None = None,
    view_factory: ViewFactory | None = None,
) -> ModelPatcher:
    """A clone of `model` that samples with RAS; settings of an earlier RAS node on it are replaced.

    Args:
        model: any MODEL.
        settings: what the runs compute: the settings of a RAS node, or one RASConfig for every run. A
            RASConfig gives the start and end of the regional steps as step numbers.
        priority: (b or 1, height, width) mask of any size. Tokens inside the mask get a higher score, so
            that they are selected more often; see `as_priority`.
        view_factory: returns an observer for each run, or None.

    Raises:
        RASError: the model's network is not supported, this ComfyUI lacks a required extension point, or
            `kv_cache` is unknown.
    """
    check_comfyui()
    if isinstance(settings, RASConfig):
        settings = CustomSettings(settings)
    if isinstance(settings, CustomSettings):
        check_setting(settings.config.kv_cache)
    adapter = adapter_for(network_of(model.get_model_object("diffusion_model")), class_of(model))
    patched = model.clone()
    if patched.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        logger.info("Multirate RAS: this model had RAS settings already; the later node replaces them.")
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
        patched.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, KEY)
    patch = RASPatch(adapter, settings, as_priority(priority), view_factory)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, patch)
    patched.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, patch.begin_sampling)
    return patched


def last_trace(model: ModelPatcher, default: Trace | None = None) -> Trace:
    """The trace of the last finished run of a patched model; `default` if no run of it has finished.

    Raises:
        RASError: the model is not patched, or no run of it has finished and there is no default.
    """
    trace = _patch_of(model).traces.last or default
    if trace is None:
        raise RASError(
            "no run of this model has finished yet.",
            "a latent that was sampled with the model connected here.",
            "connect the sampler's LATENT to this node, and the same RASPatchModel output to both.",
        )
    return trace


def trace_of(model: ModelPatcher, latent: Any) -> Trace:
    """The trace of the run of a patched model that returned this latent. If none did, or if the model is not
    patched, an empty trace with the reason, so that a workflow still outputs its image.

    Args:
        model: a MODEL.
        latent: a LATENT.

    Raises:
        RASError: the latent has no samples and no run of the patched model has finished.
    """
    if not model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        return no_trace(NOT_PATCHED)
    traces, samples = _patch_of(model).traces, latent.get("samples")
    if samples is None:
        return Trace.empty(OTHER_LATENT) if traces.last else last_trace(model)
    if (found := traces.of(samples)) is not None:
        return found
    if traces.last is not None and traces.last.notes == (NO_EFFECT,):
        return traces.last
    return no_trace(OTHER_LATENT if traces.last else NO_RUN)


def compare_with(model: ModelPatcher, dense: Trace) -> None:
    """From now on, report speed-ups of runs of this patched model over the measured dense run.

    Raises:
        RASError: the model is not patched.
    """
    _patch_of(model).dense = dense


def _patch_of(model: ModelPatcher) -> RASPatch:
    patches = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    if not patches:
        raise RASError(
            "this model was not patched by a RAS node.",
            "the MODEL output of RASPatchModel that is also connected to the sampler.",
            "connect that output here.",
        )
    return patches[-1]


class RASPatch:
    """The wrapper on a patched model: adapter, settings, the traces of its finished runs, and the dense run
    that they are compared with, or None.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        settings: Settings,
        priority: Tensor | None = None,
        view_factory: ViewFactory | None = None,
    ):
        self.adapter = adapter
        self.settings = settings
        self.priority = priority
        self.view_factory = view_factory
        self.traces = Traces()
        self.dense: Trace | None = None
        self.presence = Presence((settings, id(priority)))
        self._told: set[str] = set()

    def __call__(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
        """The OUTER_SAMPLE wrapper: samples one run."""
        with self.presence.sampling():
            return self._sample(executor, OuterSample.of(*args, **kwargs))

    def _sample(self, executor: WrapperExecutor, given: OuterSample) -> Tensor:
        nothing = given.nothing_to_do() or self._other_network(executor.class_obj)
        if nothing is not None:
            result = given.sample(executor)
            self.traces.add(nothing, [result])
            return result
        settings = self.settings.of_run(given, executor.class_obj)
        self._tell(settings)
        settings = replace(settings, full_steps=max(given.steps, settings.full_steps))
        has_plan_levels = settings.sigmas is not given.sigmas
        given = replace(given, sigmas=settings.sigmas)
        wrappers = self._begin(executor.class_obj, given, settings)
        wrappers.passes.has_plan_levels = has_plan_levels
        progress, trace = Progress(wrappers.finish_step, given.callback), None
        ours = replace(
            given, sampler=sampler_of_run(given.sampler, wrappers.run, settings.solver), callback=progress
        )
        try:
            with compiler.compiler_off(wrappers.run.is_regional):
                result = ours.sample(executor)
            told, trace = settings.told(), wrappers.finish()
            is_changed = trace.n_steps != given.steps  # by another node: not a saving of the plan
            asked = trace.n_steps if is_changed else settings.full_steps
            trace = replace(trace, asked_steps=asked, **told)
            trace = trace if self.dense is None else trace.against(self.dense)
            self.traces.add(trace, [result, *wrappers.as_latents(progress.denoised)])
            logger.info(trace.summary())
            return result
        finally:
            wrappers.end(trace)

    def begin_sampling(self, model: ModelPatcher) -> None:
        """ComfyUI's callback ON_PRE_RUN: a guider is about to sample with the model, maybe without RAS."""
        is_patched = self in model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
        if is_patched and self.presence.is_without_ras():
            self.traces.add(Trace.empty(NO_EFFECT), [])

    def _other_network(self, guider: Any) -> Trace | None:
        """The trace of a run whose network another node has replaced since the model was patched, or None."""
        network = network_of(guider.model_patcher.get_model_object("diffusion_model"))
        if self.adapter.matches(network):
            return None
        reason = f"another node has replaced the model's network by a {type(network).__name__}"
        logger.warning("Multirate RAS: running dense: %s.", reason)
        return Trace.empty(reason)

    def _tell(self, settings: RunSettings) -> None:
        """Log the plan of the chosen speed for this run, unless an earlier run has logged the same line. The
        same for a remark about the plan.
        """
        line = f"{settings.plan} ({settings.origin})".replace(") (", "; ")  # "(inpainting)" ends some plans
        if settings.plan and line not in self._told:
            self._told.add(line)
            logger.info("Multirate RAS: %s.", line)
            if settings.remark:
                logger.warning("Multirate RAS: %s.", settings.remark)

    def _begin(self, guider: Any, given: OuterSample, settings: RunSettings) -> RunWrappers:
        """Start a run and attach its wrappers."""
        model = guider.model_patcher
        network = network_of(model.get_model_object("diffusion_model"))
        run = begin_run(given, network, self.adapter, settings.config, self.priority)
        run.plan_line, self.presence.run = settings.plan, run
        if settings.remark:
            run.recorder.remark(settings.remark)
        # On the demo models, inside the mask, a run of fewer steps, all dense, came 15 to 17 dB closer to the
        # run with all steps dense than a run with regional steps of the same cost. It still came 1 to 9 dB
        # closer if the tokens outside the mask were refreshed.
        if run.is_regional and is_inpainting(given, guider):
            run.go_dense(INPAINTING)
        if run.is_regional and compares_results(guider):
            run.go_dense(COMPARES_RESULTS)
        if model.get_additional_models_with_key(MULTIGPU) and not run.is_dense:
            run.go_dense(SEVERAL_DEVICES)
        latent_format = getattr(model.model, "latent_format", None)
        view = self.view_factory(run.grid, latent_format) if self.view_factory else None
        wrappers = RunWrappers(guider, network, self.adapter, run, view)
        wrappers.attach(given, settings.full_steps)
        return wrappers
