"""The adapter for HunyuanImage 2.1, whose network is ComfyUI's class HunyuanVideo with other parameters."""

from __future__ import annotations

from torch import nn

from .base import NO_INPUTS, Gather, GatherPositions, Inputs, replace_arg
from .flux import FluxAdapter


class HunyuanImageAdapter(FluxAdapter):
    """The blocks are those of Flux.1. The text is refined before the blocks, by a small network that runs
    unchanged. If the prompt quotes a text to be written into the image, rows of a second text encoder are
    appended; they are not known when the K/V cache is planned. The attention mask, (1, 1, r), has a
    column for each key and the same row for all queries, so it fits regional calls as it is.
    """

    family = "HunyuanImage 2.1"
    classes = ("hunyuan_video.model.HunyuanVideo",)

    def unsupported(self, network: nn.Module) -> str | None:
        if len(network.patch_size) != 2:
            return "a HunyuanVideo"
        if getattr(network.double_blocks[0], "flipped_img_txt", False):
            return "a HunyuanImage of an older ComfyUI, in which the text follows the image"
        return None

    def patch_size(self, network: nn.Module) -> tuple[int, int]:
        return tuple(network.patch_size)

    def frozen_rows(self, network: nn.Module, inputs: Inputs = NO_INPUTS) -> int:
        return 0

    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """As in Flux.1, except for the mask."""
        if gather_hidden is not None:
            args, kwargs = replace_arg(args, kwargs, 0, "img", gather_hidden)
        return replace_arg(args, kwargs, 2, "pe", lambda table: gather_positions(table, axis=2))
