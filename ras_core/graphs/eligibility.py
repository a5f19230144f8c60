"""When a regional call may be recorded as a CUDA graph and replayed. Facts in, decisions out: no device."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kv.formats import FORMATS

SIGHTINGS = 2
"""A shape is recorded when it comes for the second time: what comes once is not worth it, and the first time
has chosen the kernels."""

MAX_GRAPHS = 8
"""Of one model; a ratio that changes from step to step would need one a step. Older runs' go first."""

MAX_TAPES = 2
"""Each takes the memory of one call; most runs have one or two calls an evaluation."""

KEEP_FREE = 0.25
"""Share of the device's memory that must be free for graphs and their K/V buffers to outlive a run."""

KEEP_FREE_DYNAMIC = 0.5
"""The same under dynamic VRAM: ComfyUI then evicts weights for other models, and unloads nothing for them."""

MULTIGPU = "multigpu_clones"
"""ComfyUI's option for copies of the model on other devices, which it calls in threads."""

BETWEEN_CALLS = ("model_function_wrapper", "sampler_calc_cond_batch_function", MULTIGPU)
"""ComfyUI's options that let other code, or several threads, make the calls of an evaluation."""

RESIDUAL = "control."
"""Prefix of a ControlNet's residuals among the inputs of a call."""

Signature = tuple[Hashable, ...]
NOT_READ = {
    *("uuids", "sigmas", "sample_sigmas"),  # of the call, which networks get as inputs too
    *("wrappers", "callbacks", "patches", "patches_replace"),  # `call_obstacle` looks at these
}
"""Transformer options that do not change what a captured call computes."""

Form = tuple[Hashable, ...]
"""What tells graphs on the same K/V buffers apart: active tokens per image, names of residuals."""


@dataclass(frozen=True)
class GraphReport:
    """What a run did with CUDA graphs.

    Attributes:
        captured: calls that were captured.
        replayed: evaluations whose network calls were all replayed.
        reason: why nothing could be captured, at all or from some step on; or None.
    """

    captured: int
    replayed: int
    reason: str | None = None


def call_obstacle(options: Mapping[str, Any], other_wrappers: bool, inner_override: object) -> str | None:
    """Why a call cannot be captured: code that must run at each step would run only once.

    Args:
        options: the call's transformer options.
        other_wrappers: whether others wrap the call.
        inner_override: an attention function that another node put in.
    """
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
    """Why a run with this K/V format captures nothing: graphs read K/V at the addresses of the capture."""
    if storage is not None and FORMATS[storage].stays_in_place:
        return None
    return f"its K/V cache is kept in another way ({storage or 'not at all'})"


def form_of(active_count: int, inputs: Mapping[str, Any], options: Hashable = ()) -> Form:
    """The form of a regional call, with its options as `frozen_options` gives them. ControlNets may begin and
    end within a run.
    """
    return (active_count, options, *sorted(name for name in inputs if name.startswith(RESIDUAL)))


def frozen_options(options: Mapping[str, Any], own: Collection[str] = ()) -> Hashable:
    """What a network may read of a call's transformer options, to compare; a graph repeats what it read once.

    Args:
        options: the call's.
        own: names that this pack sets.

    Raises:
        TypeError: with the name of an option that cannot be compared.
    """
    read = sorted(name for name in options if name not in NOT_READ and name not in own)
    return tuple((name, _frozen(name, options[name])) for name in read)


def _frozen(name: str, value: Any) -> Hashable:
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    if isinstance(value, Mapping):
        return tuple((str(key), _frozen(name, each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(name, each) for each in value)
    raise TypeError(name)


def without_residuals(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that dense calls share."""
    return {name: value for name, value in inputs.items() if not name.startswith(RESIDUAL)}


def signature(inputs: Mapping[str, Any]) -> Signature | None:
    """What two calls must share to be replayed from one graph; None for inputs of an unknown type."""
    parts: list[Hashable] = [torch.is_inference_mode_enabled()]
    for name, value in sorted(inputs.items()):
        if isinstance(value, Tensor):
            parts.append((name, tuple(value.shape), value.dtype, value.device))
        elif value is None or isinstance(value, (bool, int, float, str)):
            parts.append((name, value))
        else:
            return None
    return tuple(parts)


def may_outlive_run(free: int, total: int, is_dynamic: bool = False) -> bool:
    """Whether what graphs hold may stay on the device until the next run, in bytes."""
    return free >= (KEEP_FREE_DYNAMIC if is_dynamic else KEEP_FREE) * total
