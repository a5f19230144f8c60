"""RASCompare: samples the same image without RAS (all steps dense) and with RAS, and compares the two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..ras_core.config import Window
from ..ras_core.render.comparison import comparison_image, difference
from ..ras_core.render.masks import summary_image
from ..ras_core.run.trace import Trace
from .retired import ACCEPT_ALL, HIDDEN
from .sampler import sample_with_trace, sampler_inputs
from .settings import CATEGORY, CUSTOM, SettingsNode, chosen_settings, found_by, settings_inputs


class RASCompare(SettingsNode):
    """Takes the inputs of RASKSampler and a VAE; outputs both images, their difference and a summary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASCompare",
            display_name="RAS Compare",
            category=CATEGORY,
            **found_by("compare", "before after", "speed", "quality", "benchmark"),
            description="Samples the same image without and with RAS. Shows both images, their difference, "
            "PSNR and SSIM between them, the times of both runs, and what each step computed. Use this node "
            "to find settings you like.",
            inputs=[
                *sampler_inputs(),
                *settings_inputs(),
                io.Vae.Input("vae", tooltip="The VAE that decodes the latents of both runs."),
            ],
            outputs=[
                io.Image.Output(display_name="dense", tooltip="The image without RAS."),
                io.Image.Output(display_name="ras", tooltip="The image with RAS."),
                io.Image.Output(
                    display_name="difference", tooltip="The absolute difference of both images, times four."
                ),
                io.Image.Output(
                    display_name="comparison",
                    tooltip="Both images and their difference, with times, PSNR and SSIM.",
                ),
                io.Image.Output(
                    display_name="summary", tooltip="What each step of the run with RAS computed."
                ),
            ],
            hidden=[*HIDDEN],
            is_output_node=True,
            **ACCEPT_ALL,
        )

    @classmethod
    def execute(cls, vae, **inputs) -> io.NodeOutput:
        cls.refuse_in_prompt()
        chosen_settings(inputs)  # refuses wrong settings before minutes of sampling
        cls.check(vae=vae, **inputs)
        sample_with_trace(**{**_dense(inputs), "steps": 1})  # warm-up: the first run tunes kernels
        dense, dense_trace = _image(vae, _dense(inputs))
        ras, ras_trace = _image(vae, {**inputs, "dense": dense_trace})
        comparison = comparison_image(dense[0], ras[0], (dense_trace, ras_trace))
        summary = summary_image(ras_trace, ras)
        images = [
            torch.from_numpy(image) for image in (dense, ras, difference(dense, ras), comparison, summary)
        ]
        shown = ui.PreviewImage(images[3], cls=cls).as_dict()
        return io.NodeOutput(*images, ui={**shown, "ras": [ras_trace.as_dict()]})


def _dense(inputs: dict) -> dict:
    """The inputs of the run without RAS, in which all steps are dense.

    Of PaperSettings, only `ratio_end` matters to such a run: unless it is 0, it makes steps regional.
    """
    paper = inputs.get("paper")
    dense = {"speed": CUSTOM, "plan": None, "sample_ratio": 1.0, **vars(Window())}
    return {**inputs, **dense, "paper": paper and replace(paper, ratio_end=0.0)}


def _image(vae, inputs: dict) -> tuple[np.ndarray, Trace]:
    """Sample and decode one run. Returns its images, (b, H, W, 3) float32 in [0, 1], and its trace."""
    latent, trace = sample_with_trace(**inputs)
    decoded = vae.decode(latent["samples"])
    return np.clip(decoded.reshape(-1, *decoded.shape[-3:]).float().cpu().numpy(), 0, 1), trace
