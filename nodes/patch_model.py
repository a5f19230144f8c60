"""RASPatchModel: makes any sampler node sample with RAS."""

from __future__ import annotations

from comfy_api.latest import io

from .retired import ACCEPT_ALL, HIDDEN
from .settings import CATEGORY, CUSTOM, FASTER, SettingsNode, found_by, patched, settings_inputs, speed_input


class RASPatchModel(SettingsNode):
    """Takes a MODEL; outputs a copy of it that samples with RAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASPatchModel",
            display_name="RAS Patch Model",
            category=CATEGORY,
            **found_by("RAS", *FASTER),
            description="Makes sampling faster: many steps compute only those regions of the image that "
            "have probably changed most since they were last computed. Every remaining region reuses the "
            "output that the model last computed for it. Works with any sampler node. Supports Flux, "
            "Qwen-Image, SD3.5, Z-Image, Anima, Krea 2 and other models; the detailed "
            "help lists them.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to speed up. The node changes a copy, not the connected model.",
                ),
                speed_input(),
                *settings_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same model, sampling with RAS.")],
            hidden=[*HIDDEN],
            **ACCEPT_ALL,
        )

    @classmethod
    def execute(cls, model, **settings) -> io.NodeOutput:
        cls.refuse_in_prompt()
        cls.check(model=model, **settings)
        if settings["speed"] != CUSTOM and settings.get("plan") is not None:
            settings["plan"].best(settings["speed"])  # refuses plans of other speeds here, not while sampling
        return io.NodeOutput(patched(model, settings))
