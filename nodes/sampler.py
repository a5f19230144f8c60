"""RASKSampler: ComfyUI's KSampler with RAS, which also outputs the trace of the run."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..ras_core.host.options import as_priority, check_batch
from ..ras_core.host.outer_sample import Settings
from ..ras_core.host.patch import compare_with, last_trace, patch_model
from ..ras_core.run.trace import Trace
from .checks import check_schedule
from .live import open_view
from .retired import ACCEPT_ALL, HIDDEN
from .settings import (
    CATEGORY,
    FASTER,
    SettingsNode,
    TraceType,
    found_by,
    patched,
    settings_inputs,
    speed_input,
)

SAMPLING = ("seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "denoise")
"""Names of the inputs that are passed to ComfyUI's `common_ksampler` under the same names."""

SCHEDULER = (
    "How noise levels are spread over the steps. With a speed other than custom, euler and dpmpp_2m ignore "
    "this input: they use the noise levels of the plan for that speed. With denoise below 1, this input "
    "still determines the first noise level."
)
"""The tooltip of RASKSampler's input `scheduler`."""


class RASKSampler(SettingsNode):
    """Takes the inputs of KSampler and of RASPatchModel; outputs LATENT and RAS_TRACE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASKSampler",
            display_name="RAS KSampler",
            category=CATEGORY,
            **found_by(*FASTER),
            description="A faster KSampler: with region-adaptive sampling (RAS), many steps compute only "
            "those regions of the image that have probably changed most since they were last computed. The "
            "node also outputs the trace of the run, which says what each step computed.",
            inputs=[*sampler_inputs(SCHEDULER), *settings_inputs()],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The denoised latent."),
                TraceType.Output(
                    display_name="trace",
                    tooltip="The trace of the run (what each step computed), for RAS Mask Preview.",
                ),
            ],
            hidden=[*HIDDEN],
            **ACCEPT_ALL,
        )

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        cls.refuse_in_prompt()
        cls.check(**inputs)
        return io.NodeOutput(*sample_with_trace(**inputs))


def sample_with_trace(
    model, latent_image, *, dense: Trace | None = None, settings: Settings | None = None, **inputs
) -> tuple[dict, Trace]:
    """Sample with the function that ComfyUI's KSampler calls, so that previews, noise and masks behave as in
    KSampler.

    Args:
        model, latent_image: MODEL and LATENT.
        dense: the trace of a dense run of the same image, to which the reported speed-ups are then relative;
            or None.
        settings: the run's settings, instead of those that the inputs give.
        inputs: values of all other inputs in `sampler_inputs` and `settings_inputs`, by name.

    Returns:
        LATENT and the run's trace.

    Raises:
        RASError: values that exclude each other.
    """
    from nodes import common_ksampler

    check_schedule(inputs["steps"], inputs["denoise"])
    check_batch(as_priority(inputs.get("priority")), latent_image["samples"].shape[0])
    ras_model = _patched(model, inputs, settings)
    if dense is not None:
        compare_with(ras_model, dense)
    sampling = {name: inputs[name] for name in SAMPLING}
    (latent,) = common_ksampler(ras_model, latent=latent_image, **sampling)
    return latent, last_trace(ras_model, Trace.empty("the sampler had no step to run"))


def _patched(model, inputs: dict, settings: Settings | None):
    if settings is None:
        return patched(model, inputs)
    return patch_model(model, settings, view_factory=open_view)


def sampler_inputs(scheduler: str) -> list[io.Input]:
    """KSampler's inputs in KSampler's order, with the input `speed` inserted after `model`.

    Args:
        scheduler: the tooltip of the input `scheduler`.
    """
    return [
        io.Model.Input("model", tooltip="The model to sample with. The detailed help "
        "lists the supported models."),
        speed_input(),
        io.Int.Input(
            "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
            tooltip="Determines the noise from which sampling starts.",
        ),
        io.Int.Input("steps", default=28, min=1, max=10000, tooltip="The number of steps of a run without "
        "RAS. With a speed other than custom, the run with RAS may have fewer steps."),
        io.Float.Input(
            "cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01,
            tooltip="The scale of classifier-free guidance: with a higher value, the image follows the "
            "prompt more closely.",
        ),
        io.Combo.Input(
            "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="dpmpp_2m",
            tooltip="The sampling algorithm. All sampling algorithms work with RAS; euler and dpmpp_2m work "
            "best.",
        ),
        io.Combo.Input(
            "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="simple",
            tooltip=scheduler,
        ),
        io.Conditioning.Input("positive", tooltip="What the image should show."),
        io.Conditioning.Input("negative", tooltip="What the image should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise; it sets the image's size."),
        io.Float.Input(
            "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
            tooltip="With 1, sampling starts from pure noise; lower values keep the structure of the "
            "latent.",
        ),
    ]  # fmt: skip
