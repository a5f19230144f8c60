"""The adapter for SD3, SD3.5 large and SD3.5 medium, whose network is ComfyUI's class MMDiT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .base import Gather, GatherPositions, ModelAdapter, replace_arg
from .cost import CacheProfile, CostProfile, linear_weights


class SD3Adapter(ModelAdapter):
    """Text rows and image rows are separate tensors; a block's attention joins them, with the text first.

    Some blocks of SD3.5 medium have a second attention, among image tokens only.
    """

    family = "SD3 / SD3.5 (MMDiT)"
    classes = ("diffusionmodules.mmdit.OpenAISignatureMMDITWrapper", "diffusionmodules.mmdit.MMDiT")
    text_in_hidden = False
    runs_wrappers = False
    control_lists = ("output",)

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return network.joint_blocks

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.final_layer

    def patch_size(self, network: nn.Module) -> tuple[int, int]:
        return (network.patch_size, network.patch_size)

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        if gather_hidden is None:
            return args, kwargs
        return replace_arg(args, kwargs, 1, "x", gather_hidden)

    def cost_profile(self, network: nn.Module) -> CostProfile:
        blocks = list(network.joint_blocks)
        return CostProfile(
            image_weights=sum(linear_weights(block.x_block) for block in blocks),
            text_weights=sum(linear_weights(block.context_block) for block in blocks),
            joint_width=network.hidden_size * len(blocks),
            image_width=network.hidden_size * sum(hasattr(block.x_block, "attn2") for block in blocks),
            final_weights=linear_weights(network.final_layer),
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        blocks = list(network.joint_blocks)
        second = [block for block in blocks if hasattr(block.x_block, "attn2")]
        width = network.hidden_size
        return CacheProfile(joint=(width,) * len(blocks), image=(width,) * len(second))
