"""The adapter for Anima and Cosmos Predict2, whose networks are ComfyUI's classes Anima and MiniTrainDIT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .base import Gather, GatherPositions, ModelAdapter, replace_arg
from .cost import CacheProfile, CostProfile, linear_weights

MODULATION = "adaln_modulation"


class CosmosPredict2Adapter(ModelAdapter):
    """The sequence consists of image rows only; the text enters through a second attention in each block. The
    hidden rows keep the shape of the token grid, (bb, t, h, w, d).
    """

    family = "Anima / Cosmos Predict2"
    classes = ("anima.model.Anima", "cosmos.predict2.MiniTrainDIT")
    text_in_hidden = False
    cross_attentions = frozenset({1})

    def unsupported(self, network: nn.Module) -> str | None:
        if getattr(network, "extra_per_block_abs_pos_emb", False):
            return "a Cosmos Predict2 that adds positions to the rows in each block"
        return None

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return network.blocks

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.final_layer

    def patch_size(self, network: nn.Module) -> tuple[int, int, int]:
        return (network.patch_temporal, network.patch_spatial, network.patch_spatial)

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """A block is called with (x, emb, text) and, by keyword, `rope_emb_L_1_1_D` and other inputs."""
        if gather_hidden is not None:
            args, kwargs = replace_arg(args, kwargs, 0, "x_B_T_H_W_D", gather_hidden)
        return replace_arg(args, kwargs, 3, "rope_emb_L_1_1_D", gather_positions)

    def cost_profile(self, network: nn.Module) -> CostProfile:
        blocks = network.blocks
        text = sum(linear_weights(m) for b in blocks for m in (b.cross_attn.k_proj, b.cross_attn.v_proj))
        width = network.model_channels * len(blocks)
        return CostProfile(
            image_weights=sum(linear_weights(block, MODULATION) for block in blocks) - text,
            text_weights=text,
            joint_width=0,
            image_width=width,
            cross_width=width,
            final_weights=linear_weights(network.final_layer, MODULATION),
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        return CacheProfile(image=(network.model_channels,) * len(network.blocks))
