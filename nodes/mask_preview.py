"""RASMaskPreview: which regions each step computed, as images."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..ras_core.render.frames import mask_frames
from ..ras_core.render.masks import summary_image
from .checks import CheckedNode
from .settings import CATEGORY, TraceType


class RASMaskPreview(CheckedNode):
    """RAS_TRACE -> one frame per step, and a summary, which the node shows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASMaskPreview",
            display_name="RAS Mask Preview",
            category=CATEGORY,
            description="Shows which regions each step computed, with one frame per step and a summary of "
            "the run.",
            inputs=[
                TraceType.Input("trace", tooltip="From RAS KSampler or RAS Trace."),
                io.Image.Input(
                    "images", optional=True, tooltip="The finished image, shown under the masks. Without "
                    "it, the masks are drawn on grey.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="One frame per step; steps that compute "
                    "the whole image (dense) are marked."),
                io.Image.Output(
                    display_name="summary", tooltip="How often each region was computed, and the share of "
                    "the image that each step computed."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, trace, images=None) -> io.NodeOutput:
        cls.check(trace=trace, images=images)
        arrays = None if images is None else images.float().cpu().numpy()
        frames = _to_image(mask_frames(trace, arrays))
        summary = _to_image(summary_image(trace, arrays))
        shown = ui.PreviewImage(summary, cls=cls).as_dict()
        return io.NodeOutput(frames, summary, ui={**shown, "ras": [trace.as_dict()]})


def _to_image(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames))
