"""When a regional call may be captured as a CUDA graph and replayed. No function of this module accesses a
device."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kv.formats import FORMATS

SIGHTINGS = 2
"""A call is captured when its form (see `Form`) occurs for the second time. A form that occurs only once is
not worth a capture. Also, its first occurrence runs eagerly, and libraries select their kernels in this eager
call."""

MAX_POSTPONED = 3
"""How often a run postpones the capture of one call for a temporary reason, such as too little free memory;
after that, the run does not capture the call."""

MAX_GRAPHS = 8
"""Maximum number of graphs per model; beyond it, the least recently used graph is freed. Without this limit,
a sample ratio that changes from step to step would create one graph per step."""

MAX_TAPES = 2
"""Maximum number of tapes (tape.py) per model. Each tape holds the working memory of one call; most runs have
one or two calls per evaluation."""

KEEP_FREE = 0.25
"""Share of the device's memory that must be free for graphs and their K/V buffers to outlive a run."""

KEEP_FREE_DYNAMIC = 0.5
"""The value of `KEEP_FREE` under dynamic VRAM. Graphs are freed when ComfyUI unloads their model to make room
for other models. Under dynamic VRAM, ComfyUI evicts weights instead and does not unload the model, so
the graphs keep their memory. That is why more memory must be free."""


RESIDUAL = "control."
"""Prefix of a ControlNet's residuals among the inputs of a call."""

Signature = tuple[Hashable, ...]

Form = tuple[Hashable, ...]
"""A tuple that distinguishes graphs on the same K/V buffers: the number of active tokens per image, the
options, and the names of a ControlNet's residuals."""


@dataclass(frozen=True)
class GraphReport:
    """What a run did with CUDA graphs.

    Attributes:
        captured: number of calls of the network that were captured.
        replayed: number of guided evaluations (steps) whose network calls were all replayed.
        reason: why a call was not captured, or why replays ended; or None.
        resident: number of layers whose evictable weights were resident at the end of the run; None if no
            weights were evictable (no dynamic VRAM) or no network was inspected.
        layers: number of all layers with evictable weights, without those that do not run in a step; None in
            the same cases as `resident`.
    """

    captured: int
    replayed: int
    reason: str | None = None
    resident: int | None = None
    layers: int | None = None

    @property
    def details(self) -> str:
        """Text for a log line: `reason`, and the number of resident layers if some layers were not resident.
        It is empty if there is nothing to report.
        """
        is_whole = self.resident == self.layers
        evicted = None if is_whole else f"{self.resident} of {self.layers} layers resident"
        return ", ".join(filter(None, [self.reason, evicted]))


def call_obstacle(is_wrapped: bool, other_attention: object, is_patched: bool) -> str | None:
    """Why a call cannot be captured; None if it can be. Code of other nodes prevents a capture: it must run
    at each step, but a graph would repeat only what this code did during the capture.

    Args:
        is_wrapped: whether another node wraps the model's calls.
        other_attention: another node's attention function, or None.
        is_patched: whether another node patches the network.
    """
    if is_wrapped:
        return "another node wraps the model's calls"
    if other_attention is not None:
        return "another node replaces the attention function"
    if is_patched:
        return "another node patches the network"
    return None


def format_obstacle(format_name: str | None) -> str | None:
    """Why calls with this K/V format cannot be captured, or None; without a K/V cache, `format_name` is None.
    A graph reads keys and values at the addresses that they had during the capture, so the format must keep
    them at these addresses.
    """
    if format_name is None:
        return "the run has no K/V cache"
    if FORMATS[format_name].keeps_addresses:
        return None
    return f"the K/V format {format_name} does not support CUDA graphs"


def form_of(active_count: int, inputs: Mapping[str, Any], options: Hashable = ()) -> Form:
    """The form of a regional call.

    Args:
        active_count: active tokens per image.
        inputs: by name. The names of a ControlNet's residuals are part of the form, because a ControlNet may
            begin or end during a run.
        options: the call's transformer options, as `frozen_options` returns them.
    """
    return (active_count, options, *sorted(name for name in inputs if name.startswith(RESIDUAL)))


def frozen_options(options: Mapping[str, Any], left_out: Collection[str] = ()) -> Hashable:
    """The options that a network may read, as a value that can be compared. A replayed graph computes with
    the options of its capture, so it can replace only calls with equal options.

    Args:
        options: the call's transformer options.
        left_out: names of options that do not change what a captured call computes.

    Raises:
        TypeError: an option cannot be compared; the message is the option's name.
    """
    read = sorted(name for name in options if name not in left_out)
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
    """The inputs without a ControlNet's residuals, as a dense call gets them."""
    return {name: value for name, value in inputs.items() if not name.startswith(RESIDUAL)}


def signature(inputs: Mapping[str, Any]) -> Signature | None:
    """A value that is equal for two calls if one graph may be replayed for both; None if an input is of an
    unknown type.
    """
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
    """Whether graphs and their K/V buffers may stay on the device until the next run.

    Args:
        free, total: bytes of the device's memory.
        is_dynamic: whether ComfyUI's dynamic VRAM is in use.
    """
    return free >= (KEEP_FREE_DYNAMIC if is_dynamic else KEEP_FREE) * total
