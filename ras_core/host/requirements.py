"""Checks that this version of ComfyUI has the extension points that RAS needs."""

from __future__ import annotations

import comfy.ldm.modules.attention
from comfy.patcher_extension import WrappersMP

from ..errors import RASError
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
