"""The adapter for Ideogram 4, whose network has its own class in ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from .base import Gather, GatherPositions, ModelAdapter, replace_arg
from .cost import CacheProfile, CostProfile, linear_weights


class Ideogram4Adapter(ModelAdapter):
    """Text and image rows form one sequence, [text | image]. Without a text, as in the negative prompt of
    ComfyUI's workflow, the sequence consists of image rows only. A guider may use a second network for the
    negative prompt.

    If the text is padded, a mask (bb, 1, r, r) has a row for each query and a column for each key. Its rows
    are gathered; its columns are not, because the K/V cache has the keys of all tokens.
    """

    family = "Ideogram 4"
    classes = ("ideogram4.model.Ideogram4Transformer2DModel",)
    text_in_hidden = True

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return network.layers

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.final_layer

    def patch_size(self, network: nn.Module) -> tuple[int, int]:
        return (1, 1)  # the network's own patch_size is that of the VAE, whose latents are already patches

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """A layer is called with (x, attn_mask, freqs_cis, adaln_input)."""
        if gather_hidden is not None:
            args, kwargs = replace_arg(args, kwargs, 0, "x", gather_hidden)
        if args[1] is not None:
            by_query = partial(gather_positions, axis=2)
            args, kwargs = replace_arg(args, kwargs, 1, "attn_mask", by_query)
        return replace_arg(args, kwargs, 2, "freqs_cis", gather_positions)

    def cost_profile(self, network: nn.Module) -> CostProfile:
        weights = sum(linear_weights(layer, "adaln_modulation") for layer in network.layers)
        final = linear_weights(network.final_layer, "adaln_modulation")  # applied to all rows
        return CostProfile(
            image_weights=weights,
            text_weights=weights + final,
            joint_width=sum(self.cache_profile(network).joint),
            final_weights=final,
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        return CacheProfile(joint=tuple(layer.attention.hidden_size for layer in network.layers))
