"""Computes the FLOPs of a step and the size of the K/V cache from the shapes of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class CostProfile:
    """The sizes of a network that determine the multiply-adds of one step.

    Attributes:
        image_weights: number of linear weights that the blocks apply to an image token.
        text_weights: number of linear weights that the blocks apply to a text (or padding) token.
        joint_width: width of attentions over image and text together, summed over all blocks.
        image_width: width of attentions among image tokens only, summed over all blocks.
        cross_width: width of attentions from image tokens to text, summed over all blocks.
        final_weights: number of linear weights of the final layer, which is applied to each active token.
        frozen_rows: number of rows of reference images in a run. Dense steps process them like image tokens;
            regional steps only read their keys and values from the cache.
    """

    image_weights: int
    text_weights: int
    joint_width: int
    image_width: int = 0
    cross_width: int = 0
    final_weights: int = 0
    frozen_rows: int = 0

    def step_flops(self, n_tokens: int, n_active: int, n_text: int) -> float:
        """FLOPs of a step for one image and one prompt (equation 2 of the paper).

        Linear layers and attention queries run on the active tokens; attention reads keys and values of all
        tokens.
        """
        rows = n_active + (self.frozen_rows if n_active == n_tokens else 0)
        keys = n_tokens + self.frozen_rows
        linear = rows * (self.image_weights + self.final_weights) + n_text * self.text_weights
        attention = 2 * (rows + n_text) * (keys + n_text) * self.joint_width
        attention += 2 * rows * (keys * self.image_width + n_text * self.cross_width)
        return 2.0 * (linear + attention)


@dataclass(frozen=True)
class CacheProfile:
    """Widths of the keys in the attentions whose keys and values are cached, one entry for each attention.

    In each attention, the values are as wide as the keys.

    Attributes:
        joint: widths of attentions over image and text together.
        image: widths of attentions among image tokens only.
    """

    joint: tuple[int, ...] = ()
    image: tuple[int, ...] = ()

    def counts(self, n_tokens: int, borders: Sequence[int], padding: int = 0) -> tuple[int, int, int]:
        """Size of the whole K/V cache in elements and in rows; neither depends on the format of the cache.

        Args:
            n_tokens: image tokens of the whole image.
            borders: numbers of text and padding rows together, one entry for each image with each prompt.
            padding: number of padding rows in each of these entries. Attentions that are restricted to image
                tokens have no text rows, but they have these padding rows.

        Returns:
            Three counts: elements of all keys and values; rows of all keys and values; elements of the keys
            and values of the largest attention.
        """
        image_rows = (n_tokens + padding) * len(borders)
        joint_rows = n_tokens * len(borders) + sum(borders)
        numbers = 2 * (sum(self.joint) * joint_rows + sum(self.image) * image_rows)
        rows = 2 * (len(self.joint) * joint_rows + len(self.image) * image_rows)
        return numbers, rows, 2 * max((*self.joint, *self.image), default=0) * joint_rows


def expected_speedup(profile: CostProfile, n_tokens: int, n_text: int, active_counts: Iterable[int]) -> float:
    """FLOPs of a dense run, divided by those of a run with regional steps.

    `active_counts` has the number of image tokens that each evaluation of the run processes, one entry for
    each evaluation.
    """
    counts = list(active_counts)
    if not counts:
        return 1.0
    dense = profile.step_flops(n_tokens, n_tokens, n_text) * len(counts)
    return dense / sum(profile.step_flops(n_tokens, count, n_text) for count in counts)


def profile_of(network: nn.Module, compute: Callable[[nn.Module], CostProfile]) -> CostProfile:
    """The network's cost profile as its adapter computes it. If another pack has replaced parts of the
    network that the adapter needs, the profile is estimated from the network's linear layers.
    """
    try:
        return compute(network)
    except AttributeError:
        return CostProfile(max(linear_weights(network), 1), 0, 0)


def linear_weights(module: nn.Module, skip: str = "adaLN_modulation") -> int:
    """Number of weights of the linear layers in `module` that are applied to each row.

    Layers whose names contain the text `skip` are not counted. These are modulation layers, which run once
    per image instead of once per row.
    """
    return sum(
        layer.in_features * layer.out_features
        for name, layer in module.named_modules()
        if _is_linear(layer) and skip not in name
    )


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer is linear; ComfyUI's layers with quantised weights are not subclasses of nn.Linear."""
    return isinstance(layer, nn.Linear) or (hasattr(layer, "in_features") and hasattr(layer, "out_features"))
