"""The adapter for Kandinsky 5 Image, whose network is ComfyUI's class Kandinsky5."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .base import Gather, GatherPositions, ModelAdapter, replace_arg
from .cost import CacheProfile, CostProfile, linear_weights

MODULATION = "modulation"


class Kandinsky5Adapter(ModelAdapter):
    """The sequence consists of image rows only; the text enters through a second attention in each block.

    After the last block, the network gives the rows the shape of the token grid. So all rows are restored
    after the last block, and the output layer runs on all rows. Videos have the same class; their runs are
    dense, because their latents have several frames.
    """

    family = "Kandinsky 5 Image"
    classes = ("kandinsky5.model.Kandinsky5",)
    text_in_hidden = False
    cross_attentions = frozenset({1})
    control_lists = ()

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return network.visual_transformer_blocks

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.visual_transformer_blocks[-1]

    def patch_size(self, network: nn.Module) -> tuple[int, int, int]:
        return tuple(network.patch_size)

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """A block is called with (visual_embed, text_embed, time_embed, freqs)."""
        if gather_hidden is not None:
            args, kwargs = replace_arg(args, kwargs, 0, "visual_embed", gather_hidden)
        return replace_arg(args, kwargs, 3, "freqs", gather_positions)

    def cost_profile(self, network: nn.Module) -> CostProfile:
        blocks = network.visual_transformer_blocks
        text = sum(
            linear_weights(m) for b in blocks for m in (b.cross_attention.to_key, b.cross_attention.to_value)
        )
        width = network.model_dim * len(blocks)
        return CostProfile(
            image_weights=sum(linear_weights(block, MODULATION) for block in blocks) - text,
            text_weights=text,
            joint_width=0,
            image_width=width,
            cross_width=width,
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        return CacheProfile(image=(network.model_dim,) * len(network.visual_transformer_blocks))
