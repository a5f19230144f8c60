"""How the method enters ComfyUI; the only file of ras_core that imports it.

A node attaches one keyed wrapper to a clone of the model. When a run starts, that wrapper makes a RunState
and adds its own wrappers to the run's copy of the model options; both end with the run. Nothing is stored on
the model itself.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.cli_args
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

from ..config import KVCache, RASConfig
from ..errors import RASError
from ..graphs.eligibility import may_outlive_run, storage_obstacle
from ..graphs.preset import PREFETCH, EvictableWeights
from ..graphs.session import GraphSession
from ..graphs.store import GraphEnvironment, GraphStore
from ..kv.choose import Choice, Needs, Room, choose
from ..kv.storage import has_float8
from ..method.grid import TokenGrid
from ..method.preferences import Preferences
from ..method.schedule import StepKind, decreases
from ..method.selector import selector_for
from ..models import adapter_for, network_of
from ..models.base import ModelAdapter
from ..models.cost import CostProfile, expected_speedup
from ..run.grouped_attention import GroupedAttention
from ..run.live import ViewFactory
from ..run.network_calls import OVERRIDE, SEVERAL_DEVICES, RunHooks
from ..run.sampler import RUN, sample_multirate
from ..run.state import RunState
from ..run.timing import mark
from ..run.trace import Recorder, Trace
from . import compiler as host_compiler
from .conditionings import brought

logger = logging.getLogger(__name__)

KEY = "multirate_ras"
GRAPHS = "_multirate_ras_graphs"
"""Attribute of the host's model that keeps recorded calls: they read its weights and must not outlive it."""

KEEP_MAIN_MEMORY = 0.25
"""Share of the free main memory that a K/V cache there leaves to others."""

MULTIGPU = "multigpu"
"""ComfyUI's key for copies of a model on other devices."""

CORRECTED_ORDERS = {"sample_euler": 1, "sample_dpmpp_2m": 2}
STEADY_SAMPLERS = (*CORRECTED_ORDERS, sample_multirate.__name__)
"""Samplers that add no noise and evaluate once a step: a token's last change tells of its next one."""


def patch_model(
    model: ModelPatcher,
    config: RASConfig,
    priority: Tensor | None = None,
    view_factory: ViewFactory | None = None,
) -> ModelPatcher:
    """A clone of `model` that samples with RAS; settings of an earlier RAS node on it are replaced.

    Args:
        model: any MODEL.
        config: settings.
        priority: (b or 1, height, width) mask of regions to favour, at any size.
        view_factory: gives each run somebody who watches it, or None.

    Raises:
        RASError: the model's network is not supported, or this ComfyUI lacks what the method enters by.
    """
    check_host()
    adapter = adapter_for(network_of(model.get_model_object("diffusion_model")))
    patched = model.clone()
    if patched.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        logger.info("Multirate RAS: this model had RAS settings already; the later node replaces them.")
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    patch = RASPatch(adapter, config, priority, view_factory)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, patch)
    return patched


def last_trace(model: ModelPatcher, default: Trace | None = None) -> Trace:
    """The trace of the last finished run of a patched model; `default` where no run has finished.

    Raises:
        RASError: the model is not patched, or no run of it has finished and there is no default.
    """
    patches = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    if not patches:
        raise RASError(
            "this model was not patched by a RAS node.",
            "the MODEL output of RASPatchModel, the one that also goes into the sampler.",
            "connect that output here.",
        )
    trace = patches[-1].last_trace or default
    if trace is None:
        raise RASError(
            "no run of this model has finished yet.",
            "a latent that a sampler made with this very model.",
            "connect the sampler's LATENT to this node, and the same RASPatchModel output to both.",
        )
    return trace


def check_host() -> None:
    """Refuse a ComfyUI without the doors that the method needs.

    Raises:
        RASError: with what is missing.
    """
    missing = [
        name for name in ("OUTER_SAMPLE", "PREDICT_NOISE", "APPLY_MODEL") if not hasattr(WrappersMP, name)
    ]
    if not hasattr(comfy.ldm.modules.attention, "wrap_attn"):
        missing.append(OVERRIDE)
    if missing:
        raise RASError(
            f"this ComfyUI has no {', '.join(missing)}.",
            "ComfyUI 0.3.64 or newer.",
            "update ComfyUI, or remove the RAS nodes.",
        )


def multirate_sampler(order: int, inpaint_options: dict | None = None) -> comfy.samplers.KSAMPLER:
    """The multirate integrator as ComfyUI's samplers come."""
    return comfy.samplers.KSAMPLER(sample_multirate, {"order": order}, inpaint_options or {})


