"""Keeps a model's CUDA graphs on ComfyUI's model, and drops them when ComfyUI unloads the model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import nn

from ..graphs.eligibility import may_outlive_run
from ..graphs.layer_uses import PREFETCH
from ..graphs.session import GraphSession
from ..graphs.store import GraphEnvironment, GraphStore
from ..run.state import RunState
from . import compiler
from .memory import is_dynamic, memory_of_call, unused_device_bytes
from .names import GRAPHS, KEY

INTERRUPTS = (comfy.model_management.InterruptProcessingException,)
"""Exceptions that ComfyUI raises when the user cancels a run."""


def graph_store(model: ModelPatcher) -> GraphStore | None:
    """The store of the CUDA graphs that runs of this model have captured, or None."""
    return getattr(model.model, GRAPHS, None)


def graph_session(model: ModelPatcher, run: RunState, noise_shape: torch.Size) -> GraphSession | None:
    """The CUDA graphs of a run; None if the settings, the plan or the device do not allow CUDA graphs."""
    if run.config.cuda_graphs == "off" or not run.is_regional:
        return None
    environment = GraphEnvironment(
        partial(_store_of, model),
        interrupts=INTERRUPTS,
        obstacle=partial(capture_obstacle, model, noise_shape),
    )
    session = GraphSession(environment)
    return None if session.of(model.model) is None else session


def capture_obstacle(model: ModelPatcher, noise_shape: torch.Size) -> str | None:
    """Why no CUDA graph can be captured right now, or None."""
    # If memory is short, ComfyUI evicts weights and waits for the device, which invalidates a capture.
    if is_dynamic(model) and unused_device_bytes(model) < memory_of_call(model.model, noise_shape):
        return "there is too little free memory to capture a call"
    return compiler.capture_obstacle()


def end_graphs(model: ModelPatcher, graphs: GraphSession | None) -> None:
    """End a run's use of its CUDA graphs. Drop them if too little memory is free to keep them for the next
    run.
    """
    if graphs is None:
        return
    graphs.close()
    management = comfy.model_management
    for part in graphs.parts:
        device = part.device or model.load_device
        free, total = management.get_free_memory(device), management.get_total_memory(device)
        if not may_outlive_run(free, total, is_dynamic(model)):
            part.drop()


@contextmanager
def resident_weights(layers: Sequence[nn.Module], device: torch.device) -> Iterator[bool]:
    """Prefetch the weights of layers under dynamic VRAM, as ComfyUI does, for the body of the `with`: in it,
    no layer calls the driver to find out whether its weights are resident. Yields whether all these weights
    are resident on the device.
    """
    layers = list(layers)
    try:
        comfy.ops.cast_modules_with_vbar(layers, None, device, None, True)
        yield all(layer._prefetch["resident"] for layer in layers)
    finally:
        for layer in layers:
            _take_prefetched(layer)


def _take_prefetched(layer: nn.Module) -> None:
    """Undo ComfyUI's prefetching of the weights of `layer`. ComfyUI has a function that does the same, but it
    is not called: its arguments differ between versions of ComfyUI, and the state that it leaves behind would
    make `layer` count as resident forever.
    """
    prefetched = layer.__dict__.pop(PREFETCH, None)
    for name in ("weight_lowvram_function", "bias_lowvram_function"):
        if (patch := getattr(layer, name, None)) is not None:
            patch.clear_prepared()
    if prefetched is not None and prefetched["signature"] is not None:
        pages, address, nbytes = layer._v
        pages.unpin(address, nbytes)


def _store_of(main: ModelPatcher, model: Any) -> GraphStore | None:
    """The store of the CUDA graphs of `model`, one of the models that the run calls (a guider may call two).
    None if no CUDA graph can be captured for this model.
    """
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
    """Register `_on_detach` for the unloading of `model` and of the models that it was cloned from. Clones
    share their weights, and `model` may no longer exist when ComfyUI unloads these weights.
    """
    while model is not None:
        if not model.get_callbacks(CallbacksMP.ON_DETACH, KEY):
            model.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _on_detach)
        model = getattr(model, "parent", None)


def _on_detach(model: ModelPatcher, unpatch_all: bool = True) -> None:
    """Drop the CUDA graphs of a model that ComfyUI unloads, because the graphs read the model's weights."""
    store = graph_store(model)
    if store is not None and unpatch_all:
        store.clear()
