"""Random weights for networks with the layer sizes of real models."""

from __future__ import annotations

import math

import torch
from torch import nn

KEPT = ("pos_embedder.",)
"""Beginnings of the names of tensors that keep their values: constants from which Anima computes
positions."""


@torch.no_grad()
def draw_weights(network: nn.Module, seed: int) -> None:
    """Set random weights, scaled such that the output of each layer has about the scale of its input.
    Modulation layers get random weights too, not zeros.
    """
    tensors = [*network.named_parameters(), *network.named_buffers()]
    tensors = [(name, tensor) for name, tensor in tensors if not name.startswith(KEPT)]
    generators = {
        device: torch.Generator(device).manual_seed(seed) for device in {t.device for _, t in tensors}
    }
    for name, tensor in tensors:
        if tensor.ndim >= 2:
            tensor.normal_(
                0.0, 1 / math.sqrt(math.prod(tensor.shape[1:])), generator=generators[tensor.device]
            )
        else:
            tensor.normal_(0.0 if name.endswith("bias") else 1.0, 0.1, generator=generators[tensor.device])
        if name.endswith("pos_embed"):
            tensor.normal_(0.0, 0.5, generator=generators[tensor.device])