class RASPatch:
    """What the patched model carries: adapter, settings, and the trace of its last finished run."""

    def __init__(
        self,
        adapter: ModelAdapter,
        config: RASConfig,
        priority: Tensor | None = None,
        view_factory: ViewFactory | None = None,
    ):
        self.adapter = adapter
        self.config = config
        self.priority = priority
        self.view_factory = view_factory
        self.last_trace: Trace | None = None

    def __call__(
        self,
        executor: comfy.patcher_extension.WrapperExecutor,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
        **kwargs,
    ) -> Tensor:
        """OUTER_SAMPLE: one run."""
        guider = executor.class_obj
        network = network_of(guider.model_patcher.get_model_object("diffusion_model"))
        run = self._begin(network, noise, sigmas, denoise_mask, seed)
        if run is None:
            return executor(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs
            )
        if guider.model_patcher.get_additional_models_with_key(MULTIGPU) and not run.is_dense:
            run.go_dense(SEVERAL_DEVICES)
        view = self.view_factory(run.grid) if self.view_factory else None
        profile = self.adapter.cost_profile(network)
        graphs = _graph_session(guider.model_patcher, self.config, run, noise.shape)
        weights, pause = EvictableWeights(resident_weights), host_compiler.pause()
        hooks = RunHooks(self.adapter, run, view, graphs, grouped_attention(), weights, pause)
        _enter(guider.model_options, run, hooks)
        _bring_conditionings(guider.model_options, run, guider.model_patcher.load_device)
        wanted = _wanted_cache(self.config, sampler)
        _plan_cache(guider, network, self.adapter, run, profile, graphs, wanted)
        sampler, trace = self._corrected(sampler, run), None
        try:
            with host_compiler.compiler_off(run.any_regional and not run.is_dense):
                result = executor(
                    noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs
                )
            hooks.end()
            self.last_trace = trace = self._finish(profile, run, guider.model_patcher.load_device, graphs)
            logger.info(trace.summary())
            return result
        finally:
            run.release()
            _end_graphs(guider.model_patcher, graphs)
            if view is not None:
                view.end(trace)

    def _corrected(self, sampler: Any, run: RunState) -> Any:
        """The multirate integrator in place of a sampler that has one of its order; others as they are."""
        if not self.config.corrections or run.is_dense or not run.any_regional:
            return sampler
        order = CORRECTED_ORDERS.get(_name_of(sampler))
        if order is None:
            logger.info(
                "Multirate RAS: this sampler has no corrected form; only the selection of regions applies."
            )
            return sampler
        return multirate_sampler(order, sampler.inpaint_options)

    def _begin(
        self, network: nn.Module, noise: Tensor, sigmas: Tensor, denoise_mask: Tensor | None, seed: int | None
    ) -> RunState | None:
        if len(sigmas) < 2:
            self.last_trace = Trace.empty("the sampler had no step to do")
            return None
        if noise.ndim != 4:
            logger.warning("Multirate RAS: running dense: no picture latent (shape %s).", tuple(noise.shape))
            self.last_trace = Trace.empty("not a picture latent")
            return None
        grid = TokenGrid(noise.shape[2], noise.shape[3], self.adapter.patch_size(network))
        recorder = Recorder(grid, noise.shape[0])
        generator = torch.Generator().manual_seed((seed or 0) % 2**63)
        preferences = Preferences.of(
            grid, *(_at_latent_size(mask, noise) for mask in (self.priority, denoise_mask))
        )
        selector = selector_for(self.config, grid, generator, preferences)
        run = RunState(self.config, sigmas.tolist(), grid, noise.shape[0], selector, recorder)
        _explain_dense_plan(run)
        return run

    def _finish(
        self, profile: CostProfile, run: RunState, device: torch.device, graphs: GraphSession | None
    ) -> Trace:
        if run.any_regional and not (run.recorder.any_regional or run.recorder.any_note):
            run.warn(
                "nothing was accelerated: the model was not evaluated in the way that ComfyUI's guiders do"
            )
        report = None if graphs is None else graphs.report
        return run.recorder.finish(mark(device), len(run.plan), profile, run.text_rows, run.kv_bytes, report)


def _at_latent_size(mask: Tensor | None, noise: Tensor) -> Tensor | None:
    """A mask of any size as ComfyUI fits it to a latent: (b, H, W) on the sampling device."""
    if mask is None:
        return None
    fitted = comfy.sampler_helpers.prepare_mask(mask, noise.shape, comfy.model_management.get_torch_device())
    return fitted.amax(dim=1)


