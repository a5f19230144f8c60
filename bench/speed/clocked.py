"""Attach a clock to ComfyUI's sampling.

The clock must not change what a run does:

- It has no wrapper SAMPLER_SAMPLE. If there is one of another node, the pack keeps the run's noise levels
  instead of those of a plan (ras_core/host/speed.py).
- Its wrapper PREDICT_NOISE is inside that of the pack. If the pack's wrapper is inside another one, it waits
  at each evaluation to read the noise level from the device (ras_core/host/wrappers.py). Only when stages are
  timed, the wrapper is outside, so that it sees all of the pack's work. The clock waits for the device
  then anyway.
"""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...ras_core.host.names import TRANSFORMER_OPTIONS
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

    def prepare(executor, model, noise_shape, conds, model_options=None, **kwargs):
        clock.enter("loading")
        wrappers = model_options[TRANSFORMER_OPTIONS].setdefault("wrappers", {})
        others = wrappers.get(WrappersMP.PREDICT_NOISE, {})  # the pack has attached its own by now
        mine = {KEY: [evaluate]}
        wrappers[WrappersMP.PREDICT_NOISE] = (
            {**others, **mine} if clock.stages is None else {**mine, **others}
        )
        result = executor(model, noise_shape, conds, model_options=model_options, **kwargs)
        clock.enter("conditionings and sampler")
        return result

    def evaluate(executor, *args, **kwargs):
        clock.enter("sampling")
        clock.mark()
        result = executor(*args, **kwargs)
        clock.enqueued()
        return result

    def finish(_):
        """ComfyUI's callback ON_CLEANUP: the sampler has returned, or has failed."""
        clock.mark()
        clock.enter("end of run")

    timed = model.clone()
    for place, wrapper in ((WrappersMP.OUTER_SAMPLE, run), (WrappersMP.PREPARE_SAMPLING, prepare)):
        timed.add_wrapper_with_key(place, KEY, wrapper)
    timed.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, finish)
    return timed
