"""The adapter for Flux.1 (dev, schnell, Krea, Fill, Kontext), whose network is ComfyUI's class Flux."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .base import NO_INPUTS, Gather, GatherPositions, Inputs, ModelAdapter, replace_arg, rows_of_references
from .cost import CacheProfile, CostProfile, linear_weights

OTHER_TRAITS = ("global_modulation", "mlp_silu_act", "yak_mlp", "txt_norm", "txt_ids_dims")
"""Parameters that are unset in Flux.1. Networks of Flux.2, LongCat-Image and Ovis-Image have the same class,
but some of these parameters are set in them, which shows that they are not Flux.1."""


class FluxAdapter(ModelAdapter):
    """Text and image are two tensors in double blocks, and one sequence [text | image] in single blocks.

    All attentions have the text rows before the image rows, and keys are cached after rotation. The rows of
    Kontext's reference images follow the image rows, and are frozen. Fill's additional input
    channels add no rows.
    """

    family = "Flux.1"
    classes = ("flux.model.Flux",)
    text_in_hidden = False  # the first block is a double block, in which text is a separate tensor

    def unsupported(self, network: nn.Module) -> str | None:
        params = network.params
        traits = [name for name in OTHER_TRAITS if getattr(params, name, None)]
        if not traits and params.patch_size == 2 and params.vec_in_dim is not None:
            return None
        return "a Flux that is not Flux.1 (Flux.2, LongCat-Image or Ovis-Image, say)"

    def refusal(self, network: nn.Module, inputs: Inputs, options: Mapping[str, Any]) -> str | None:
        patches = options.get("patches", {})
        if patches.get("attn1_patch") or patches.get("attn1_output_patch"):
            return "another node patches the attentions, and its patch may rely on the rows of all tokens"
        return super().refusal(network, inputs, options)

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return [*network.double_blocks, *network.single_blocks]

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.final_layer

    def patch_size(self, network: nn.Module) -> tuple[int, int]:
        return (network.patch_size, network.patch_size)

    def frozen_rows(self, network: nn.Module, inputs: Inputs = NO_INPUTS) -> int:
        return rows_of_references(inputs, network.patch_size)

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """The network passes img, txt, vec, pe and attn_mask to a double block, all by keyword. It passes the
        same to a single block, but without txt, and with img as the positional argument.

        The attention mask of Redux, (bb, r, r), has a row for each query and a column for each key. Its rows
        are gathered; its columns are not, because the K/V cache has the keys of all tokens.
        """
        if gather_hidden is not None:
            args, kwargs = replace_arg(args, kwargs, 0, "img", gather_hidden)
        if kwargs.get("attn_mask") is not None:
            args, kwargs = replace_arg(args, kwargs, 3, "attn_mask", gather_positions)
        return replace_arg(args, kwargs, 2, "pe", lambda table: gather_positions(table, axis=2))

    def cost_profile(self, network: nn.Module) -> CostProfile:
        doubles, singles = network.double_blocks, sum(linear_weights(b, "mod") for b in network.single_blocks)
        return CostProfile(
            image_weights=singles + sum(linear_weights(m) for b in doubles for m in (b.img_attn, b.img_mlp)),
            text_weights=singles + sum(linear_weights(m) for b in doubles for m in (b.txt_attn, b.txt_mlp)),
            joint_width=network.hidden_size * len(self.main_blocks(network)),
            final_weights=linear_weights(network.final_layer),
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        return CacheProfile(joint=(network.hidden_size,) * len(self.main_blocks(network)))
