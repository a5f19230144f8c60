"""The adapter for Chroma, whose network is ComfyUI's class Chroma: Flux.1's blocks with other modulation."""

from __future__ import annotations

from torch import nn

from .base import NO_INPUTS, Inputs
from .flux import FluxAdapter


class ChromaAdapter(FluxAdapter):
    """The blocks and their inputs are those of Flux.1. A small network computes the modulation of all blocks
    from the timestep. Reference images are ignored by the network.

    Chroma Radiance has another class, which is not supported: after its blocks, it computes each pixel from
    the pixels around it.
    """

    family = "Chroma"
    classes = ("chroma.model.Chroma",)

    def unsupported(self, network: nn.Module) -> str | None:
        return None

    def frozen_rows(self, network: nn.Module, inputs: Inputs = NO_INPUTS) -> int:
        return 0
