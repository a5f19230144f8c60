"""The adapter for Lumina-Image-2.0 and Z-Image, whose network is ComfyUI's class NextDiT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .base import NO_INPUTS, Gather, GatherPositions, Inputs, ModelAdapter, replace_arg
from .cost import CacheProfile, CostProfile, linear_weights


class NextDiTAdapter(ModelAdapter):
    """Caption and image rows form one sequence, [caption | image | padding].

    Two refiner blocks for the image and two for the caption precede the main layers. The refiner blocks for
    the image do a fourteenth of the network's work. Like the main layers, they run on active tokens only. If
    they ran on all tokens, the PSNR of images with RAS would be 0.1 dB higher. The refiner blocks for the
    caption are small and run unchanged. Every layer receives a table of rotary positions, which is gathered
    once per call of the model.

    Z-Image pads the image rows to a multiple of `pad_tokens_multiple`. Padding rows are processed at every
    step, like text rows.
    """

    family = "Lumina-Image-2.0 / Z-Image (NextDiT)"
    classes = ("lumina.model.NextDiT",)
    text_in_hidden = True

    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return network.layers

    def refiner_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        return network.noise_refiner

    def final_layer(self, network: nn.Module) -> nn.Module:
        return network.final_layer

    def patch_size(self, network: nn.Module) -> tuple[int, int]:
        return (network.patch_size, network.patch_size)

    def suffix_rows(self, network: nn.Module, n_tokens: int, inputs: Inputs = NO_INPUTS) -> int:
        multiple = getattr(network, "pad_tokens_multiple", None)
        return -n_tokens % multiple if multiple else 0

    def text_rows(self, network: nn.Module, n_text: int) -> int:
        return n_text + self.suffix_rows(network, n_text)  # captions are padded to the same multiple

    def kv_repeat(self, network: nn.Module) -> int:
        return network.layers[0].attention.n_rep

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """A layer is called with (x, x_mask, freqs_cis, adaln_input)."""
        if gather_hidden is not None:
            args, kwargs = replace_arg(args, kwargs, 0, "x", gather_hidden)
        return replace_arg(args, kwargs, 2, "freqs_cis", gather_positions)

    def cost_profile(self, network: nn.Module) -> CostProfile:
        weights = sum(linear_weights(layer) for layer in network.layers)
        return CostProfile(
            image_weights=weights + sum(linear_weights(layer) for layer in network.noise_refiner),
            text_weights=weights,
            joint_width=network.dim * len(network.layers),
            image_width=network.dim * len(network.noise_refiner),
            final_weights=linear_weights(network.final_layer),
        )

    def cache_profile(self, network: nn.Module) -> CacheProfile:
        width = network.dim // self.kv_repeat(network)
        return CacheProfile(joint=(width,) * len(network.layers), image=(width,) * len(network.noise_refiner))
