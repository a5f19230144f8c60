"""FLOPs of a step by arithmetic: what a schedule should gain, before and apart from any stop-watch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class CostProfile:
    """Multiply-adds of a network per token.

    Attributes:
        image_weights: linear weights that an image token meets in the main blocks.
        text_weights: the same for a text (or padding) token.
        joint_width: sum over blocks of the attention width in which image and text attend together.
        image_width: sum over blocks of the width of attentions among image tokens only.
        cross_width: sum over blocks of the width of attentions of image tokens to text.
        dense_weights: linear weights that every image token meets at every step, active or not (refiners).
        final_weights: linear weights of the final layer.
    """

    image_weights: int
    text_weights: int
    joint_width: int
    image_width: int = 0
    cross_width: int = 0
    dense_weights: int = 0
    dense_width: int = 0
    final_weights: int = 0

    def step_flops(self, n_tokens: int, n_active: int, n_text: int) -> float:
        """FLOPs of one branch of one image: queries of active tokens, keys and values of all (equation 2)."""
        linear = n_active * (self.image_weights + self.final_weights) + n_text * self.text_weights
        linear += n_tokens * self.dense_weights
        attention = 2 * (n_active + n_text) * (n_tokens + n_text) * self.joint_width
        attention += 2 * n_active * (n_tokens * self.image_width + n_text * self.cross_width)
        attention += 2 * n_tokens**2 * self.dense_width
        return 2.0 * (linear + attention)


def expected_speedup(profile: CostProfile, n_tokens: int, n_text: int, active_counts: Iterable[int]) -> float:
    """Dense cost over cost of a run whose evaluations process `active_counts` tokens each."""
    counts = list(active_counts)
    if not counts:
        return 1.0
    dense = profile.step_flops(n_tokens, n_tokens, n_text) * len(counts)
    return dense / sum(profile.step_flops(n_tokens, count, n_text) for count in counts)


def linear_weights(module: nn.Module, skip: str = "adaLN_modulation") -> int:
    """Weights of the linear layers below `module` that every row meets; modulation runs once an image."""
    return sum(
        layer.in_features * layer.out_features
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and skip not in name
    )
