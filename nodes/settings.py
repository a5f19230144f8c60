"""The inputs that RASPatchModel, RASKSampler and RASCompare share.

Their order must not change: saved workflows store the values of inputs by position.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any, get_args

from comfy_api.latest import io

from ..ras_core.config import MIN_RATIO, Graphs, RASConfig, Window
from ..ras_core.errors import RASError
from ..ras_core.host.options import kv_cache_options
from ..ras_core.host.outer_sample import CustomSettings, Settings
from ..ras_core.host.patch import patch_model
from ..ras_core.host.plan_files import last_change
from ..ras_core.host.plans import PLAN_SPEEDS
from ..ras_core.host.speed import Speed
from .checks import check_schedule
from .live import open_view
from .retired import RefusesRetired

CATEGORY = "Multirate RAS"
TraceType = io.Custom("RAS_TRACE")
PaperType = io.Custom("RAS_PAPER")
PlanType = io.Custom("RAS_PLAN")
CUSTOM = "custom"
OF_CUSTOM = ("sample_ratio", "start_percent", "end_percent", "error_reset_every", "kv_cache")
"""Names of the inputs that have an effect only with speed = custom."""

logger = logging.getLogger(__name__)

_SCHEMA = inspect.signature(io.Schema).parameters
ADVANCED = {"advanced": True} if "advanced" in inspect.signature(io.Float.Input).parameters else {}
"""Keyword arguments of an input that few users need: ComfyUI then shows it as "advanced". Empty in earlier
versions of ComfyUI, which have no advanced inputs and show all inputs alike."""


def found_by(*words: str) -> dict[str, list[str]]:
    """Keyword arguments of a node's schema: search terms for the node in addition to its name. Empty in
    versions of ComfyUI that do not support such terms.
    """
    return {"search_aliases": list(words)} if "search_aliases" in _SCHEMA else {}


FASTER = (
    "speed", "speed up", "fast", "faster", "quick", "accelerate", "turbo", "cache", "region", "skip",
    "multirate",
)  # fmt: skip
"""Search terms of the nodes that make sampling faster."""


def speed_input() -> io.Input:
    """The input `speed`, the only setting that most users need; it is the first widget of its nodes."""
    return io.Combo.Input(
        "speed", options=[*PLAN_SPEEDS, CUSTOM], default="2x",
        tooltip="How many times faster the run is than a run of the same number of steps without RAS. "
        "Example: a run with 2x takes half as long. With custom, no plan is used; the settings below "
        "determine what each step computes.",
    )  # fmt: skip


def settings_inputs() -> list[io.Input]:
    """The inputs for all settings except `speed`.

    Add new inputs at the end: saved workflows store the values of widgets by position.
    """
    return [_plan_input(), *_schedule_inputs(), *_selection_inputs(), *_memory_inputs()]


def _plan_input() -> io.Input:
    return PlanType.Input(
        "plan", optional=True,
        tooltip="The plans made by RAS Calibrate, from which the input speed selects one. If nothing is "
        "connected, the plans that were saved for this model and image size are used, and if there are "
        "none, the plans of the model's family.",
    )  # fmt: skip


def _schedule_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "sample_ratio", default=0.5, min=MIN_RATIO, max=1.0, step=0.01, **ADVANCED,
            tooltip="Used with speed custom. The share of the image that each regional step computes. At "
            "0.5 the image stays close to the image without RAS; 0.25 is faster. At 1 every step computes "
            "the whole image, exactly as without RAS.",
        ),
        io.Float.Input(
            "start_percent", default=Window.start_percent, min=0.0, max=1.0, step=0.01, **ADVANCED,
            tooltip="Used with speed custom. The share of the run's steps that are dense (compute the whole "
            "image) at the start of the run, rounded up to whole steps. These first steps set the "
            "composition. Good values are 0.2 to 0.3; a value below 0.15 costs a lot of quality.",
        ),
        io.Float.Input(
            "end_percent", default=Window.end_percent, min=0.0, max=1.0, step=0.01, **ADVANCED,
            tooltip="Used with speed custom. The share of the run's steps after which all remaining steps "
            "are dense (compute the whole image). With 1, regional steps are allowed until the end of the "
            "run.",
        ),
        io.Int.Input(
            "error_reset_every", default=0, min=0, max=10000, **ADVANCED,
            tooltip="Used with speed custom. A reset is a dense step among the regional ones, which clears "
            "the errors of skipped regions. With a value of n, the first reset is n steps after the first "
            "regional step, and every n-th step after it is a reset too. Example: with 4 dense steps at the "
            "start and the value 6, steps 10, 16, 22 ... are resets, counted from 0. With 0 there are no "
            "resets. A dense step improves the image more if it is added at the start of the run than if it "
            "is a reset. Use a value from 4 to 6 with RAS Paper Settings, and in runs of 50 or more steps.",
        ),
    ]  # fmt: skip


def _selection_inputs() -> list[io.Input]:
    return [
        io.Mask.Input(
            "priority", optional=True,
            tooltip="A mask of the regions that matter more to you, such as a face. Regional steps compute "
            "these regions more often.",
        ),
        PaperType.Input(
            "paper", optional=True,
            tooltip="Used with speed custom. While a region is skipped, the model's last output for it is "
            "reused, which causes an error. If nothing is connected, the method is multirate: it computes "
            "the regions that have probably changed most, and when it computes a skipped region again, it "
            "corrects this error. If RAS Paper Settings is connected, regions are selected by the method of "
            "the RAS paper, and the error is not corrected.",
        ),
    ]  # fmt: skip


def _memory_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "cuda_graphs", options=list(get_args(Graphs)), default="auto", optional=True, **ADVANCED,
            tooltip="auto: on an NVIDIA GPU, regional steps are captured as CUDA graphs and replayed, which "
            "makes them faster. Steps that cannot be captured run as with off, and the log says why. off: "
            "no CUDA graphs.",
        ),
        io.Combo.Input(
            "kv_cache", options=kv_cache_options(), default="auto", optional=True, **ADVANCED,
            tooltip="Used with speed custom. How the attention layers keep the keys and values of skipped "
            "regions.\n"
            "gpu: unchanged, on the GPU.\n"
            "fp8: on the GPU in half the memory, slightly less exact.\n"
            "cpu: unchanged, in main memory, which is slower.\n"
            "forecast: keys and values are extrapolated in the direction of their last change, so that the "
            "image is closer to the image without RAS. This takes twice the memory of gpu, is slightly "
            "slower, and works only with euler and dpmpp_2m.\n"
            "off: keys and values are not kept, so computed regions do not attend to skipped regions and "
            "the image loses its coherence. Use off only as a baseline for experiments.\n"
            "auto: forecast, if skipped regions are corrected and forecast needs at most half of the free "
            "memory; otherwise the first of gpu, fp8 and cpu that fits. The log says which one is used.",
        ),
    ]  # fmt: skip


def patched(model: io.Model.Type, inputs: dict[str, Any]) -> io.Model.Type:
    """A copy of the model that samples with RAS, with the settings that the node's inputs give.

    Args:
        model: MODEL.
        inputs: values of `speed_input` and `settings_inputs`, by name; unknown names are ignored, as ComfyUI
            does.

    Raises:
        RASError: a value that cannot be used, or a model that is not supported.
    """
    settings = chosen_settings(inputs)
    if ignored := _without_effect(inputs):
        logger.warning(
            "Multirate RAS: with speed = %s, these settings have no effect: %s.",
            inputs["speed"], ", ".join(ignored),
        )  # fmt: skip
    return patch_model(model, settings, inputs.get("priority"), open_view)


def _without_effect(inputs: dict[str, Any]) -> list[str]:
    """Names of the inputs that have no effect with the chosen speed although their values differ from the
    defaults.
    """
    if inputs["speed"] == CUSTOM:
        return ["plan"] if inputs.get("plan") is not None else []
    defaults = {item.id: getattr(item, "default", None) for item in settings_inputs()}
    return [name for name in OF_CUSTOM if inputs.get(name, defaults[name]) != defaults[name]]


def kept_plans(speed: str | None) -> tuple[str, int] | None:
    """The value that a node with this speed returns from `fingerprint_inputs`. It changes whenever RAS
    Calibrate saves plans, and ComfyUI then runs the node again. Always None with speed = custom, which uses
    no plans.
    """
    return None if speed == CUSTOM else last_change()


def chosen_settings(inputs: dict[str, Any]) -> Settings:
    """The settings of a run, from the values of the node's inputs.

    Raises:
        RASError: a value that cannot be used.
    """
    if inputs["speed"] == CUSTOM:
        return _custom_settings(inputs)
    if inputs.get("paper") is not None:
        raise _paper_with(inputs["speed"])
    return Speed(inputs["speed"], inputs.get("plan"), inputs.get("cuda_graphs", "auto"))


def _custom_settings(inputs: dict[str, Any]) -> Settings:
    names = {item.id for item in settings_inputs()} - {"plan", "priority", *vars(Window())}
    values = {name: value for name, value in inputs.items() if name in names}
    window = Window(**{name: inputs[name] for name in vars(Window()) if name in inputs})
    corrections = values.get("paper") is None  # the paper's method does not correct regions
    return CustomSettings(RASConfig(**values, corrections=corrections), window)


class SettingsNode(RefusesRetired):
    """Base of the nodes that have the inputs of this module."""

    @classmethod
    def check_together(cls, inputs) -> None:
        check_queued(inputs)

    @classmethod
    def fingerprint_inputs(cls, speed=None, **inputs) -> tuple[str, int] | None:
        """Makes ComfyUI run the node again after RAS Calibrate has run, which changes the saved plans."""
        return kept_plans(speed)


def check_queued(inputs: Mapping[str, Any]) -> None:
    """Refuse settings that exclude each other when a prompt is queued; a value of another node is None.

    Raises:
        RASError: RAS Paper Settings is connected although a plan decides, no step can be regional, or the
            schedule is too long.
    """
    speed = inputs.get("speed")
    window = {name: inputs.get(name) for name in vars(Window())}
    if speed == CUSTOM and None not in window.values():
        Window(**window)
    elif speed not in (CUSTOM, None) and "paper" in inputs:
        raise _paper_with(speed)
    check_schedule(inputs.get("steps"), inputs.get("denoise"))


def _paper_with(speed: str) -> RASError:
    return RASError(
        f"RAS Paper Settings together with speed = {speed}.",
        "speed = custom if RAS Paper Settings is connected, because plans are made for multirate only.",
        "set speed to custom, or disconnect paper.",
    )
