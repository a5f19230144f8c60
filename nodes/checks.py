"""Refuses bad values of a node's inputs: when a prompt is queued, and again when the node runs.

ComfyUI itself accepts NaN as a number in any range, and a text where a MODEL belongs; it checks no value that
comes from another node, and version 0.3.75 checks no choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy_api.latest import io

from ..ras_core.config import PaperSettings
from ..ras_core.errors import RASError, check_choice, check_range, quoted
from ..ras_core.host.options import PlanSet, as_priority
from ..ras_core.run.trace import Trace

WIDGETS = (io.Combo.Input, io.Float.Input, io.Int.Input, io.String.Input)

MOST_LEVELS = 1_000_000
"""Steps of a whole schedule of which a run with denoise below 1 takes the last ones. ComfyUI computes all."""


class CheckedNode(io.ComfyNode):
    """Base of the pack's nodes: their inputs are checked by their schema."""

    @classmethod
    def validate_inputs(cls, **inputs) -> bool:
        """Refuse a prompt when it is queued; values that other nodes provide are None here.

        ComfyUI leaves the checks of values to a function with these parameters. It shows a returned text once
        for each input, but an exception only once.
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
        """Refuse values that exclude each other, when the prompt is queued."""

    @classmethod
    def check(cls, **inputs) -> None:
        """Refuse bad values when the node runs.

        Raises:
            RASError: a value is missing, out of range or of another kind than its input.
        """
        for item, value in _of_schema(cls, inputs):
            if value is None and not item.optional:
                _refuse(item, value)
            if isinstance(item, WIDGETS):
                _check_widget(item, value)
            elif value is not None and not OBJECTS[item.io_type](value):
                _refuse(item, value)


def check_schedule(steps: int | None, denoise: float | None) -> None:
    """Refuse a schedule that is too long to be computed: ComfyUI divides the steps by denoise.

    Raises:
        RASError: it has more than MOST_LEVELS steps.
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
        RASError: it is not the latent of an image.
    """
    samples = latent["samples"]
    if len(samples.shape) != 4 or samples.is_nested:
        raise RASError(
            f"{name} has {'several latents' if samples.is_nested else told(samples)}.",
            "the latent of an image, (batch, channels, height, width).",
            "connect an empty latent of your usual image size.",
        )
    return tuple(samples.shape[-2:])


def told(value: Any) -> str:
    """A value as a message describes it."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (str, int, float, list, tuple, dict, type(None))):
        return quoted(value)
    return f"a value of class {type(value).__name__[:40]}"


def _of_schema(cls: type[io.ComfyNode], inputs: Mapping[str, Any]) -> list[tuple[io.Input, Any]]:
    """The inputs that the node has, each with its value; options such as files are read again."""
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
    if isinstance(samples, torch.Tensor) and samples.is_nested:  # PyTorch's own kind, which has no shape
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
    return as_priority(value) is not None  # refuses a mask that cannot be used with its own reason


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
"""Whether a value is of the kind of an input, by the input's type."""

EXPECTED = {
    "LATENT": "a LATENT that is not empty, with samples of three axes or more",
    "CONDITIONING": "a CONDITIONING, from a text encoder node",
    "IMAGE": "an IMAGE that is not empty, (batch, height, width, 3 or more channels)",
    "RAS_TRACE": "a RAS_TRACE, from RAS KSampler or RAS Trace",
    "RAS_PLAN": "a RAS_PLAN, from RAS Calibrate",
    "RAS_PAPER": "a RAS_PAPER, from RAS Paper Settings",
}
"""What an input expects, by its type, where the name of the type does not say it."""
