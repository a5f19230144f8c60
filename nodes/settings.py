"""The inputs that RASPatchModel, RASKSampler and RASCompare share, in the order that saved graphs store."""

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

CATEGORY = "Multirate RAS"
TraceType = io.Custom("RAS_TRACE")
PaperType = io.Custom("RAS_PAPER")
PlanType = io.Custom("RAS_PLAN")
CUSTOM = "custom"
OF_CUSTOM = ("sample_ratio", "start_percent", "end_percent", "error_reset_every", "kv_cache")
"""Settings that only a custom speed uses."""

logger = logging.getLogger(__name__)

ADVANCED = {"advanced": True} if "advanced" in inspect.signature(io.Float.Input).parameters else {}
"""Arguments that make an input "advanced", for inputs that few users need; earlier versions of ComfyUI show
all inputs alike."""


def speed_input() -> io.Input:
    """The speed, the only setting that most users need; the first widget of a node."""
    return io.Combo.Input(
        "speed", options=[*PLAN_SPEEDS, CUSTOM], default="2x",
        tooltip="How much faster than all steps without RAS: 2x takes half of the time. custom: the settings "
        "below decide.",
    )  # fmt: skip


def settings_inputs() -> list[io.Input]:
    """The inputs of all other settings. Add new ones at the end: graphs store widget values by position."""
    return [_plan_input(), *_schedule_inputs(), *_selection_inputs(), *_memory_inputs()]


def _plan_input() -> io.Input:
    return PlanType.Input(
        "plan", optional=True,
        tooltip="The plans that speed uses, from RAS Calibrate. Not connected: those saved for this model "
        "and image size, or else those of the model's family.",
    )  # fmt: skip


def _schedule_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "sample_ratio", default=0.5, min=MIN_RATIO, max=1.0, step=0.01, **ADVANCED,
            tooltip="With speed: custom. Share of the image computed in each regional step. 0.5 is careful, "
            "0.25 fast. 1: every step computes the whole image, exactly as without RAS.",
        ),
        io.Float.Input(
            "start_percent", default=Window.start_percent, min=0.0, max=1.0, step=0.01, **ADVANCED,
            tooltip="With speed: custom. Share of the run's steps that are dense (compute the whole image) "
            "at its start, rounded up to whole steps. These steps set the composition. Good values: 0.2 to "
            "0.3; less than 0.15 costs a lot of quality.",
        ),
        io.Float.Input(
            "end_percent", default=Window.end_percent, min=0.0, max=1.0, step=0.01, **ADVANCED,
            tooltip="With speed: custom. After this share of the run's steps, every further step is dense "
            "(computes the whole image). 1: regional steps are allowed to the end.",
        ),
        io.Int.Input(
            "error_reset_every", default=0, min=0, max=10000, **ADVANCED,
            tooltip="With speed: custom. After the dense start, every n-th step is dense, which clears the "
            "error of regions that were skipped. Example: with 4 dense steps at the start and 6 here, steps "
            "10, 16, 22 ... are dense. 0: no such steps; the same number of dense steps is more effective "
            "at the start. Set 4 to 6 with RAS Paper Settings, and for runs of 50 steps and more.",
        ),
    ]  # fmt: skip


def _selection_inputs() -> list[io.Input]:
    return [
        io.Mask.Input(
            "priority", optional=True,
            tooltip="Regions that matter more to you, such as a face: they are computed more often.",
        ),
        PaperType.Input(
            "paper", optional=True,
            tooltip="With speed: custom. From RAS Paper Settings: regions are then selected by the paper's "
            "method, and not corrected. Not connected: multirate, which computes the regions that "
            "have probably changed most, and corrects a skipped region when it is computed again.",
        ),
    ]  # fmt: skip


def _memory_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "cuda_graphs", options=list(get_args(Graphs)), default="auto", optional=True, **ADVANCED,
            tooltip="auto: on an NVIDIA GPU regional steps are captured as CUDA graphs and replayed, which "
            "is faster; steps that cannot be captured run as with off, and the log says why. off: no CUDA "
            "graphs.",
        ),
        io.Combo.Input(
            "kv_cache", options=kv_cache_options(), default="auto", optional=True, **ADVANCED,
            tooltip="With speed: custom. Where attention's keys and values of skipped regions are kept. "
            "gpu: unchanged, on the GPU. fp8: half the memory, slightly less exact. cpu: in main memory, "
            "exact and slower. forecast: twice the memory of gpu and slightly slower; keys and values are "
            "extrapolated along their last change, which comes closer to the image without RAS (only with "
            "euler and dpmpp_2m). auto: forecast, if skipped regions are corrected and it leaves half of "
            "the free memory; else the first of gpu, fp8 and cpu that fits; the log says which. off: "
            "nowhere, so computed regions do not see the others and images fall apart; only a baseline for "
            "experiments.",
        ),
    ]  # fmt: skip


def patched(model: io.Model.Type, inputs: dict[str, Any]) -> io.Model.Type:
    """The model with RAS, with the settings given by the inputs.

    Args:
        model: MODEL.
        inputs: values of `speed_input` and `settings_inputs`, by name; unknown ones are ignored, as in
            ComfyUI.

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
    """Names of the inputs that the user has set, but that this speed does not use."""
    if inputs["speed"] == CUSTOM:
        return ["plan"] if inputs.get("plan") is not None else []
    defaults = {item.id: getattr(item, "default", None) for item in settings_inputs()}
    return [name for name in OF_CUSTOM if inputs.get(name, defaults[name]) != defaults[name]]


def kept_plans(speed: str | None) -> tuple[str, int] | None:
    """Changes whenever a node with this speed may find other plans; for `fingerprint_inputs`."""
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
    corrections = values.get("paper") is None  # the paper's method has none
    return CustomSettings(RASConfig(**values, corrections=corrections), window)


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
