"""RASMaskPreview: shows, as images, which regions each step computed."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..ras_core.render.frames import mask_frames
from ..ras_core.render.masks import summary_image
from ..ras_core.run.trace import Trace
from .checks import CheckedNode
from .settings import CATEGORY, TraceType, found_by

NO_TRACE = "there is no trace: the node that makes it is bypassed, muted or not connected"


class RASMaskPreview(CheckedNode):
    """Takes RAS_TRACE; outputs one image per step and a summary image, and shows the summary in the node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASMaskPreview",
            display_name="RAS Mask Preview",
            category=CATEGORY,
            **found_by("mask", "region", "summary"),
            description="Shows which regions each step of a run computed: one image for each step, and a "
            "summary image of the whole run. If there was no RAS in the run, the images say so.",
            inputs=[
                TraceType.Input("trace", optional=True, tooltip="The trace of the run to show, from RAS "
                "KSampler or RAS Trace."),
                io.Image.Input(
                    "images", optional=True, tooltip="The finished image, which is shown under the masks. "
                    "If nothing is connected, the masks are drawn on grey.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="One image for each step. Its caption "
                "says whether the step is dense (computes the whole image) or regional."),
                io.Image.Output(
                    display_name="summary", tooltip="An image that shows how often each region was "
                    "computed, and the share of the image that each step computed. Steps are counted from "
                    "1."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, trace=None, images=None) -> io.NodeOutput:
        cls.check(trace=trace, images=images)
        trace = trace or Trace.empty(NO_TRACE)
        arrays = None if images is None else images.float().cpu().numpy()
        frames = _to_image(mask_frames(trace, arrays))
        summary = _to_image(summary_image(trace, arrays))
        shown = ui.PreviewImage(summary, cls=cls).as_dict()
        return io.NodeOutput(frames, summary, ui={**shown, "ras": [trace.as_dict()]})


def _to_image(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames))
