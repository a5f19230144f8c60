"""RASCompare: dense and RAS with the same seed, side by side."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..ras_core.render.comparison import comparison_image, difference
from ..ras_core.render.masks import summary_image
from ..ras_core.run.trace import Trace
from .sampler import sample_with_trace, sampler_inputs
from .settings import CATEGORY, settings_inputs


class RASCompare(io.ComfyNode):
    """The inputs of RASKSampler and a VAE -> both pictures, their difference, and what RAS did."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASCompare",
            display_name="RAS Compare",
            category=CATEGORY,
            description="Makes the same picture dense and with RAS and shows both: difference, PSNR, SSIM, "
            "times and what each step computed. Use it to find settings you like.",
            inputs=[
                *sampler_inputs(),
                *settings_inputs(),
                io.Vae.Input("vae", tooltip="Decodes both latents."),
            ],
            outputs=[
                io.Image.Output(display_name="dense", tooltip="The picture without RAS."),
                io.Image.Output(display_name="ras", tooltip="The picture with RAS."),
                io.Image.Output(display_name="difference", tooltip="Their absolute difference, times four."),
                io.Image.Output(
                    display_name="comparison", tooltip="Both, their difference, and the numbers."
                ),
                io.Image.Output(display_name="summary", tooltip="What each step of the RAS run computed."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, vae, **inputs) -> io.NodeOutput:
        sample_with_trace(
            **{**inputs, "steps": 1, "sample_ratio": 1.0}
        )  # kernels are tuned at the first call
        dense, dense_trace = _picture(vae, {**inputs, "sample_ratio": 1.0, "ratio_end": 0.0})
        ras, ras_trace = _picture(vae, inputs)
        comparison = comparison_image(dense[0], ras[0], (dense_trace, ras_trace))
        summary = summary_image(ras_trace, ras)
        images = [
            torch.from_numpy(image) for image in (dense, ras, difference(dense, ras), comparison, summary)
        ]
        shown = ui.PreviewImage(images[3], cls=cls).as_dict()
        return io.NodeOutput(*images, ui={**shown, "ras": [ras_trace.as_dict()]})


def _picture(vae, inputs: dict) -> tuple[np.ndarray, Trace]:
    """(b, H, W, 3) float32 in [0, 1] and the run's trace."""
    latent, trace = sample_with_trace(**inputs)
    decoded = vae.decode(latent["samples"])
    return np.clip(decoded.reshape(-1, *decoded.shape[-3:]).float().cpu().numpy(), 0, 1), trace
