"""RASCalibrate and RASScheduler: plans measured on the user's own model, and their noise levels."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..ras_core.errors import RASError
from ..ras_core.host.calibration import SEEDS, calibrate
from ..ras_core.host.plan_files import last_change
from ..ras_core.host.plans import PLAN_SAMPLERS, PLAN_SPEEDS, planned_levels, plans_for
from ..ras_core.render.fronts import front_image
from .checks import CheckedNode, check_schedule, image_size
from .settings import CATEGORY, PlanType


class RASCalibrate(CheckedNode):
    """MODEL, conditionings, LATENT -> RAS_PLAN, and an image of the results."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASCalibrate",
            display_name="RAS Calibrate",
            category=CATEGORY,
            description="Measures where your model needs its sampling steps, tries plans for 1.5, 2, 2.5 "
            "and 3 times the speed, and saves them for this model and image size. Run it once; it takes "
            "about as long as 33 images of 28 steps for each seed.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to measure, with its LoRAs. Its RAS settings are ignored."
                ),
                io.Conditioning.Input(
                    "positive", tooltip="A typical prompt of yours; the plans are used for all prompts."
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt that you use."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of your usual size; each size has its own plans."
                ),
                io.Float.Input(
                    "cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="The guidance scale that you use.",
                ),
                io.Int.Input(
                    "seeds", default=SEEDS, min=1, max=16,
                    tooltip="Number of images to measure with, sampled as one batch. More images give more "
                    "reliable plans, but take more time and memory.",
                ),
            ],
            outputs=[
                PlanType.Output(
                    display_name="plan", tooltip="The plans of all speeds, for the input plan of other nodes."
                ),
                io.Image.Output(
                    display_name="fronts",
                    tooltip="A plot of how close the image at each speed comes to a reference of many "
                    "steps: without RAS on the simple schedule, without RAS on the best other noise levels, "
                    "and with the chosen plans.",
                ),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, latent_image, cfg, seeds) -> io.NodeOutput:
        given = {"positive": positive, "negative": negative, "latent_image": latent_image}
        cls.check(model=model, cfg=cfg, seeds=seeds, **given)
        image_size(latent_image)  # refuses other latents before minutes of sampling
        _need_entries({"positive": positive, "negative": negative})
        plans = calibrate(model, (positive, negative), latent_image["samples"], cfg, seeds)
        image = torch.from_numpy(front_image(plans))
        return io.NodeOutput(plans, image, ui=ui.PreviewImage(image, cls=cls))


class RASScheduler(CheckedNode):
    """MODEL and a speed -> SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASScheduler",
            display_name="RAS Scheduler",
            category=CATEGORY,
            description="Noise levels for a run with fewer steps, placed where your model needs them. For "
            "SamplerCustom and SamplerCustomAdvanced, with or without RAS.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to sample with. If it comes from RAS Patch Model, the noise levels "
                    "are those of the best plan; if not, those of the best plan in which every step "
                    "computes the whole image.",
                ),
                io.Combo.Input(
                    "speed", options=list(PLAN_SPEEDS), default="2x",
                    tooltip="Speed-up over a run of all steps below. 2x of 28 steps gives 14 steps, or more "
                    "if some steps of the plan compute only a part of the image.",
                ),
                io.Int.Input(
                    "steps", default=28, min=1, max=10000,
                    tooltip="Number of steps that you would use without a speed-up.",
                ),
                io.Float.Input(
                    "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="1 starts from pure noise; lower values keep the structure of the latent.",
                ),
                io.Combo.Input(
                    "sampler", options=list(PLAN_SAMPLERS), default="dpmpp_2m",
                    tooltip="The sampler that will use the noise levels; each sampler has its own.",
                ),
                PlanType.Input(
                    "plan", optional=True,
                    tooltip="From RAS Calibrate. Not connected: the plans saved for this model, or else the "
                    "noise levels of its family.",
                ),
                io.Latent.Input(
                    "latent_image", optional=True,
                    tooltip="Its size selects among the plans saved for this model. Not connected: the "
                    "newest plans.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="For a custom sampling node.")],
        )  # fmt: skip

    @classmethod
    def check_together(cls, inputs) -> None:
        check_schedule(inputs.get("steps"), inputs.get("denoise"))

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> tuple[str, int] | None:
        """Makes ComfyUI run the node again after a calibration, which changes the saved plans."""
        return last_change()

    @classmethod
    def execute(cls, model, speed, steps, denoise, sampler, plan=None, latent_image=None) -> io.NodeOutput:
        choice = {"speed": speed, "steps": steps, "denoise": denoise, "sampler": sampler}
        cls.check(model=model, plan=plan, latent_image=latent_image, **choice)
        check_schedule(steps, denoise)
        size = None if latent_image is None else image_size(latent_image)
        plans = plan or plans_for(model, size)
        levels = planned_levels(model, plans, (speed, sampler), steps, denoise)
        return io.NodeOutput(torch.tensor(levels, dtype=torch.float32))


def _need_entries(conditionings: dict[str, list]) -> None:
    """Refuse a CONDITIONING without an entry: there would be nothing to measure.

    Raises:
        RASError: the message names the input.
    """
    for name, entries in conditionings.items():
        if not entries:
            raise RASError(
                f"{name} has no entry.", "a CONDITIONING with at least one.", f"connect a prompt to {name}."
            )
