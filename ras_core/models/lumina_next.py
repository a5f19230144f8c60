"""The adapter for Lumina-Next-T2I, whose network this pack includes, with the module names of diffusers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .base import Gather, GatherPositions, ModelAdapter, replace_arg
from .cost import CacheProfile, CostProfile, linear_weights


class LuminaNextAdapter(ModelAdapter):
    """The sequence consists of image rows only; the text enters through a second attention in each layer.

    The second attention reads keys and values of the caption. The caption does not change during a run, so
    this attention needs no K/V cache. Every layer receives a table of rotary positions; keys are cached after
    rotation, as in the paper's own code. The scale of self-attention (on queries times keys) depends on the
    image size. The network computes it before the first layer, from the number of tokens of the whole image,
    so it is the same in dense and regional calls.
    """

    family = "Lumina-Next"
    classes = ("lumina_next.network.LuminaNextDiT",)
    text_in_hidden = False
    cross_attentions = frozenset({1})

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return network.layers

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.norm_out

    def patch_size(self, network: nn.Module) -> tuple[int, int]:
        return (network.patch_size, network.patch_size)

    def kv_repeat(self, network: nn.Module) -> int:
        return network.layers[0].attn1.kv_repeat

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """A layer is called with (x, rotary, caption, condition, call)."""
        if gather_hidden is not None:
            args, kwargs = replace_arg(args, kwargs, 0, "x", gather_hidden)
        return replace_arg(args, kwargs, 1, "rotary", gather_positions)

    def cost_profile(self, network: nn.Module) -> CostProfile:
        layers = list(network.layers)
        caption_weights = sum(linear_weights(m) for layer in layers for m in _caption_layers(layer))
        modulation = sum(linear_weights(layer.norm1) for layer in layers)
        width = network.hidden_size * len(layers)
        return CostProfile(
            image_weights=sum(map(linear_weights, layers)) - caption_weights - modulation,
            text_weights=caption_weights,
            joint_width=0,
            image_width=width,
            cross_width=width,
            final_weights=linear_weights(network.norm_out.linear_2),
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        width = network.hidden_size // self.kv_repeat(network)
        return CacheProfile(image=(width,) * len(network.layers))


def _caption_layers(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    return layer.attn2.to_k, layer.attn2.to_v
