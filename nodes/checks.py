"""Refuses invalid values of a node's inputs, first when a prompt is queued, and again when the node runs.

ComfyUI's own checks are not enough: ComfyUI accepts NaN as a number in any range, and accepts a text as the
value of a MODEL input. ComfyUI does not check values that come from other nodes. ComfyUI 0.3.75 also does
not check whether the value of a COMBO input is one of the options of this input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy_api.latest import io

from ..ras_core.config import PaperSettings
from ..ras_core.errors import RASError, check_choice, check_range, quoted
from ..ras_core.host.options import PlanSet, as_priority
from ..ras_core.host.outer_sample import is_image
from ..ras_core.run.trace import Trace

WIDGETS = (io.Combo.Input, io.Float.Input, io.Int.Input, io.String.Input)

MOST_LEVELS = 1_000_000
"""Largest number of steps of a whole schedule. With denoise below 1, ComfyUI computes the noise levels of a
longer schedule, and the run takes only the last steps of this schedule."""


class CheckedNode(io.ComfyNode):
    """Base class of the pack's nodes. It checks their inputs against the types and ranges in their schema."""

    @classmethod
    def validate_inputs(cls, **inputs) -> bool:
        """Refuse a prompt when it is queued. The values of inputs that are connected to other nodes are not
        known yet, and are None here.

        Because this function takes `**inputs`, ComfyUI does not check the values itself. For an invalid
        value, this function raises an exception. It could also return a text, but ComfyUI would show this
        text once for each input of the node.
        """
        for item, value in _of_schema(cls, inputs):
            if isinstance(item, WIDGETS):
                _check_widget(item, value)
            elif value is not None:
                _refuse(item, value)
        cls.check_together(inputs)
        return True

    @classmethod
    def check_together(cls, inputs: Mapping[str, Any]) -> None:
        """Refuse a combination of values that cannot be used, when the prompt is queued. Subclasses override
        this function; by default every combination is accepted.
        """

    @classmethod
    def check(cls, **inputs) -> None:
        """Refuse invalid values when the node runs.

        Raises:
            RASError: a value is missing, out of range, or not of the type that the input expects.
        """
        for item, value in _of_schema(cls, inputs):
            if value is None and not item.optional:
                _refuse(item, value)
            if isinstance(item, WIDGETS):
                _check_widget(item, value)
            elif value is not None and not OBJECTS[item.io_type](value):
                _refuse(item, value)


def check_schedule(steps: int | None, denoise: float | None) -> None:
    """Refuse a schedule that would take too long to compute. At a denoise below 1, ComfyUI computes a
    schedule of steps / denoise steps.

    Raises:
        RASError: steps / denoise is more than MOST_LEVELS.
    """
    if steps and denoise and steps > denoise * MOST_LEVELS:
        raise RASError(
            f"denoise = {denoise} with {steps} steps, a part of a schedule of {steps / denoise:.2g} steps.",
            f"0, or a denoise for which steps / denoise is at most {MOST_LEVELS:,}.",
            "increase denoise.",
        )


def image_size(latent: Mapping[str, Any], name: str = "latent_image") -> tuple[int, int]:
    """Height and width of a LATENT.

    Raises:
        RASError: the LATENT is not a latent of images; it may be that of a video.
    """
    samples = latent["samples"]
    if samples.is_nested or not is_image(samples):
        raise RASError(
            f"{name} has {'several latents' if samples.is_nested else told(samples)}.",
            "the latent of an image, (batch, channels, height, width).",
            "connect an empty latent of your usual image size.",
        )
    return tuple(samples.shape[-2:])


def told(value: Any) -> str:
    """A short description of a value, for error messages."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (str, int, float, list, tuple, dict, type(None))):
        return quoted(value)
    return f"a value of class {type(value).__name__[:40]}"


def _of_schema(cls: type[io.ComfyNode], inputs: Mapping[str, Any]) -> list[tuple[io.Input, Any]]:
    """The inputs in the node's schema for which `inputs` has a value, each with this value. The schema is
    created again, so that the options of its inputs, such as the names of files, are up to date.
    """
    return [(item, inputs[item.id]) for item in cls.define_schema().inputs if item.id in inputs]


def _check_widget(item: io.Input, value: Any) -> None:
    if value is None:
        return
    if isinstance(item, io.Combo.Input):
        check_choice(item.id, value, item.options)
    elif isinstance(item, io.Float.Input):
        check_range(item.id, value, item.min, item.max)
    elif isinstance(item, io.Int.Input):
        _check_whole(item, value)
    elif not isinstance(value, str):
        raise RASError(f"{item.id} = {told(value)}.", "a text.", f"enter a text for {item.id}.")


def _check_whole(item: io.Int.Input, value: Any) -> None:
    if isinstance(value, int) and item.min <= value <= item.max:
        return
    raise RASError(
        f"{item.id} = {told(value)}.",
        f"a whole number from {item.min} to {item.max}.",
        f"set {item.id} to a number in that range.",
    )


def _refuse(item: io.Input, value: Any) -> None:
    kind = EXPECTED.get(item.io_type, item.io_type)
    raise RASError(f"{item.id} = {told(value)}.", f"{kind}.", f"connect an output of that kind to {item.id}.")


def _is_latent(value: Any) -> bool:
    samples = value.get("samples") if isinstance(value, dict) else None
    if isinstance(samples, torch.Tensor) and samples.is_nested:  # PyTorch's nested tensors have no shape
        return False
    shape = getattr(samples, "shape", ())
    return len(shape) >= 3 and all(shape)


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(each, (list, tuple)) and len(each) == 2 and isinstance(each[1], dict) for each in value
    )


def _is_image(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4 and value.shape[-1] >= 3 and value.numel() > 0


def _is_mask(value: Any) -> bool:
    return as_priority(value) is not None  # raises a more exact error if the mask cannot be used


OBJECTS: dict[str, Callable[[Any], bool]] = {
    "MODEL": lambda value: hasattr(value, "get_model_object") and hasattr(value, "clone"),
    "VAE": lambda value: hasattr(value, "decode"),
    "LATENT": _is_latent,
    "CONDITIONING": _is_conditioning,
    "IMAGE": _is_image,
    "MASK": _is_mask,
    "RAS_TRACE": lambda value: isinstance(value, Trace),
    "RAS_PLAN": lambda value: isinstance(value, PlanSet) and bool(value.plans),
    "RAS_PAPER": lambda value: isinstance(value, PaperSettings),
}
"""For each type of input, a function that returns whether a value is valid for an input of this type."""

EXPECTED = {
    "LATENT": "a LATENT that is not empty, with samples of three axes or more",
    "CONDITIONING": "a CONDITIONING, from a text encoder node",
    "IMAGE": "an IMAGE that is not empty, (batch, height, width, 3 or more channels)",
    "RAS_TRACE": "a RAS_TRACE, from RAS KSampler or RAS Trace",
    "RAS_PLAN": "a RAS_PLAN, from RAS Calibrate",
    "RAS_PAPER": "a RAS_PAPER, from RAS Paper Settings",
}
"""For error messages: what an input of each type expects. For types that are not listed, the message gives
the name of the type."""
