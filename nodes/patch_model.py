"""RASPatchModel: RAS for any sampler node."""

from __future__ import annotations

from comfy_api.latest import io

from .retired import ACCEPT_ALL, HIDDEN, RefusesRetired
from .settings import CATEGORY, CUSTOM, check_queued, kept_plans, patched, settings_inputs, speed_input


class RASPatchModel(RefusesRetired):
    """MODEL -> the same MODEL, sampling with RAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASPatchModel",
            display_name="RAS Patch Model",
            category=CATEGORY,
            description="Speeds up sampling: most steps compute only the regions of the image that matter, "
            "and the other regions reuse the model's last output for them. Works with any sampler node. "
            "Supports SD3, SD3.5, Lumina-Image-2.0, Lumina-Next, Z-Image and Flux.1.",
            inputs=[
                io.Model.Input("model", tooltip="The model to speed up. The original stays as it is."),
                speed_input(),
                *settings_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same model, sampling with RAS.")],
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
    def execute(cls, model, **settings) -> io.NodeOutput:
        cls.refuse_in_prompt()
        cls.check(model=model, **settings)
        if settings["speed"] != CUSTOM and settings.get("plan") is not None:
            settings["plan"].best(settings["speed"])  # refuses plans of other speeds here, not while sampling
        return io.NodeOutput(patched(model, settings))
