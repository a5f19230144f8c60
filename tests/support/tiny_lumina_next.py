"""A tiny Lumina-Next whose weights come from a seed, and the inputs of its reference data.

`tests/data/record_lumina_next.py` gives the same weights and inputs to diffusers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CAPTION_WIDTH = 64
CHANNELS = 4
SAMPLE_SIZE = 16
"""Latent pixels along each side for which positions are not scaled."""

NETWORK_CONFIG: dict[str, Any] = {
    "hidden_size": 96,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "ffn_size": 256,
    "cross_attention_dim": CAPTION_WIDTH,
    "sample_size": SAMPLE_SIZE,
}

REFERENCE = Path(__file__).parents[1] / "data" / "lumina_next.npz"


@dataclass(frozen=True)
class Case:
    """One call of the network.

    Attributes:
        size: latent pixels (H, W).
        time: Lumina-Next's time, 0 for noise and 1 for the image.
        watershed: parameter of the time-aware scaling.
        padding: for each image, how many of the caption's nine rows, from the first, are padding.
    """

    size: tuple[int, int]
    time: float
    watershed: float = 1.0
    padding: tuple[int, ...] = (0,)

    def inputs(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latent (b, 4, H, W), caption (b, 9, 64), mask (b, 9)."""
        generator = torch.Generator().manual_seed(seed)
        batch = len(self.padding)
        latent = draw((batch, CHANNELS, *self.size), generator)
        return latent, *captions(self.padding, generator)


CASES = {
    "square": Case((16, 16), 0.3),
    "noise": Case((16, 16), 0.0, padding=(0, 4)),
    "image": Case((16, 16), 1.0, padding=(2, 0)),
    "wide": Case((12, 20), 0.6, padding=(0, 3)),
    "tall_before_watershed": Case((40, 18), 0.2, watershed=0.3, padding=(1, 0, 5)),
    "tall_after_watershed": Case((40, 18), 0.7, watershed=0.3, padding=(1, 0, 5)),
    "small": Case((8, 6), 0.45, watershed=0.3),
}

RUN_SIZE = (12, 20)
RUN_STEPS = 12
RUN_GUIDANCE = 4.0
RUN_WATERSHED = 0.5


def run_inputs() -> dict[str, Tensor]:
    """Noise for two images; captions and masks of the prompts and of the negative prompts."""
    generator = torch.Generator().manual_seed(77)
    noise = draw((2, CHANNELS, *RUN_SIZE), generator)
    caption, mask = captions((0, 2), generator)
    negative, negative_mask = captions((6, 5), generator)
    return {
        "noise": noise, "caption": caption, "mask": mask,
        "negative": negative, "negative_mask": negative_mask,
    }  # fmt: skip


def captions(padding: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Caption rows (b, 9, 64) and mask (b, 9); padding comes first, as Gemma's tokenizer puts it."""
    rows = draw((len(padding), 9, CAPTION_WIDTH), generator)
    mask = torch.ones(len(padding), 9, dtype=torch.long)
    for i, padded in enumerate(padding):
        mask[i, :padded] = 0
    return rows, mask


def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform values of standard deviation 1; their bits do not depend on the CPU's vector width."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * math.sqrt(3)


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random weights, generated in sorted key order. All gates and modulations are non-zero."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _weight(name, draw(tuple(shapes[name]), generator)) for name in sorted(shapes)}


def _weight(name: str, values: Tensor) -> Tensor:
    if values.ndim == 2:
        gain = 2.0 if name.endswith(("to_q.weight", "to_k.weight")) else 1.0  # some tokens over others
        return values * gain / math.sqrt(values.shape[1])
    return values * 0.2 + (0.0 if name.endswith("bias") else 1.0)
