"""The adapter for Krea 2, whose network is ComfyUI's class SingleStreamDiT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .base import (
    METHOD,
    NO_INPUTS,
    Gather,
    GatherPositions,
    Inputs,
    ModelAdapter,
    replace_arg,
    rows_of_references,
)
from .cost import CacheProfile, CostProfile, linear_weights


class Krea2Adapter(ModelAdapter):
    """Text, image and reference images form one sequence, [text | image | references]. Query heads share K/V
    heads. The blocks that refine the text before the main blocks run unchanged.

    The network uses reference images only if the model or the conditioning names a method. Their rows may
    have a modulation of their own, that of timestep zero, from the row `timestep_zero_index` on. At regional
    steps, all rows are before this index, because the rows of reference images are frozen.
    """

    family = "Krea 2"
    classes = ("krea2.model.SingleStreamDiT",)
    text_in_hidden = True
    control_lists = ()

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return network.blocks

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.last

    def patch_size(self, network: nn.Module) -> tuple[int, int]:
        return (network.patch, network.patch)

    def frozen_rows(self, network: nn.Module, inputs: Inputs = NO_INPUTS) -> int:
        method = inputs.get(METHOD, network.default_ref_method)
        return 0 if method is None else rows_of_references(inputs, network.patch)

    def kv_repeat(self, network: nn.Module) -> int:
        attention = network.blocks[0].attn
        return attention.heads // attention.kvheads

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """A block is called with (x, vec, freqs, mask), where mask is always None."""
        if gather_hidden is not None:
            args, kwargs = replace_arg(args, kwargs, 0, "x", gather_hidden)
        return replace_arg(args, kwargs, 2, "freqs", lambda table: gather_positions(table, axis=2))

    def cost_profile(self, network: nn.Module) -> CostProfile:
        weights = sum(map(linear_weights, network.blocks))
        final = linear_weights(network.last)  # applied to all rows
        return CostProfile(
            image_weights=weights,
            text_weights=weights + final,
            joint_width=sum(self.cache_profile(network).joint) * self.kv_repeat(network),
            final_weights=final,
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        return CacheProfile(joint=tuple(block.attn.kvheads * block.attn.headdim for block in network.blocks))
