"""The entry point: nodes attach RAS to a clone of a model here, and read the trace of its last run.

`RASPatch` is ComfyUI's OUTER_SAMPLE wrapper on the clone. When sampling starts, `RASPatch` starts a run and
adds the run's wrappers to the run's copy of the model options, which is dropped with the run. After a run,
only its CUDA graphs are kept, on ComfyUI's model, and its trace.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..config import RASConfig
from ..errors import RASError
from ..kv.choose import check_setting
from ..models import adapter_for, network_of
from ..models.base import ModelAdapter
from ..run.live import ViewFactory
from ..run.network_calls import SEVERAL_DEVICES
from ..run.trace import Trace
from . import compiler
from .names import KEY, MULTIGPU
from .outer_sample import CustomSettings, OuterSample, RunSettings, Settings, begin_run
from .requirements import check_comfyui
from .samplers import corrected
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
        settings: what the runs compute. A RASConfig has start and end of the regional steps as step numbers.
        priority: (b or 1, height, width) mask of any size. Tokens in it get a higher score, so that they are
            selected more often.
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
    adapter = adapter_for(network_of(model.get_model_object("diffusion_model")))
    patched = model.clone()
    if patched.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        logger.info("Multirate RAS: this model had RAS settings already; the later node replaces them.")
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patch = RASPatch(adapter, settings, priority, view_factory)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, patch)
    return patched


def last_trace(model: ModelPatcher, default: Trace | None = None) -> Trace:
    """The trace of the last finished run of a patched model; `default` if no run of it has finished.

    Raises:
        RASError: the model is not patched, or no run of it has finished and there is no default.
    """
    patches = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    if not patches:
        raise RASError(
            "this model was not patched by a RAS node.",
            "the MODEL output of RASPatchModel that is also connected to the sampler.",
            "connect that output here.",
        )
    trace = patches[-1].last_trace or default
    if trace is None:
        raise RASError(
            "no run of this model has finished yet.",
            "a latent that was sampled with the model connected here.",
            "connect the sampler's LATENT to this node, and the same RASPatchModel output to both.",
        )
    return trace


class RASPatch:
    """The wrapper on a patched model: adapter, settings, and the trace of its last finished run."""

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
        self.last_trace: Trace | None = None
        self._told: set[str] = set()

    def __call__(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
        """The OUTER_SAMPLE wrapper: samples one run."""
        given = OuterSample.of(*args, **kwargs)
        nothing = given.nothing_to_do() or self._other_network(executor.class_obj)
        if nothing is not None:
            self.last_trace = nothing
            return given.sample(executor)
        settings = self.settings.of_run(given, executor.class_obj)
        self._tell(settings)
        given = replace(given, sigmas=settings.sigmas)
        wrappers = self._begin(executor.class_obj, given, settings)
        ours, trace = replace(given, sampler=corrected(given.sampler, wrappers.run)), None
        try:
            with compiler.compiler_off(wrappers.run.is_regional):
                result = ours.sample(executor)
            self.last_trace = trace = replace(wrappers.finish(), plan=settings.plan)
            logger.info(trace.summary())
            return result
        finally:
            wrappers.end(trace)

    def _other_network(self, guider: Any) -> Trace | None:
        """The trace of a run whose network another node has replaced since the model was patched, or None."""
        network = network_of(guider.model_patcher.get_model_object("diffusion_model"))
        if self.adapter.matches(network):
            return None
        reason = f"another node has replaced the model's network by a {type(network).__name__}"
        logger.warning("Multirate RAS: running dense: %s.", reason)
        return Trace.empty(reason)

    def _tell(self, settings: RunSettings) -> None:
        """Log the plan of the chosen speed for this run, unless an earlier run has logged the same line."""
        line = f"{settings.plan} ({settings.origin})"
        if settings.plan and line not in self._told:
            self._told.add(line)
            logger.info("Multirate RAS: %s.", line)

    def _begin(self, guider: Any, given: OuterSample, settings: RunSettings) -> RunWrappers:
        """Start a run and attach its wrappers."""
        model = guider.model_patcher
        network = network_of(model.get_model_object("diffusion_model"))
        run = begin_run(given, network, self.adapter, settings.config, self.priority)
        run.plan_line = settings.plan
        if model.get_additional_models_with_key(MULTIGPU) and not run.is_dense:
            run.go_dense(SEVERAL_DEVICES)
        view = self.view_factory(run.grid) if self.view_factory else None
        wrappers = RunWrappers(guider, network, self.adapter, run, view)
        wrappers.attach(given)
        return wrappers
