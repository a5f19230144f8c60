"""Attach a clock to ComfyUI's sampling."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..common.timing import Clock

KEY = "speed_bench_clock"


def clocked(model: ModelPatcher, clock: Clock) -> ModelPatcher:
    """A clone of the model. In each of its runs, `clock` takes a timestamp at the start of every evaluation
    and at the end of sampling. If `clock.stages` is set, it also times the stages before and after the
    evaluations.
    """

    def run(executor, *args, **kwargs):
        clock.restart()
        clock.enter("set-up")
        result = executor(*args, **kwargs)
        clock.enter("return")
        return result

    def prepare(executor, *args, **kwargs):
        clock.enter("loading")
        result = executor(*args, **kwargs)
        clock.enter("conditionings")
        return result

    def sample(executor, *args, **kwargs):
        clock.enter("first evaluation")
        result = executor(*args, **kwargs)
        clock.mark()
        clock.enter("end of run")
        return result

    def evaluate(executor, *args, **kwargs):
        clock.enter("sampling")
        clock.mark()
        result = executor(*args, **kwargs)
        clock.enqueued()
        return result

    timed = model.clone()
    for place, wrapper in (
        (WrappersMP.OUTER_SAMPLE, run),
        (WrappersMP.PREPARE_SAMPLING, prepare),
        (WrappersMP.SAMPLER_SAMPLE, sample),
        (WrappersMP.PREDICT_NOISE, evaluate),
    ):
        timed.add_wrapper_with_key(place, KEY, wrapper)
    return timed
