"""The inputs that RASPatchModel, RASKSampler and RASCompare share, in the order that saved graphs store."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..ras_core.config import MIN_RATIO, Graphs, RASConfig
from ..ras_core.host.options import kv_cache_options
from ..ras_core.host.patch import patch_model
from .live import open_view

CATEGORY = "Multirate RAS"
TraceType = io.Custom("RAS_TRACE")
PaperType = io.Custom("RAS_PAPER")


def settings_inputs() -> list[io.Input]:
    """The settings of a run. Add new ones at the end: graphs store widget values by position."""
    return [*_schedule_inputs(), *_selection_inputs(), *_memory_inputs()]


def _schedule_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "sample_ratio", default=0.5, min=MIN_RATIO, max=1.0, step=0.01,
            tooltip="Share of the image's tokens computed in a regional step. 0.5 favours quality, 0.25 "
            "speed; at 1 every step is dense, exactly as without RAS.",
        ),
        io.Int.Input(
            "start_step", default=6, min=0, max=10000,
            tooltip="First step that may be regional. The steps before it are dense and set the composition: "
            "6 to 8 of 28 work well; fewer than 4 cost a lot of quality.",
        ),
        io.Int.Input(
            "end_step", default=0, min=0, max=10000,
            tooltip="From this step on, every step is dense. 0: regional steps are allowed to the end.",
        ),
        io.Int.Input(
            "error_reset_every", default=0, min=0, max=10000,
            tooltip="Interval of dense steps after start_step, which clear the error of regions that were "
            "not computed (start_step 4 and interval 6: steps 10, 16, 22 ...). 0: none; the same number of "
            "dense steps helps more at the start of the run. Use 4 to 6 with RAS Paper Settings, or for 50 "
            "steps or more.",
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
            tooltip="From RAS Paper Settings: regions are then selected by the paper's method, and not "
            "corrected. Not connected: the multirate method, which computes the regions that have most "
            "likely changed, and corrects the others when they are computed again.",
        ),
    ]  # fmt: skip


def _memory_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "cuda_graphs", options=list(get_args(Graphs)), default="auto", optional=True,
            tooltip="auto: on an NVIDIA GPU, regional steps are captured as CUDA graphs and replayed; if a "
            "step cannot be captured, it runs as with off, and the log says why. off: no CUDA graphs.",
        ),
        io.Combo.Input(
            "kv_cache", options=kv_cache_options(), default="auto", optional=True,
            tooltip="Where the keys and values of skipped regions are kept. gpu: unchanged, on the GPU. fp8: "
            "half the memory, slightly less exact. cpu: in main memory, exact and slower. auto: the first of "
            "these that fits; the log says which. forecast: twice the memory of gpu and slightly slower; "
            "keys and values are extrapolated along their last change, which comes closer to the dense image "
            "(euler and dpmpp_2m). off: nowhere, so computed regions do not see the others and images fall "
            "apart; a baseline for experiments.",
        ),
    ]  # fmt: skip


def patched(model: io.Model.Type, settings: dict[str, Any]) -> io.Model.Type:
    """The model with RAS, from the nodes' inputs.

    Args:
        model: MODEL.
        settings: values of `settings_inputs`, by name; unknown ones are ignored, as in ComfyUI.

    Raises:
        RASError: a value that cannot be used, or a model that is not supported.
    """
    names = {item.id for item in settings_inputs()}
    values = {name: value for name, value in settings.items() if name in names}
    priority = values.pop("priority", None)
    corrections = values.get("paper") is None  # the paper's method has none
    return patch_model(model, RASConfig(**values, corrections=corrections), priority, open_view)