def grouped_attention() -> GroupedAttention | None:
    """The host's PyTorch attention without repeated heads; None where it cannot be called so."""
    plain = inspect.unwrap(comfy.ldm.modules.attention.attention_pytorch)  # what wrap_attn hands on
    return GroupedAttention.of(plain, comfy.ops.scaled_dot_product_attention)


def graph_store(model: ModelPatcher) -> GraphStore | None:
    """What runs of this model have recorded, or None."""
    return getattr(model.model, GRAPHS, None)


def _graph_session(
    model: ModelPatcher, config: RASConfig, run: RunState, noise_shape: torch.Size
) -> GraphSession | None:
    """CUDA graphs for a run; None if the user, the plan or the device rules them out."""
    if config.cuda_graphs == "off" or run.is_dense or not run.any_regional:
        return None
    management = comfy.model_management
    session = GraphSession(
        GraphEnvironment(
            partial(_store_of, model),
            interrupts=(management.InterruptProcessingException,),
            obstacle=partial(_recording_obstacle, model, noise_shape),
        )
    )
    return None if session.of(model.model) is None else session


def _recording_obstacle(model: ModelPatcher, noise_shape: torch.Size) -> str | None:
    """Why nothing can be captured right now, or None."""
    if is_dynamic(model):
        # If memory is short, ComfyUI evicts weights and waits for the device, which invalidates a capture.
        unused, in_pool = comfy.model_management.get_free_memory(model.load_device, torch_free_too=True)
        needed = model.model.memory_required([2 * noise_shape[0], *noise_shape[1:]])
        if unused - in_pool - headroom_bytes() < needed:
            return "there is too little free memory to capture a call"
    return host_compiler.recording_obstacle()


@contextmanager
def resident_weights(layers: Sequence[nn.Module], device: torch.device) -> Iterator[bool]:
    """Let layers under dynamic VRAM find their weights without calling the driver, the way ComfyUI prefetches
    them. Yields False if one of them is not resident.
    """
    layers = list(layers)
    try:
        comfy.ops.cast_modules_with_vbar(layers, None, device, None, True)
        yield all(layer._prefetch["resident"] for layer in layers)
    finally:
        for layer in layers:
            _take_prefetched(layer)


def _take_prefetched(layer: nn.Module) -> None:
    """Undo ComfyUI's prefetching of one layer. Its own function for that takes other arguments in later
    versions, and what it leaves would count as resident for good.
    """
    prefetched = layer.__dict__.pop(PREFETCH, None)
    for name in ("weight_lowvram_function", "bias_lowvram_function"):
        if (patch := getattr(layer, name, None)) is not None:
            patch.clear_prepared()
    if prefetched is not None and prefetched["signature"] is not None:
        pages, address, nbytes = layer._v
        pages.unpin(address, nbytes)


def _store_of(main: ModelPatcher, model: Any) -> GraphStore | None:
    """The store of the graphs of one of a run's models: kept on the model, since they read its weights."""
    patcher = main if model is main.model else model.current_patcher
    store = getattr(model, GRAPHS, None)
    if patcher is None:
        return None
    if store is None:
        if patcher.load_device.type != "cuda" or not comfy.model_management.is_nvidia():
            return None
        store = GraphStore()
        setattr(model, GRAPHS, store)
    _watch_unloading(patcher)
    return store


def _watch_unloading(model: ModelPatcher | None) -> None:
    """Be told when the host unloads the model: once a clone is gone, by the one that it was made from."""
    while model is not None:
        if not model.get_callbacks(CallbacksMP.ON_DETACH, KEY):
            model.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _on_detach)
        model = getattr(model, "parent", None)


def _end_graphs(model: ModelPatcher, graphs: GraphSession | None) -> None:
    """After a run: recordings stay for the next one only where memory is plenty."""
    if graphs is None:
        return
    graphs.close()
    management = comfy.model_management
    for part in graphs.parts:
        device = part.device or model.load_device
        free, total = management.get_free_memory(device), management.get_total_memory(device)
        if not may_outlive_run(free, total, is_dynamic(model)):
            part.drop()


def _on_detach(model: ModelPatcher, unpatch_all: bool = True) -> None:
    """The host unloads the model: recordings read from weights that go."""
    store = graph_store(model)
    if store is not None and unpatch_all:
        store.clear()


