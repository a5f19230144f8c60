"""A clock in ComfyUI's sampling."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .timing import Clock

KEY = "speed_bench_clock"


def clocked(model: ModelPatcher, clock: Clock) -> ModelPatcher:
    """A clone whose runs put their marks on the clock."""

    def run(executor, *args, **kwargs):
        clock.restart()
        result = executor(*args, **kwargs)
        clock.mark()
        return result

    def evaluate(executor, *args, **kwargs):
        clock.mark()
        return executor(*args, **kwargs)

    timed = model.clone()
    timed.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, run)
    timed.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, evaluate)
    return timed
