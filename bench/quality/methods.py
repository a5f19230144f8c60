"""Build the model and the sampler with which ComfyUI samples a cell."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import comfy.samplers
from comfy.model_patcher import ModelPatcher

from ...ras_core.host.patch import patch_model
from ...ras_core.host.planned_model import settings_of
from ...ras_core.host.samplers import multirate_sampler
from .block_cache import with_block_cache
from .cells import CACHES, PLANNED, Cell
from .oracle import exact_keys_and_values
from .solvers import OWN_SAMPLERS
from .whole_steps import forecasting


def prepare_model(model: ModelPatcher, cell: Cell) -> ModelPatcher:
    """The model patched for the cell's method; the model itself for the methods dense and whole_steps."""
    config = cell.config()
    if config is not None:
        return patch_model(model, config)
    if cell.method in PLANNED:
        # No CUDA graphs: each cell has shapes of its own, and networks of this size gain nothing from them.
        settings = replace(settings_of(cell.plan()), cuda_graphs="off")
        return patch_model(model, replace(settings, **cell.extra_settings))
    if cell.method == "dbcache":
        return with_block_cache(model, cell.threshold, cell.probe, cell.start)
    if cell.method in CACHES:
        nodes = importlib.import_module("comfy_extras.nodes_easycache")
        node = {"lazycache": nodes.LazyCacheNode, "easycache": nodes.EasyCacheNode}[cell.method]
        return node.execute(model, cell.threshold, 0.15, 0.95, False).args[0]
    return model


def sampler_of(name: str) -> comfy.samplers.KSAMPLER:
    """The sampler of this name: the harness's own (solvers.py), or ComfyUI's."""
    if name in OWN_SAMPLERS:
        return comfy.samplers.KSAMPLER(OWN_SAMPLERS[name])
    return comfy.samplers.sampler_object(name)


def sampler_for(cell: Cell) -> comfy.samplers.KSAMPLER:
    """The sampler of a cell.

    For the method whole_steps, the sampler's skipped steps use a forecast of the denoised estimate instead of
    a run of the network.
    """
    if cell.method in PLANNED and cell.sampler == "ab2":
        return multirate_sampler("ab2")
    sampler = sampler_of(cell.sampler)
    if cell.method != "whole_steps":
        return sampler
    function = forecasting(sampler.sampler_function, cell.form, cell.start, cell.reset_every)
    return comfy.samplers.KSAMPLER(function, sampler.extra_options, sampler.inpaint_options)


def bound_of(cell: Cell) -> AbstractContextManager[None]:
    """A context in which regional steps have exact keys and values, if the cell's method is exact_kv."""
    return exact_keys_and_values() if cell.method == "exact_kv" else nullcontext()