def _enter(model_options: dict, run: RunState, hooks: RunHooks) -> None:
    """Put a run and its wrappers into the options that live as long as it does."""
    model_options["transformer_options"][RUN] = run
    for place, wrapper in ((WrappersMP.PREDICT_NOISE, hooks.evaluate), (WrappersMP.APPLY_MODEL, hooks.call)):
        comfy.patcher_extension.add_wrapper_with_key(
            place, KEY, wrapper, model_options, is_model_options=True
        )


def _bring_conditionings(model_options: dict, run: RunState, device: torch.device) -> None:
    """Have the sampler find the run's conditionings on the device (SAMPLER_SAMPLE)."""
    if run.is_dense or not run.any_regional:
        return

    def sample(executor: Any, guider: Any, *args, **kwargs) -> Any:
        given, guider.conds = guider.conds, brought(guider.conds, device)
        try:
            return executor(guider, *args, **kwargs)
        finally:
            guider.conds = given  # a guider may outlive its run

    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.SAMPLER_SAMPLE, KEY, sample, model_options, is_model_options=True
    )


def _name_of(sampler: Any) -> str:
    return getattr(getattr(sampler, "sampler_function", None), "__name__", "")


def _wanted_cache(config: RASConfig, sampler: Any) -> KVCache:
    """The user's setting; noise that a sampler adds cannot be forecast."""
    if config.kv_cache != "forecast" or _name_of(sampler) in STEADY_SAMPLERS:
        return config.kv_cache
    logger.info("Multirate RAS: kv_cache = forecast is for euler and dpmpp_2m; here it works as gpu.")
    return "gpu"


def _plan_cache(
    guider: Any,
    network: nn.Module,
    adapter: ModelAdapter,
    run: RunState,
    profile: CostProfile,
    graphs: GraphSession | None,
    wanted: KVCache,
) -> None:
    """Decide how the run keeps K/V as soon as the host has loaded the run's models (PREPARE_SAMPLING)."""
    if run.is_dense or not run.any_regional:
        return
    if wanted != "auto":  # also for guiders that load models in a way of their own
        run.keep_cache_as(wanted)

    def prepare(executor: Any, model: ModelPatcher, noise_shape: Any, conds: dict, *args, **kwargs) -> Any:
        prepared = executor(model, noise_shape, conds, *args, **kwargs)
        evaluated = _evaluated(guider, conds)
        n_text = max((adapter.text_rows(network, _text_rows(cond)) for cond in evaluated), default=0)
        _log_estimate(profile, run, n_text)
        needs = cache_needs(model, network, adapter, run, evaluated)
        # What recordings hold serves this run, or goes.
        first = "gpu" if wanted == "auto" else wanted
        held = 0 if graphs is None else graph_store(model).nbytes(first)
        working = working_memory(model, noise_shape)
        make_room(needs.on_device(first) - held + working - evictable_room(model), model.load_device)
        room = Room(
            free_device_bytes(model, working) + held, free_host_bytes(), has_float8(model.load_device)
        )
        _keep_cache(run, choose(wanted, needs, room), needs, graphs)
        return prepared

    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.PREPARE_SAMPLING, KEY, prepare, guider.model_options, is_model_options=True
    )


def _keep_cache(run: RunState, choice: Choice, needs: Needs, graphs: GraphSession | None) -> None:
    """Follow a choice, and say it once."""
    if graphs is not None and (obstacle := storage_obstacle(choice.storage)):
        graphs.refuse(obstacle)
        graphs.drop()
    if choice.storage is None:
        run.go_dense(choice.reason)
        return
    run.keep_cache_as(choice.storage, needs.of_a_branch(choice.storage))
    if choice.is_surprise:
        if graphs is not None:
            graphs.keep_only(choice.storage)
        run.warn(choice.reason)
    else:
        logger.info("Multirate RAS: %s.", choice.reason)


def _log_estimate(profile: CostProfile, run: RunState, n_text: int) -> None:
    """What the plan should gain by arithmetic, before the run (an adaptive budget spends the same)."""
    counts = [
        run.grid.n if step.kind is StepKind.DENSE else step.active_count(run.grid.n) for step in run.plan
    ]
    gain = expected_speedup(profile, run.grid.n, n_text, counts)
    regional = sum(step.kind is StepKind.REGIONAL for step in run.plan)
    logger.info(
        "Multirate RAS: %d of %d steps are to be regional, speed-up %.2fx by arithmetic.",
        regional, len(counts), gain,
    )  # fmt: skip


