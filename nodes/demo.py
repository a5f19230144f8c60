"""RASDemoModel and RASDemoPrompt: the small models that are included in the pack."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..demo.loader import FAMILIES, load_demo_model, require_weights
from ..demo.prompt import encode_prompt
from .checks import CheckedNode
from .settings import CATEGORY, found_by


class RASDemoModel(CheckedNode):
    """Loads a demo model of the pack; outputs MODEL (without RAS) and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASDemoModel",
            display_name="RAS Demo Model",
            category=CATEGORY,
            **found_by("test", "try", "emoji"),
            description="Loads a small model that the pack includes, to try RAS without a download. The "
            "models were trained on emoji artwork. Use RAS Demo Prompt for the prompts and an image size of "
            "512 x 512.",
            inputs=[
                io.Combo.Input(
                    "family", options=list(FAMILIES), default="sd3",
                    tooltip="The architecture of the model: sd3 (MMDiT), lumina2 (NextDiT) or flux (Flux.1, "
                    "with double and single blocks). The pack from ComfyUI's registry includes sd3 only.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A MODEL without RAS, for RAS Patch Model or "
                "any sampler node."),
                io.Vae.Output(display_name="vae", tooltip="The VAE of this model."),
            ],
        )  # fmt: skip

    @classmethod
    def check_together(cls, inputs) -> None:
        if inputs.get("family") is not None:
            require_weights(inputs["family"])

    @classmethod
    def execute(cls, family: str) -> io.NodeOutput:
        cls.check(family=family)
        return io.NodeOutput(*load_demo_model(family))


class RASDemoPrompt(CheckedNode):
    """Takes a text; outputs CONDITIONING for the demo model: of this text, and of an empty one.

    A second node for the negative prompt would have the same text when it is added. Both prompts would be
    equal then, and guidance would have no effect.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASDemoPrompt",
            display_name="RAS Demo Prompt",
            category=CATEGORY,
            description="Turns a text of up to 16 words, such as 'noto grinning face on blue', into "
            "CONDITIONING for the demo model. Also outputs an empty negative prompt, so one node is enough.",
            inputs=[
                io.String.Input(
                    "text", default="noto grinning face on blue", multiline=True,
                    tooltip="A style (noto, classic, fluent, twemoji, 3d), an object, and a background "
                    "colour.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The text, for the input positive of "
                "the sampler node."),
                io.Conditioning.Output(display_name="negative", tooltip="An empty prompt, for the input "
                "negative of the sampler node."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        cls.check(text=text)
        return io.NodeOutput(_conditioning(text), _conditioning(""))


def _conditioning(text: str) -> list:
    context, pooled = encode_prompt(text)
    # NextDiT requires an attention mask. The mask is all ones, because the demo models treat the zero rows
    # after the words as text.
    mask = torch.ones(context.shape[:2], dtype=torch.long)
    return [[context, {"pooled_output": pooled, "attention_mask": mask}]]
