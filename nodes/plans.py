"""RASCalibrate measures plans on the user's own model; RASScheduler outputs the noise levels of a plan."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..ras_core.errors import RASError
from ..ras_core.host.calibration import SEEDS, calibrate
from ..ras_core.host.plan_files import last_change
from ..ras_core.host.plans import PLAN_SAMPLERS, PLAN_SPEEDS, connected_plans, planned_levels, plans_for
from ..ras_core.render.fronts import front_image
from .checks import CheckedNode, check_schedule, image_size
from .model_source import source_in_prompt
from .retired import HIDDEN
from .settings import CATEGORY, PlanType, found_by


class RASCalibrate(CheckedNode):
    """Takes MODEL, conditionings and LATENT; outputs RAS_PLAN and a plot of the results."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASCalibrate",
            display_name="RAS Calibrate",
            category=CATEGORY,
            **found_by("calibrate", "measure", "plan", "schedule"),
            description="Measures at which noise levels your model needs the most sampling steps, tries "
            "plans for speed-ups of 1.5, 2, 2.5 and 3, and saves the best plans for this model and image "
            "size. Run this node once. It takes about as long as sampling 21 images with 28 steps, times "
            "the number of images that it measures with (input seeds).",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to measure, with its LoRAs. If it comes from RAS Patch "
                    "Model, the settings of that node are ignored."
                ),
                io.Conditioning.Input(
                    "positive", tooltip="A typical prompt of yours, used for measuring. The plans that are "
                    "saved apply to all prompts."
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt that you usually use."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of your usual image size. Plans are saved for "
                    "each image size separately."
                ),
                io.Float.Input(
                    "cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01,
                    tooltip="The guidance scale that you usually use.",
                ),
                io.Int.Input(
                    "seeds", default=SEEDS, min=1, max=16,
                    tooltip="The number of images to measure with, which are sampled as one batch. More "
                    "images give more reliable plans, but take more time and memory.",
                ),
            ],
            outputs=[
                PlanType.Output(
                    display_name="plan", tooltip="One plan for each speed. Connect this output to the plan "
                    "input of other RAS nodes."
                ),
                io.Image.Output(
                    display_name="fronts",
                    tooltip="A plot that shows, for each speed, how close the result of a run is to the "
                    "result of a reference run of many steps, in dB. The first curve is for runs without "
                    "RAS on the simple schedule, the second for runs without RAS on those other noise "
                    "levels that gave the closest results, and the third for runs with the chosen plans.",
                ),
            ],
            hidden=[*HIDDEN],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, latent_image, cfg, seeds) -> io.NodeOutput:
        given = {"positive": positive, "negative": negative, "latent_image": latent_image}
        cls.check(model=model, cfg=cfg, seeds=seeds, **given)
        image_size(latent_image)  # refuses other latents before minutes of sampling
        _need_entries({"positive": positive, "negative": negative})
        samples, source = latent_image["samples"], cls._source()
        plans = calibrate(model, (positive, negative), samples, cfg, seeds, source)
        image = torch.from_numpy(front_image(plans))
        return io.NodeOutput(plans, image, ui=ui.PreviewImage(image, cls=cls))

    @classmethod
    def _source(cls) -> str:
        """Identifies the nodes from which the model comes; empty if ComfyUI does not tell."""
        if cls.hidden is None or cls.hidden.dynprompt is None:
            return ""
        return source_in_prompt(cls.hidden.dynprompt.get_node, cls.hidden.unique_id)


class RASScheduler(CheckedNode):
    """Takes MODEL and a speed; outputs SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASScheduler",
            display_name="RAS Scheduler",
            category=CATEGORY,
            **found_by("sigmas", "fewer steps", "speed"),
            description="Outputs the noise levels of a run with fewer steps. They are closer together where "
            "your model needs more steps. For SamplerCustom and SamplerCustomAdvanced, with or without RAS.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to sample with. If the model comes from RAS Patch Model, the noise "
                    "levels are those of the best plan for the speed and the sampler that are set here. "
                    "With any other model, only plans in which every step computes the whole image are "
                    "considered.",
                ),
                io.Combo.Input(
                    "speed", options=list(PLAN_SPEEDS), default="2x",
                    tooltip="The speed-up over a run without RAS that has as many steps as the input steps "
                    "says. Example: with 2x and 28 steps, you get the noise levels of a run of 14 steps. If "
                    "some steps of the plan compute only a part of the image, the run has more than 14 "
                    "steps.",
                ),
                io.Int.Input(
                    "steps", default=28, min=1, max=10000,
                    tooltip="The number of steps that you would use without RAS and without this node.",
                ),
                io.Float.Input(
                    "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="With 1, sampling starts from pure noise; lower values keep the structure of "
                    "the latent.",
                ),
                io.Combo.Input(
                    "sampler", options=list(PLAN_SAMPLERS), default="dpmpp_2m",
                    tooltip="The sampler that will use the noise levels. The plans of both samplers are the "
                    "same.",
                ),
                PlanType.Input(
                    "plan", optional=True,
                    tooltip="The plans made by RAS Calibrate; the inputs speed and sampler select one of "
                    "them. If nothing is connected, the plans that were saved for this model are used, and "
                    "if there are none, the plans of the model's family.",
                ),
                io.Latent.Input(
                    "latent_image", optional=True,
                    tooltip="The latent that you will sample. If the input plan is not connected, the plans "
                    "that were saved for this model and the size of this latent are used. If nothing is "
                    "connected here, the plans that were saved last are used.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="The noise levels, for a custom "
            "sampling node.")],
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
        plans = connected_plans(plan, model) if plan else plans_for(model, size)
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
