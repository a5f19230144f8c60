"""What RAS needs: the extension points of ComfyUI, and the name of a model that it has to refuse."""

from __future__ import annotations

import comfy.ldm.modules.attention
import comfy.supported_models
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..errors import RASError
from ..models import network_of
from .names import ATTENTION

NEEDED_WRAPPERS = ("OUTER_SAMPLE", "PREDICT_NOISE", "APPLY_MODEL")


def check_comfyui() -> None:
    """Raise an error if this version of ComfyUI lacks an extension point that RAS needs.

    Raises:
        RASError: an extension point is missing; the message names all missing ones.
    """
    missing = [name for name in NEEDED_WRAPPERS if not hasattr(WrappersMP, name)]
    if not hasattr(comfy.ldm.modules.attention, "wrap_attn"):
        missing.append(ATTENTION)
    if missing:
        raise RASError(
            f"this ComfyUI has no {', '.join(missing)}.",
            "ComfyUI 0.3.64 or newer.",
            "update ComfyUI, or remove the RAS nodes.",
        )


def class_of(model: ModelPatcher) -> str:
    """The name by which ComfyUI knows a model, such as "SDXL"; empty if none of its model classes fits, or if
    another node has replaced the network.
    """
    if network_of(model.get_model_object("diffusion_model")) is not network_of(model.model.diffusion_model):
        return ""
    kind = type(getattr(model.model, "model_config", None))
    return kind.__name__ if kind.__module__ == comfy.supported_models.__name__ else ""
