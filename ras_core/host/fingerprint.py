"""Identifies the model that plans belong to: its weights, their patches such as LoRA, and its noise schedule.

Only a sample of the weights' elements is read, so a fingerprint takes a fraction of a second for any model.
Patches of attention and other model options are ignored, because they hardly change which noise levels need
the most steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ..graphs.tensors import parts_of
from .measured_runs import simple_levels

NETWORK = "diffusion_model."
TENSORS = 32
"""Approximate number of weight tensors that are sampled."""

NUMBERS = 64
"""Number of elements that are read from each sampled weight."""


def fingerprint(model: ModelPatcher) -> str:
    """16 hexadecimal digits that identify a model: the same model has the same digits in every session."""
    weights = _unpatched_weights(model)
    digest = hashlib.sha256()
    sampled = set(sorted(weights)[:: max(len(weights) // TENSORS, 1)])
    for name in sorted(weights):
        weight = weights[name]
        _add(digest, (name, tuple(weight.shape)))
        if name in sampled:
            _add(digest, list(parts_of(weight)))
        for patch in model.patches.get(name, ()):
            _add(digest, patch)
    _add(digest, [f"{level:.6g}" for level in simple_levels(model, 8)])
    return digest.hexdigest()[:16]


def _unpatched_weights(model: ModelPatcher) -> dict[str, torch.Tensor]:
    """The network's weights by ComfyUI's keys, without patches. The state dict is not used: it
    splits a quantised weight into several entries, such as its scale. Some of these are not attributes of
    their layer, so ComfyUI fails when it is asked for them by key.
    """
    network = model.get_model_object("diffusion_model")
    own = {f"{NETWORK}{name}": weight for name, weight in network.named_parameters()}
    return {name: model.backup[name].weight if name in model.backup else each for name, each in own.items()}


def _add(digest: Any, value: Any) -> None:
    """Add a value to the digest. For a patch object with `weights`, such as ComfyUI's LoRA adapter, add its
    type's name and these weights.
    """
    if isinstance(value, torch.Tensor):
        _add_tensor(digest, value)
    elif isinstance(value, Mapping):
        _add(digest, sorted(value.items(), key=lambda item: str(item[0])))
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        for each in value:
            _add(digest, each)
    elif hasattr(value, "weights"):
        _add(digest, (type(value).__name__, value.weights))
    elif isinstance(value, (str, int, float, type(None))):
        digest.update(f"{value!r};".encode())
    else:
        digest.update(f"{type(value).__name__};".encode())  # no repr: it may differ between sessions


def _add_tensor(digest: Any, tensor: torch.Tensor) -> None:
    digest.update(f"{tuple(tensor.shape)};".encode())
    if tensor.is_meta or not tensor.numel():
        return
    flat = tensor.detach().reshape(-1)
    some = flat[:: max(flat.numel() // NUMBERS, 1)][:NUMBERS]
    digest.update(some.float().cpu().numpy().tobytes())
