"""RASKSampler: ComfyUI's KSampler with RAS inside, and the trace of the run."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..ras_core.host.options import as_priority, check_batch
from ..ras_core.host.patch import last_trace
from ..ras_core.run.trace import Trace
from .checks import check_schedule
from .retired import ACCEPT_ALL, HIDDEN, RefusesRetired
from .settings import CATEGORY, TraceType, check_queued, kept_plans, patched, settings_inputs, speed_input

SAMPLING = ("seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "denoise")
"""Inputs that are passed to ComfyUI's sampling function under the same names."""


class RASKSampler(RefusesRetired):
    """The inputs of KSampler plus those of RASPatchModel -> LATENT and RAS_TRACE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASKSampler",
            display_name="RAS KSampler",
            category=CATEGORY,
            description="KSampler with region-adaptive sampling; also outputs a trace of what each step "
            "computed.",
            inputs=[*sampler_inputs(), *settings_inputs()],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The denoised latent."),
                TraceType.Output(
                    display_name="trace", tooltip="What each step computed, for RAS Mask Preview."
                ),
            ],
            hidden=[*HIDDEN],
            **ACCEPT_ALL,
        )

    @classmethod
    def check_together(cls, inputs) -> None:
        check_queued(inputs)

    @classmethod
    def fingerprint_inputs(cls, speed=None, **inputs) -> tuple[str, int] | None:
        """Runs again after a calibration, which changes the plans that are kept."""
        return kept_plans(speed)

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        cls.refuse_in_prompt()
        cls.check(**inputs)
        return io.NodeOutput(*sample_with_trace(**inputs))


def sample_with_trace(model, latent_image, **inputs) -> tuple[dict, Trace]:
    """Sample with KSampler's own function, so that previews, noise and masks behave as in KSampler.

    Args:
        model, latent_image: MODEL and LATENT.
        inputs: the other values of `sampler_inputs` and `settings_inputs`, by name.

    Returns:
        LATENT and the run's trace.

    Raises:
        RASError: values that exclude each other.
    """
    from nodes import common_ksampler

    check_schedule(inputs["steps"], inputs["denoise"])
    check_batch(as_priority(inputs.get("priority")), latent_image["samples"].shape[0])
    ras_model = patched(model, inputs)
    sampling = {name: inputs[name] for name in SAMPLING}
    (latent,) = common_ksampler(ras_model, latent=latent_image, **sampling)
    return latent, last_trace(ras_model, Trace.empty("the sampler had no step to run"))


def sampler_inputs() -> list[io.Input]:
    """KSampler's inputs, in KSampler's order, with the speed after the model."""
    return [
        io.Model.Input("model", tooltip="The model to sample with: SD3, SD3.5, Lumina 2, Z-Image, Flux.1."),
        speed_input(),
        io.Int.Input(
            "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
            tooltip="Determines the noise to start from.",
        ),
        io.Int.Input("steps", default=28, min=1, max=10000, tooltip="Number of steps without RAS; a speed "
            "other than custom may take fewer."),
        io.Float.Input(
            "cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01,
            tooltip="Classifier-free guidance: higher follows the prompt more closely.",
        ),
        io.Combo.Input(
            "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="dpmpp_2m",
            tooltip="The sampling algorithm; all of them work with RAS, euler and dpmpp_2m best.",
        ),
        io.Combo.Input(
            "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="simple",
            tooltip="How noise levels are spread over the steps. With a speed other than custom, euler and "
            "dpmpp_2m use the noise levels of the plan instead.",
        ),
        io.Conditioning.Input("positive", tooltip="What the image should show."),
        io.Conditioning.Input("negative", tooltip="What the image should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise; it sets the image's size."),
        io.Float.Input(
            "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
            tooltip="1 starts from pure noise; lower values keep the structure of the latent.",
        ),
    ]  # fmt: skip
