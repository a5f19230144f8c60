"""RASDemoModel and RASDemoPrompt: the small models that are included in the pack."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..demo.loader import FAMILIES, load_demo_model
from ..demo.prompt import encode_prompt
from .checks import CheckedNode
from .settings import CATEGORY


class RASDemoModel(CheckedNode):
    """The embedded demo model as a plain MODEL and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASDemoModel",
            display_name="RAS Demo Model",
            category=CATEGORY,
            description="Small models, trained on emoji artwork and included in the pack, to try RAS without "
            "a download. Use RAS Demo Prompt for the prompts and an image size of 512 x 512.",
            inputs=[
                io.Combo.Input(
                    "family", options=list(FAMILIES), default="sd3",
                    tooltip="Architecture: sd3 (MMDiT), lumina2 (NextDiT) or flux (two kinds of blocks).",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A plain MODEL, for any sampler node."),
                io.Vae.Output(display_name="vae", tooltip="The VAE of this model."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, family: str) -> io.NodeOutput:
        cls.check(family=family)
        return io.NodeOutput(*load_demo_model(family))


class RASDemoPrompt(CheckedNode):
    """Text -> CONDITIONING for the demo model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RASDemoPrompt",
            display_name="RAS Demo Prompt",
            category=CATEGORY,
            description="Text for the demo model: up to 16 words such as 'noto owl on blue'.",
            inputs=[
                io.String.Input(
                    "text", default="noto owl on blue", multiline=True,
                    tooltip="A style (noto, fluent, twemoji, 3d), an object, and a background colour. Empty "
                    "for the negative prompt.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For the sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        cls.check(text=text)
        context, pooled = encode_prompt(text)
        # NextDiT requires a mask. The demo models treat the empty rows after the words as text.
        mask = torch.ones(context.shape[:2], dtype=torch.long)
        return io.NodeOutput([[context, {"pooled_output": pooled, "attention_mask": mask}]])
