"""The adapter for AuraFlow, whose network is ComfyUI's class MMDiT of the module aura."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .base import Gather, GatherPositions, ModelAdapter, replace_arg
from .cost import CacheProfile, CostProfile, linear_weights


class AuraFlowAdapter(ModelAdapter):
    """Text and image are two tensors in double layers, and one sequence [text | image] in single layers. The
    network puts learned rows, the register tokens, before the text. The positions are added to the image rows
    before the layers, so no layer receives a position table.
    """

    family = "AuraFlow"
    classes = ("aura.mmdit.MMDiT",)
    text_in_hidden = False  # the first layer is a double layer, in which text is a separate tensor
    control_lists = ()
    capture_obstacle = "each call of the network copies numbers from main memory to the GPU"

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return [*network.double_layers, *network.single_layers]

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.final_linear

    def patch_size(self, network: nn.Module) -> tuple[int, int]:
        return (network.patch_size, network.patch_size)

    def text_rows(self, network: nn.Module, n_text: int) -> int:
        return n_text + network.register_tokens.shape[1]

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """A double layer is called with (c, x, global_cond), a single layer with (cx, global_cond)."""
        if gather_hidden is None:
            return args, kwargs
        position, name = (1, "x") if len(args) == 3 else (0, "cx")
        return replace_arg(args, kwargs, position, name, gather_hidden)

    def cost_profile(self, network: nn.Module) -> CostProfile:
        singles = sum(linear_weights(layer, "modCX") for layer in network.single_layers)
        doubles = network.double_layers
        text = sum(linear_weights(layer.mlpC) + linear_weights(layer.attn) // 2 for layer in doubles)
        image = sum(linear_weights(layer.mlpX) + linear_weights(layer.attn) // 2 for layer in doubles)
        return CostProfile(
            image_weights=singles + image,
            text_weights=singles + text,
            joint_width=sum(self.cache_profile(network).joint),
            final_weights=linear_weights(network.final_linear),
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        attentions = [layer.attn for layer in self.main_blocks(network)]
        return CacheProfile(joint=tuple(each.n_heads * each.head_dim for each in attentions))
