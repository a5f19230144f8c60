"""The inputs that RASPatchModel and RASKSampler share: one list, in the order that saved graphs store."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..ras_core.config import MIN_RATIO, Budget, Graphs, Method, Metric, RASConfig, parse_step_list
from ..ras_core.host.options import kv_cache_options
from ..ras_core.host.patch import patch_model
from .live import open_view

CATEGORY = "Multirate RAS"
TraceType = io.Custom("RAS_TRACE")


def settings_inputs() -> list[io.Input]:
    """The method's settings. New ones go to the end: graphs store widget values by position."""
    return [
        io.Float.Input(
            "sample_ratio", default=0.5, min=MIN_RATIO, max=1.0, step=0.01,
            tooltip="Share of the picture's tokens computed in a regional step. 0.5 is careful, 0.25 fast; "
            "1 runs every step dense, exactly as without RAS.",
        ),
        io.Int.Input(
            "start_step", default=6, min=0, max=10000,
            tooltip="First step that may be regional. The steps before it are dense and set the composition: "
            "6 to 8 of 28; fewer than 4 costs a lot of quality.",
        ),
        io.Int.Input(
            "end_step", default=0, min=0, max=10000,
            tooltip="First step that is dense again for good. 0: regional steps may go on to the end.",
        ),
        io.Int.Input(
            "error_reset_every", default=0, min=0, max=10000,
            tooltip="A dense step every so many steps after start_step (start 4 and 6: steps 10, 16, 22 "
            "...) clears the error of regions that were not computed. 0: none; with multirate the same "
            "number of dense steps does more at the start. 4 to 6 for method paper and for 50 steps and "
            "more.",
        ),
        io.String.Input(
            "error_reset_steps", default="",
            tooltip="Explicit dense steps counted from 0, for example 12,20. When not empty it replaces "
            "error_reset_every.",
        ),
        io.Combo.Input(
            "metric", options=list(get_args(Metric)), default="std",
            tooltip="How regions are ranked: std (the paper's) or l2norm of the predicted noise; random is a "
            "baseline to compare with.",
        ),
        io.Float.Input(
            "high_ratio", default=1.0, min=0.0, max=1.0, step=0.05,
            tooltip="Expert. Share of the cached regions taken from the high end of the metric, the rest "
            "from the low end. 1: only regions with a high metric are cached.",
        ),
        io.Float.Input(
            "starvation_scale", default=0.1, min=0.0, max=10.0, step=0.01,
            tooltip="Expert. How strongly a region that was cached often is brought back. 0: not at all.",
        ),
        io.Float.Input(
            "ratio_end", default=0.0, min=0.0, max=1.0, step=0.01,
            tooltip=f"Expert. The sampling ratio goes linearly from sample_ratio to this value over the "
            f"regional steps. 0 keeps it constant; otherwise at least {MIN_RATIO}.",
        ),
        io.Combo.Input(
            "method", options=list(get_args(Method)), default="multirate",
            tooltip="multirate: compute what is changing most, and correct the rest when it returns. paper: "
            "the published rule, which metric, high_ratio and starvation_scale belong to.",
        ),
        io.Mask.Input(
            "priority", optional=True,
            tooltip="Regions that matter more to you, such as a face: they are computed more often.",
        ),
        io.Combo.Input(
            "cuda_graphs", options=list(get_args(Graphs)), default="auto", optional=True,
            tooltip="auto: on an NVIDIA GPU regional steps are recorded as CUDA graphs and replayed; what "
            "cannot be recorded runs as with off, and the log says why. off: nothing is recorded.",
        ),
        io.Combo.Input(
            "kv_cache", options=kv_cache_options(), default="auto", optional=True,
            tooltip="Where the keys and values of skipped regions are kept. gpu: as they are. fp8: half the "
            "memory, a little less exact. cpu: main memory, exact and slower. auto: the first of these that "
            "fits, and the log says which. forecast: twice the memory of gpu and somewhat slower; they go on "
            "along their last change, which comes closer to the dense picture (euler and dpmpp_2m). off: "
            "nowhere, so computed regions do not see the others; pictures fall apart, a baseline for "
            "experiments.",
        ),
        io.Combo.Input(
            "budget", options=list(get_args(Budget)), default="fixed", optional=True,
            tooltip="fixed: every regional step computes sample_ratio of the tokens. adaptive: sample_ratio "
            "is the average; steps in which much changes get more, up to a dense step, quiet ones less. It "
            "replaces error_reset_every (not error_reset_steps) and needs the method multirate.",
        ),
    ]  # fmt: skip


def patched(model: io.Model.Type, settings: dict, **changes) -> io.Model.Type:
    """The model with RAS, from the settings as the nodes get them.

    Args:
        model: MODEL.
        settings: values of `settings_inputs`, by name.
        changes: settings that the node itself decides.

    Raises:
        RASError: a value that cannot be used, or a model that is not supported.
    """
    values = {**settings, **changes}
    priority = values.pop("priority", None)
    values["error_reset_steps"] = parse_step_list(values["error_reset_steps"])
    return patch_model(model, RASConfig(**values), priority, open_view)