def cache_needs(
    model: ModelPatcher, network: nn.Module, adapter: ModelAdapter, run: RunState, conds: list[dict]
) -> Needs:
    """Bytes of the K/V cache of a run over these conditionings, by arithmetic."""
    suffix = adapter.suffix_rows(network, run.grid.n)
    texts = [adapter.text_rows(network, _text_rows(cond)) for cond in conds]
    borders = [text + suffix for text in texts for _ in range(run.batch)]
    itemsize = (model.model.manual_cast_dtype or model.model.get_dtype()).itemsize
    profile = adapter.cache_profile(network)
    nbytes = partial(profile.nbytes, run.grid.n, borders, itemsize, padding=suffix)
    return Needs(
        plain=nbytes(),
        fp8=nbytes("fp8"),
        forecast=nbytes("forecast"),
        attention=profile.attention_nbytes(run.grid.n, borders, itemsize),
        branches=max(len(conds), 1),
    )


def working_memory(model: ModelPatcher, noise_shape: Any) -> int:
    """Bytes that the network itself works in, with both branches in one call."""
    network = model.memory_required([2 * noise_shape[0], *noise_shape[1:]])
    return int(network + comfy.model_management.extra_reserved_memory())


def free_device_bytes(model: ModelPatcher, working: int) -> int:
    """Bytes of the sampling device that are left for the K/V cache."""
    free = comfy.model_management.get_free_memory(model.load_device)
    return int(free + evictable_room(model) - working)


def evictable_room(model: ModelPatcher) -> int:
    """Bytes that eviction will add to the free ones. Under dynamic VRAM the model's weights are loaded when
    they are used, and other models' weights are evicted for them. Negative if that frees less than they need.
    """
    if not is_dynamic(model):
        return 0
    loaded = comfy.model_management.current_loaded_models
    in_use = [each.model for each in loaded if each.currently_used and each.device == model.load_device]
    needed = {id(each.model): each for each in (*in_use, model) if each is not None and is_dynamic(each)}
    sizes = sum(each.model_size() for each in needed.values())
    return evictable_bytes(model.load_device) - sizes - headroom_bytes()


def headroom_bytes() -> int:
    """Bytes that the user told ComfyUI to leave free (dynamic VRAM)."""
    return int(getattr(comfy.cli_args.args, "vram_headroom", 0) * 2**30)


def is_dynamic(model: ModelPatcher) -> bool:
    """Whether ComfyUI loads this model's weights only when they are used (dynamic VRAM)."""
    return bool(getattr(model, "is_dynamic", bool)())


def evictable_bytes(device: torch.device) -> int:
    """Bytes of weights that ComfyUI can evict when memory is short."""
    memory = getattr(comfy, "memory_management", None)
    if not getattr(memory, "aimdo_enabled", False):
        return 0
    from comfy_aimdo.model_vbar import vbars_analyze  # only with dynamic VRAM

    return vbars_analyze(device.index)


def free_host_bytes() -> int:
    """Bytes of main memory that the K/V cache may take."""
    return int(comfy.model_management.get_free_memory(torch.device("cpu")) * (1 - KEEP_MAIN_MEMORY))


def make_room(nbytes: int, device: torch.device) -> None:
    """Have the host unload models until so much is free; those that this run uses stay as they are."""
    management = comfy.model_management
    if device.type == "cpu":
        return  # unloading moves weights to main memory, where they are
    in_use = [loaded for loaded in management.current_loaded_models if loaded.currently_used]
    management.free_memory(nbytes, device, keep_loaded=in_use)


def _evaluated(guider: Any, conds: dict[str, list[dict]]) -> list[dict]:
    """The conditionings that are evaluated: the host leaves the negative ones out at cfg 1."""
    is_hosts = getattr(type(guider), "predict_noise", None) is comfy.samplers.CFGGuider.predict_noise
    keeps_all = guider.model_options.get("disable_cfg1_optimization", False)
    leaves_out = is_hosts and math.isclose(guider.cfg, 1.0) and not keeps_all
    return [
        cond for name, group in conds.items() for cond in group if not (leaves_out and name == "negative")
    ]


def _text_rows(cond: dict) -> int:
    context = cond.get("cross_attn")
    return 0 if context is None else context.shape[1]


def _explain_dense_plan(run: RunState) -> None:
    """Say before the run why it will have no regional step; dense by request needs no warning."""
    config, n_steps = run.config, len(run.plan)
    if not decreases(run.sigmas):
        run.go_dense("the noise schedule does not decrease all the way")
    elif not run.any_regional and config.sample_ratio < 1.0:
        run.warn(
            f"no regional step fits: the run has {n_steps} steps, of which {config.start_step} start dense"
        )
