"""The adapter for Qwen-Image and Qwen-Image-Edit, whose network has its own class in ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .base import NO_INPUTS, Gather, GatherPositions, Inputs, ModelAdapter, replace_arg, rows_of_references
from .cost import CacheProfile, CostProfile, linear_weights


class QwenImageAdapter(ModelAdapter):
    """Text and image are two tensors in all blocks; attentions have the text rows before the image rows. The
    blocks make the attention mask, which masks padding in the text, from the rows that they receive.

    The rows of Qwen-Image-Edit's reference images follow the image rows. In the version of 2511, they have a
    modulation of their own, that of timestep zero: the blocks split their rows at `timestep_zero_index`,
    which is the number of image tokens. At regional steps, all rows are before this index, because the rows
    of reference images are frozen; so the index need not be changed.

    Qwen-Image-Layered has latents with several frames (layers); its runs are dense.
    """

    family = "Qwen-Image"
    classes = ("qwen_image.model.QwenImageTransformer2DModel",)
    text_in_hidden = False
    control_lists = ("input",)
    builds_masks = True

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return network.transformer_blocks

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.proj_out

    def patch_size(self, network: nn.Module) -> tuple[int, int]:
        return (network.patch_size, network.patch_size)

    def frozen_rows(self, network: nn.Module, inputs: Inputs = NO_INPUTS) -> int:
        return rows_of_references(inputs, network.patch_size)

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """All inputs are passed by keyword."""
        if gather_hidden is not None:
            args, kwargs = replace_arg(args, kwargs, 0, "hidden_states", gather_hidden)
        return replace_arg(args, kwargs, 4, "image_rotary_emb", lambda table: gather_positions(table, axis=2))

    def cost_profile(self, network: nn.Module) -> CostProfile:
        blocks = network.transformer_blocks
        attentions = sum(linear_weights(block.attn) for block in blocks) // 2  # of one stream; both are alike
        return CostProfile(
            image_weights=attentions + sum(linear_weights(block.img_mlp) for block in blocks),
            text_weights=attentions + sum(linear_weights(block.txt_mlp) for block in blocks),
            joint_width=network.inner_dim * len(blocks),
            final_weights=linear_weights(network.proj_out),
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        return CacheProfile(joint=(network.inner_dim,) * len(network.transformer_blocks))
