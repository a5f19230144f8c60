"""The adapter for HiDream I1, whose network has its own class in ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .base import ALL, NO_INPUTS, Gather, GatherPositions, Inputs, ModelAdapter, replace_arg
from .cost import CacheProfile, CostProfile, linear_weights


class HiDreamAdapter(ModelAdapter):
    """The image rows precede the text rows in all tensors. Each block appends other rows of the text encoder
    Llama, and drops them afterwards. In the feed-forward layers for image rows, a few of several experts
    process each row; how many rows an expert gets depends on the values of the rows.
    """

    family = "HiDream I1"
    classes = ("hidream.model.HiDreamImageTransformer2DModel",)
    text_in_hidden = False
    control_lists = ()
    capture_obstacle = "shapes inside the network depend on the values of rows"

    def refusal(self, network: nn.Module, inputs: Inputs, options: Mapping[str, Any]) -> str | None:
        if inputs.get("image_cond") is not None:
            return "HiDream E1 puts the image to be edited beside the new image, as tokens of the same grid"
        return super().refusal(network, inputs, options)

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return [*network.double_stream_blocks, *network.single_stream_blocks]

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.final_layer

    def patch_size(self, network: nn.Module) -> tuple[int, int]:
        return (network.patch_size, network.patch_size)

    def suffix_rows(self, network: nn.Module, n_tokens: int, inputs: Inputs = NO_INPUTS) -> int:
        return ALL

    def text_rows(self, network: nn.Module, n_text: int) -> int:
        return 3 * n_text  # the text of T5, and that of Llama twice; ComfyUI pads both to the same number

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """All inputs are passed by keyword."""
        if gather_hidden is not None:
            args, kwargs = replace_arg(args, kwargs, 0, "image_tokens", gather_hidden)
        return replace_arg(args, kwargs, 4, "rope", gather_positions)

    def cost_profile(self, network: nn.Module) -> CostProfile:
        doubles = [each.block for each in network.double_stream_blocks]
        singles = [each.block for each in network.single_stream_blocks]
        one_stream = sum(linear_weights(block.attn1) + _experts_of_a_row(block.ff_i) for block in singles)
        image = sum(linear_weights(block.attn1) // 2 + _experts_of_a_row(block.ff_i) for block in doubles)
        text = sum(linear_weights(block.attn1) // 2 + linear_weights(block.ff_t) for block in doubles)
        return CostProfile(
            image_weights=one_stream + image,
            text_weights=one_stream + text,
            joint_width=sum(self.cache_profile(network).joint),
            final_weights=linear_weights(network.final_layer),
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        return CacheProfile(joint=(network.inner_dim,) * len(self.main_blocks(network)))


def _experts_of_a_row(layer: nn.Module) -> int:
    """Number of linear weights that are applied to a row in a feed-forward layer, which may have experts."""
    if not hasattr(layer, "experts"):
        return linear_weights(layer)
    unused = layer.experts[: len(layer.experts) - layer.num_activated_experts]
    return linear_weights(layer) - sum(map(linear_weights, unused)) + layer.gate.weight.numel()
