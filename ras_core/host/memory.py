"""Measures how much memory is free for the K/V cache under ComfyUI's memory management, and frees more."""

from __future__ import annotations

from typing import Any

import comfy.cli_args
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

KEEP_MAIN_MEMORY = 0.25
"""Share of the free main memory that the K/V cache must not use."""


def working_memory(model: ModelPatcher, noise_shape: Any) -> int:
    """Bytes of working memory for one call of the network with both branches (positive and negative)."""
    return int(memory_of_call(model, noise_shape) + comfy.model_management.extra_reserved_memory())


def memory_of_call(model: Any, noise_shape: Any) -> float:
    """ComfyUI's estimate of the bytes that a call with both branches needs.

    Args:
        model: ComfyUI's model, or its ModelPatcher, whose estimate may include a safety margin.
        noise_shape: shape of the latent.
    """
    return model.memory_required([2 * noise_shape[0], *noise_shape[1:]])


def free_device_bytes(model: ModelPatcher, working: int) -> int:
    """Bytes on the sampling device that the K/V cache may use; `working` bytes are left free for calls."""
    free = comfy.model_management.get_free_memory(model.load_device)
    return int(free + evictable_room(model) - working)


def unused_device_bytes(model: ModelPatcher) -> int:
    """Free bytes of the device outside PyTorch's memory pool, minus the bytes that ComfyUI must keep free."""
    unused, in_pool = comfy.model_management.get_free_memory(model.load_device, torch_free_too=True)
    return unused - in_pool - headroom_bytes()


def free_main_memory() -> int:
    """Bytes of main memory that the K/V cache may use."""
    return int(comfy.model_management.get_free_memory(torch.device("cpu")) * (1 - KEEP_MAIN_MEMORY))


def evictable_room(model: ModelPatcher) -> int:
    """Bytes that become free if ComfyUI evicts all weights that it can evict, and then loads all weights of
    the models in use. The bytes that ComfyUI must keep free are subtracted.

    With dynamic VRAM, ComfyUI loads the weights of the models in use only when they are needed, and evicts
    other weights for them. The result is negative if evicting all other weights does not free enough memory
    for the models in use and the bytes to keep free. Without dynamic VRAM, it is 0.
    """
    if not is_dynamic(model):
        return 0
    loaded = comfy.model_management.current_loaded_models
    in_use = [each.model for each in loaded if each.currently_used and each.device == model.load_device]
    needed = {id(each.model): each for each in (*in_use, model) if each is not None and is_dynamic(each)}
    sizes = sum(each.model_size() for each in needed.values())
    return evictable_bytes(model.load_device) - sizes - headroom_bytes()


def headroom_bytes() -> int:
    """Bytes that ComfyUI must keep free: the user's option `--vram-headroom` (dynamic VRAM only)."""
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


def make_room(nbytes: int, device: torch.device) -> None:
    """Let ComfyUI unload models that this run does not use, until `nbytes` are free."""
    management = comfy.model_management
    if device.type == "cpu":
        return  # unloading frees nothing: the weights stay in main memory
    in_use = [loaded for loaded in management.current_loaded_models if loaded.currently_used]
    management.free_memory(nbytes, device, keep_loaded=in_use)
