"""RAS beside caches of other nodes, which answer evaluations, or blocks, without running the network.

The caches are small stand-ins, one for each way by which nodes get in front of the network.
"""

import contextlib

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.models import adapter_for
from support.families import FAMILIES
from support.sampling import STEPS, distance, sample, sample_ras

OURS = RASConfig(sample_ratio=0.5, start_step=2, error_reset_every=0)
PAPER = RASConfig(sample_ratio=0.5, start_step=2, error_reset_every=0, paper=PaperSettings())
ANSWERED = "another node answered evaluations without the network"
MAY_ANSWER = "code that may answer from a cache of its own"


class StepCache:
    """Answers some evaluations itself.

    Args:
        steps: numbers of the evaluations that it answers, of those that have their own noise level.
        follows: whether an answer follows the line through the last two results, instead of the last result.
    """

    def __init__(self, steps, follows=False):
        self._steps, self._follows = frozenset(steps), follows
        self._levels, self._results = [], {}
        self.answered = set()

    def __call__(self, level, key, compute):
        sigma = float(level.flatten()[0])
        if not self._levels or self._levels[-1] != sigma:
            self._levels.append(sigma)
        step, known = len(self._levels) - 1, self._results.setdefault(key, [])
        if step in self._steps and len(known) >= 2:
            self.answered.add(step)
            return self._guess(sigma, *known[-2:])
        result = compute()
        known.append((sigma, torch.stack(list(result)) if isinstance(result, list) else result.clone()))
        return result

    def _guess(self, sigma, before, last):
        if not self._follows:
            return last[1].clone()
        return last[1] + (last[1] - before[1]) * (sigma - last[0]) / (last[0] - before[0])


def function_wrapper(model, cache):
    def wrapper(apply_model, given):
        def run():
            return apply_model(given["input"], given["timestep"], **given["c"])

        return cache(given["timestep"], tuple(given["cond_or_uncond"]), run)

    model.set_model_unet_function_wrapper(wrapper)


def own_batches(model, cache):
    def calc(given):
        names = ("model", "conds", "input", "sigma", "model_options")
        return list(
            cache(given["sigma"], None, lambda: comfy.samplers.calc_cond_batch(*(given[n] for n in names)))
        )

    model.model_options["sampler_calc_cond_batch_function"] = calc


LEVEL = {WrappersMP.CALC_COND_BATCH: 3}
"""Index of the noise level among a wrapper's arguments; 1 for the others."""


def wrapper_of(kind, cache):
    def wrapper(executor, *args, **kwargs):
        return cache(args[LEVEL.get(kind, 1)], None, lambda: executor(*args, **kwargs))

    return wrapper


def outside(kind):
    """A wrapper on the model, which ComfyUI calls before this pack's."""
    return lambda model, cache: model.add_wrapper_with_key(kind, "cache", wrapper_of(kind, cache))


def inside(kind):
    """A wrapper that is added when sampling starts, so that ComfyUI calls it after this pack's."""

    def attach(model, cache):
        def late(executor, *args, **kwargs):
            options = executor.class_obj.model_options["transformer_options"]
            options["wrappers"].setdefault(kind, {})["cache"] = [wrapper_of(kind, cache)]
            return executor(*args, **kwargs)

        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "zz_cache", late)

    return attach


BESIDE = {
    "function wrapper": function_wrapper,
    "own batches": own_batches,
    "APPLY_MODEL": outside(WrappersMP.APPLY_MODEL),
    "CALC_COND_BATCH": outside(WrappersMP.CALC_COND_BATCH),
    "PREDICT_NOISE": outside(WrappersMP.PREDICT_NOISE),
    "CALC_COND_BATCH inside": inside(WrappersMP.CALC_COND_BATCH),
    "PREDICT_NOISE inside": inside(WrappersMP.PREDICT_NOISE),
}
"""Ways in that see whole results only. RAS works beside them."""


def run(attach, family, steps, config=None, follows=False, **kwargs):
    """The latent, the trace (None without RAS) and the cache of a run."""
    model, cache = family.build(), StepCache(steps, follows)
    patched = model.clone() if config is None else patch_model(model, config)
    attach(patched, cache)
    latent = sample(patched, family, family.noise(), **kwargs)
    return latent, None if config is None else last_trace(patched), cache


@pytest.mark.parametrize("follows", [False, True], ids=["copy", "line"])
@pytest.mark.parametrize("way", BESIDE)
def test_answered_evaluations_do_not_count(way, follows, sd3, caplog):
    """Steps 3, 5 and 7 are answered by the cache. RAS records and observes the other seven steps only, runs
    five of them regional, and comes as close to the dense run as the cache and RAS do by themselves.
    """
    steps = {3, 5, 7}
    latent, trace, cache = run(BESIDE[way], sd3, steps, OURS, follows)
    assert cache.answered == steps
    assert [each.step for each in trace.evaluations] == [0, 1, 2, 4, 6, 8, 9]
    assert [each.active_share for each in trace.evaluations] == [1, 1, *[0.5] * 5]
    if not way.startswith("PREDICT_NOISE") or "inside" in way:  # before RAS, it cannot be seen
        assert caplog.text.count(ANSWERED) == 1 and len(trace.notes) == 1
    dense = sample(sd3.build(), sd3, sd3.noise())
    alone = distance(run(BESIDE[way], sd3, steps, follows=follows)[0], dense)
    ours = distance(sample_ras(sd3.build(), sd3, sd3.noise(), OURS)[0], dense)
    print(way, follows, alone, ours, distance(latent, dense))
