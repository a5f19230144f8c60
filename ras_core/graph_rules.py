"""When a regional call may be recorded as a CUDA graph and replayed. Facts in, decisions out: no device."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .residency import Residency, is_evictable, same_contents, tensors_of

SIGHTINGS = 2
"""A shape is recorded when it comes for the second time: what comes once is not worth it, and the first time
has chosen the kernels."""

MAX_GRAPHS = 8
"""Of one model; a ratio that changes from step to step would need one a step. Older runs' go first."""

MAX_TAPES = 2
"""Each takes the memory of one call; most runs have one or two calls an evaluation."""

KEEP_FREE = 0.25
"""Share of the device's memory that must be free for graphs and their K/V buffers to outlive a run."""

MAX_MISSES = 4
"""Of a run: how often weights may be found evicted before it stops looking."""

STAYS_IN_PLACE = ("gpu", "fp8", "forecast")
"""Settings of `kv_cache` whose tensors are never exchanged during a run."""

BETWEEN_CALLS = ("model_function_wrapper", "sampler_calc_cond_batch_function")
"""The host's options for functions of others that make the calls of an evaluation."""

Signature = tuple[Hashable, ...]


@dataclass(frozen=True)
class Network:
    """What a network's modules say, read once a run.

    Attributes:
        tensors: all weights and buffers that are not evictable; a graph reads from exactly these.
        obstacle: why nothing can be recorded, or None.
        sampling: the host's object that turns noise levels into times; it is part of a recorded call.
        residency: the evictable weights, or None where there are none (dynamic VRAM is off).
    """

    tensors: tuple[Tensor, ...]
    obstacle: str | None = None
    sampling: object = None
    residency: Residency | None = None

    def is_read_alike(self, other: Network) -> bool:
        """Whether what was recorded on this network reads the right numbers for the other. ComfyUI makes the small
        tensors of evictable networks anew for each run: theirs have to hold the same.
        """
        if self.sampling is not other.sampling or (self.residency is None) != (other.residency is None):
            return False
        if self.residency is None or other.residency is None:
            return [t.data_ptr() for t in self.tensors] == [t.data_ptr() for t in other.tensors]
        return self.residency.identity == other.residency.identity and same_contents(self.tensors, other.tensors)


def inspect(network: nn.Module, device: torch.device, sampling: object = None) -> Network:
    """Look at a network as it stands on `device`.

    ComfyUI casts or patches some weights at each use. A cast of what is on the device is an operation like any
    other; `weight_function` is code of others.
    """
    modules = list(network.modules())
    evictable = [module for module in modules if is_evictable(module, device)]
    others = set(modules) - set(evictable)
    if isinstance(sampling, nn.Module):
        others |= set(sampling.modules())
    tensors = tuple(part for module in others for part in tensors_of(module))
    residency = Residency.of(evictable, device) if evictable else None
    if (evictable and residency is None) or any(tensor.device != device for tensor in tensors):
        obstacle = "not all weights are on the device (low memory)"
    else:
        obstacle = next(filter(None, map(_module_obstacle, modules)), None)
    return Network(tensors, obstacle, sampling, residency)


def _module_obstacle(module: nn.Module) -> str | None:
    if getattr(module, "weight_function", None) or getattr(module, "bias_function", None):
        return "weights are patched at each use"
    if module._forward_hooks or module._forward_pre_hooks:
        return "somebody else watches the network's layers"
    return None


def call_obstacle(
    options: Mapping[str, Any], control: object, other_wrappers: bool, inner_override: object
) -> str | None:
    """Why a call cannot be recorded: what runs Python code of its own at each step would run only once.

    Args:
        options: the call's transformer options.
        control: a ControlNet's residuals, or None.
        other_wrappers: whether others wrap the call.
        inner_override: an attention function that another node put in.
    """
    if control is not None:
        return "a ControlNet takes part"
    if other_wrappers:
        return "another node wraps the model's calls"
    if inner_override is not None:
        return "another node brings its own attention function"
    if any(options.get(name) for name in ("patches", "patches_replace")):
        return "another node patches the network"
    return None


def calls_are_plain(model_options: Mapping[str, Any], guider: object) -> bool:
    """Whether the calls of an evaluation follow each other with nothing of others between them, on the same
    weights.

    Args:
        model_options: the host's; functions in them that run between its calls may do anything.
        guider: the host's, in a run; single conditionings may ask for patches of their own.
    """
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    between = [model_options.get(name) for name in BETWEEN_CALLS] + [wrappers.get("calc_cond_batch")]
    patcher = getattr(getattr(guider, "inner_model", None), "current_patcher", None)
    return not any(between) and getattr(patcher, "hook_patches", None) == {}


def storage_obstacle(storage: str | None) -> str | None:
    """Why a run whose K/V are kept in this way records nothing: recordings read K/V where they stood."""
    if storage in STAYS_IN_PLACE:
        return None
    return f"its K/V cache is kept in another way ({storage or 'not at all'})"


def signature(inputs: Mapping[str, Any]) -> Signature | None:
    """What two calls must share to be replayed from one recording; None for inputs of an unknown kind."""
    parts: list[Hashable] = [torch.is_inference_mode_enabled()]
    for name, value in sorted(inputs.items()):
        if isinstance(value, Tensor):
            parts.append((name, tuple(value.shape), value.dtype, value.device))
        elif value is None or isinstance(value, (bool, int, float, str)):
            parts.append((name, value))
        else:
            return None
    return tuple(parts)


def may_outlive_run(free: int, total: int) -> bool:
    """Whether what graphs hold may stay on the device until the next run, in bytes."""
    return free >= KEEP_FREE * total
