"""RAS beside caches of other nodes, which answer evaluations, or blocks, without running the network.

The caches are small stand-ins, one for each way by which nodes get in front of the network.
"""

import itertools
from dataclasses import replace
from functools import partial

import comfy.samplers
import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.host import samplers
from ras_pack.ras_core.host.names import ATTENTION
from ras_pack.ras_core.host.outer_sample import COMPARES_RESULTS
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.host.speed import Speed
from ras_pack.ras_core.run import sampler as sampler_module
from ras_pack.ras_core.run import state
from ras_pack.ras_core.run.evaluation import MISLED
from ras_pack.ras_core.run.noise_levels import NoiseLevels
from support.families import FAMILIES
from support.sampling import STEPS, distance, sample, sample_ras
from support.tape import FrozenTape, capture_on

SD3, LUMINA = FAMILIES["sd3"], FAMILIES["lumina2"]
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
        self.answered, self.answers = set(), 0

    def __call__(self, level, key, compute):
        sigma = float(level.flatten()[0])
        if not self._levels or self._levels[-1] != sigma:
            self._levels.append(sigma)
        step, known = len(self._levels) - 1, self._results.setdefault(key, [])
        if step in self._steps and len(known) >= 2:
            self.answered.add(step)
            self.answers += 1
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


SMALL = {"height": 8, "width": 8}


def run(attach, family, skipped, config=None, follows=False, **kwargs):
    """The latent, the trace (None without RAS) and the cache of a run."""
    model, cache = family.build(), StepCache(skipped, follows)
    patched = model.clone() if config is None else patch_model(model, config)
    attach(patched, cache)
    latent = sample(patched, family, family.noise(**SMALL), **kwargs)
    return latent, None if config is None else last_trace(patched), cache


@pytest.fixture(scope="module")
def dense():
    return sample(SD3.build(), SD3, SD3.noise(**SMALL))


@pytest.fixture(scope="module")
def by_ours(dense):
    """Distance of RAS without a cache from the dense run."""
    return distance(sample_ras(SD3.build(), SD3, SD3.noise(**SMALL), OURS)[0], dense)


class TestWholeEvaluations:
    """Steps 3, 5 and 7 are answered by the cache. RAS records and observes the other seven only, and five of
    these are regional.
    """

    STEPS = frozenset({3, 5, 7})

    @pytest.mark.parametrize(
        ("way", "follows"), [*((way, False) for way in BESIDE), ("function wrapper", True)]
    )
    def test_they_do_not_count(self, way, follows, dense, by_ours, caplog):
        """The errors of the cache and of RAS add up; before the mend they multiplied by two to four."""
        latent, trace, cache = run(BESIDE[way], SD3, self.STEPS, OURS, follows)
        assert cache.answered == self.STEPS
        assert [each.step for each in trace.evaluations] == [0, 1, 2, 4, 6, 8, 9]
        assert [each.active_share for each in trace.evaluations] == [1, 1, *[0.5] * 5]
        if way != "PREDICT_NOISE":  # it keeps the evaluation from RAS, which cannot tell why
            assert caplog.text.count(ANSWERED) == 1 and len(trace.notes) == 1
        by_cache = distance(run(BESIDE[way], SD3, self.STEPS, follows=follows)[0], dense)
        assert distance(latent, dense) < 1.5 * (by_cache + by_ours)

    def test_the_log_says_that_skipped_regions_may_mislead_a_cache(self):
        """Such a cache may compare results. While all steps are dense, RAS does not mislead it."""
        for skipped, remarks in (({3, 5}, (MISLED,)), ({1}, ())):
            _, trace, _ = run(function_wrapper, SD3, skipped, OURS)
            assert trace.remarks == remarks and ("compares results" in trace.summary()) == bool(remarks)

    @pytest.mark.parametrize("config", [OURS, PAPER, replace(OURS, corrections=True)])
    def test_all_tokens_are_computed_in_turn(self, config):
        """Each second step is answered from step 3 on. The other steps compute every token."""
        _, trace, _ = run(function_wrapper, SD3, range(3, 20, 2), config, steps=20)
        regional = [each.active.reshape(-1) for each in trace.evaluations if each.active_share < 1]
        assert len(regional) == 9 and np.logical_or.reduce(regional).all()

    def test_the_multirate_sampler_takes_an_answer_as_a_guess(self, dense, caplog):
        config = replace(OURS, corrections=True)
        latent, trace, cache = run(function_wrapper, SD3, self.STEPS, config)
        ours = distance(sample_ras(SD3.build(), SD3, SD3.noise(**SMALL), config)[0], dense)
        by_cache = distance(run(function_wrapper, SD3, self.STEPS)[0], dense)
        assert cache.answered == self.STEPS and len(trace.evaluations) == 7
        assert distance(latent, dense) < 1.5 * (by_cache + ours)
        assert caplog.text.count(ANSWERED) == 1

    def test_before_the_multirate_sampler_the_reason_is_logged_too(self, caplog):
        _, trace, _ = run(BESIDE["PREDICT_NOISE"], SD3, self.STEPS, replace(OURS, corrections=True))
        assert caplog.text.count(ANSWERED) == 1 and len(trace.evaluations) == 7

    @pytest.mark.parametrize("way", ["function wrapper", "PREDICT_NOISE"])
    @pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
    def test_an_answer_in_a_dense_step_does_not_enter_the_history(self, way, sampler, monkeypatch, caplog):
        """ComfyUI's sampler runs until step 5. Step 3 is answered, so step 2 is the one before step 4."""
        starts, levels = [], []

        def integrate(denoise, start, noise_levels, *args):
            starts.append(replace(start))
            levels.extend(noise_levels)
            return sampler_module.integrate(denoise, start, noise_levels, *args)

        monkeypatch.setattr(samplers, "integrate", integrate)
        config = replace(OURS, start_step=5, corrections=True)
        _, trace, cache = run(BESIDE[way], SD3, {3}, config, sampler=sampler)
        assert cache.answered == {3} and caplog.text.count(ANSWERED) == 1
        shares = {each.step: each.active_share for each in trace.evaluations}
        assert shares == {0: 1, 1: 1, 2: 1, 4: 1, **dict.fromkeys(range(5, STEPS), 0.5)}
        (start,) = starts
        assert start.evaluations == 4 and start.fresh_before is None
        for times, step in ((start.history.t, 4), (start.history.t_before, 2)):
            assert (times == sampler_module.time_of(levels[step])).all()

    def test_no_noise_level_is_predicted_behind_such_a_wrapper(self, monkeypatch):
        """On a GPU, levels are predicted from the schedule. An evaluation that never arrives would shift
        them.
        """

        class Unknown:
            """A number on the device, which arrives only when it is waited for."""

            def __init__(self, level, expected):
                self.is_right = abs(float(level) - expected) < 1e-6

            def has_arrived(self, wait):
                return wait

        monkeypatch.setattr(state, "NoiseLevels", partial(NoiseLevels, transfer=Unknown))
        _, trace, _ = run(BESIDE["PREDICT_NOISE"], SD3, self.STEPS, OURS)
        assert [each.step for each in trace.evaluations] == [0, 1, 2, 4, 6, 8, 9] and not trace.notes

    def test_replayed_calls(self):
        """Calls that a function wrapper lets through are replayed as CUDA graphs. The latent is the same."""
        latents = []
        for graphs in ("off", "auto"):
            model, cache, tape = SD3.build(), StepCache(self.STEPS), FrozenTape()
            capture_on(model, tape)
            function_wrapper(model, cache)
            config = replace(OURS, cuda_graphs=graphs)
            latent, trace = sample_ras(model, SD3, SD3.noise(**SMALL), config)
            latents.append(latent)
        assert trace.graphs.replayed == 3 and trace.regional_steps == 5
        assert distance(latents[1], latents[0]) < 2e-5

    @pytest.mark.parametrize("corrections", [False, True])
    @pytest.mark.parametrize("steps", [{2, 3}, {6}, {9}], ids=["first regional", "reset", "last"])
    def test_the_step_that_is_answered_may_be_any(self, steps, corrections):
        config = replace(OURS, error_reset_every=4, corrections=corrections)
        latent, trace, cache = run(function_wrapper, SD3, steps, config)
        assert cache.answered == steps and torch.isfinite(latent).all()
        expected = {step: 1.0 if step in (0, 1, 6) else 0.5 for step in range(STEPS) if step not in steps}
        assert {each.step: each.active_share for each in trace.evaluations} == expected

    def test_the_step_that_fills_the_cache_may_be_answered(self):
        """Steps 2 and 3 would fill the cache for step 4, so step 4 fills it."""
        config = replace(OURS, start_step=4)
        _, trace, _ = run(function_wrapper, SD3, {2, 3}, config)
        shares = {each.step: each.active_share for each in trace.evaluations}
        assert shares == {0: 1, 1: 1, 4: 1, 5: 0.5, 6: 0.5, 7: 0.5, 8: 0.5, 9: 0.5}

    @pytest.mark.parametrize("corrections", [False, True])
    def test_a_cache_that_answers_every_regional_step_is_the_reason(self, corrections, caplog):
        latent, trace, _ = run(function_wrapper, SD3, range(2, 10), replace(OURS, corrections=corrections))
        assert torch.equal(latent, run(function_wrapper, SD3, range(2, 10))[0])
        assert trace.regional_steps == 0 and "nothing was accelerated" not in caplog.text
        assert caplog.text.count(ANSWERED) == 1 and ANSWERED in trace.summary()

    @pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m"])
    def test_two_evaluations_a_step(self, sampler):
        _, trace, cache = run(function_wrapper, SD3, {5, 6, 7}, OURS, sampler=sampler)
        plain = sample_ras(SD3.build(), SD3, SD3.noise(**SMALL), OURS, sampler=sampler)[1]
        assert len(trace.evaluations) == len(plain.evaluations) - cache.answers
        assert cache.answers == (6 if sampler == "heun" else 3)

    @pytest.mark.parametrize("way", BESIDE)
    def test_a_dense_run_does_not_count_them_either(self, way, caplog):
        """At ratio 1 the latent is that without RAS."""
        latent, trace, _ = run(BESIDE[way], SD3, self.STEPS, RASConfig(sample_ratio=1.0))
        assert torch.equal(latent, run(BESIDE[way], SD3, self.STEPS)[0])
        assert len(trace.evaluations) == 7

    def test_one_prompt_of_two(self):
        """The cache answers the negative prompt only. The evaluation counts by what the positive one ran, and
        the negative one runs on all tokens when it returns, because its other data are too old.
        """

        def attach(model, cache):
            def wrapper(apply_model, given):
                def call(part):
                    chosen = {
                        name: [value[part]] if name in ("cond_or_uncond", "uuids") else value
                        for name, value in given["c"]["transformer_options"].items()
                    }
                    inputs = {
                        name: value[part : part + 1] if torch.is_tensor(value) else value
                        for name, value in given["c"].items()
                    }
                    inputs["transformer_options"] = chosen
                    return apply_model(
                        given["input"][part : part + 1], given["timestep"][part : part + 1], **inputs
                    )

                parts = [
                    cache(given["timestep"], which, lambda part=part: call(part)) if which else call(part)
                    for part, which in enumerate(given["cond_or_uncond"])
                ]
                return torch.cat(parts)

            model.set_model_unet_function_wrapper(wrapper)

        latent, trace, cache = run(attach, SD3, self.STEPS, OURS)
        assert cache.answered == self.STEPS and len(trace.evaluations) == STEPS
        assert trace.regional_steps == 8 and torch.isfinite(latent).all()


class TestLazyCache:
    """ComfyUI's LazyCache decides by the change of results. Regions that RAS skips would not change."""

    @pytest.mark.parametrize("order", ["before", "after"])
    @pytest.mark.parametrize("settings", [OURS, replace(OURS, corrections=True), Speed("2x")])
    def test_all_steps_are_dense(self, settings, order, monkeypatch, caplog):
        lazy = pytest.importorskip("comfy_extras.nodes_easycache").LazyCacheNode
        asked = []

        def cached(model):
            return lazy.execute(model, 0.1, 0.15, 0.95, False).args[0]

        model, noise = SD3.build(), SD3.noise(**SMALL)
        model.model.diffusion_model.register_forward_pre_hook(lambda *_: asked.append(1))
        patched = patch_model(cached(model), settings) if order == "before" else None
        patched = patched or cached(patch_model(model, settings))
        latent, trace, count = sample(patched, SD3, noise, steps=16), last_trace(patched), len(asked)
        assert trace.regional_steps == 0 and COMPARES_RESULTS in trace.reason and not trace.remarks
        assert caplog.text.count(COMPARES_RESULTS) == 1
        if isinstance(settings, RASConfig):
            assert torch.equal(latent, sample(cached(model), SD3, noise, steps=16))
            assert len(asked) == 2 * count


class TestInsideTheNetwork:
    """A cache that would see the rows of active tokens only. The run is dense, with the reason, and its
    latent is bit for bit that of the run without RAS.
    """

    def _assert_dense(self, attach, family, reason, caplog, answered=3):
        steps = {3, 5, 7}
        latent, trace, cache = run(attach, family, steps, OURS)
        alone, _, own = run(attach, family, steps)
        assert cache.answered == own.answered and len(cache.answered) == answered
        assert torch.equal(latent, alone)
        assert trace.regional_steps == 0
        assert caplog.text.count("running dense from here") == 1 and reason in trace.summary()
        return trace

    @pytest.mark.parametrize("place", [outside, inside])
    def test_diffusion_model_wrapper(self, place, caplog):
        attach = place(WrappersMP.DIFFUSION_MODEL)
        trace = self._assert_dense(attach, LUMINA, "wraps the network", caplog)
        assert len(trace.evaluations) == 7 and caplog.text.count(ANSWERED) == 1

    def test_a_network_that_runs_no_such_wrapper(self):
        """ComfyUI runs no DIFFUSION_MODEL wrapper around SD3's network."""
        _, trace, cache = run(outside(WrappersMP.DIFFUSION_MODEL), SD3, {3, 5, 7}, OURS)
        assert not cache.answered and trace.regional_steps == 8 and not trace.notes

    def test_apply_model_wrapper_after_ours(self, caplog):
        trace = self._assert_dense(inside(WrappersMP.APPLY_MODEL), SD3, "sees the network's output", caplog)
        assert len(trace.evaluations) == 7 and caplog.text.count(ANSWERED) == 1

    @pytest.mark.parametrize("name", ["sd3", "flux"])
    def test_patches_that_replace_blocks(self, name, caplog):
        """A block is skipped at three steps, and its last result is used."""

        def attach(model, cache):
            texts = {}

            def block(given, more):
                def compute():
                    out = more["original_block"](given)
                    texts[0] = out["txt"]
                    return out["img"]

                image = cache(given["transformer_options"]["sigmas"], None, compute)
                return {"img": image, "txt": texts[0]}

            model.set_model_patch_replace(block, "dit", "double_block", 1)

        self._assert_dense(attach, FAMILIES[name], MAY_ANSWER, caplog)

    def test_blocks_in_one_module_for_the_time_of_a_call(self, caplog):
        """A function wrapper puts a module with all layers, which may skip them, in place of the layers."""

        self._assert_dense(all_layers(0), LUMINA, "replaces the network's blocks (by AllLayers)", caplog)

    def test_a_cache_that_begins_half_way(self, caplog):
        """Steps 2 to 4 are regional. The cache begins at step 5, and sees the rows of all tokens only."""
        latent, trace, cache = run(all_layers(5), LUMINA, {2, 4}, OURS)
        assert [each.step for each in trace.evaluations if each.active_share < 1] == [2, 3, 4]
        assert caplog.text.count("replaces the network's blocks (by AllLayers)") == 1
        assert cache.answered == {2, 4} and torch.isfinite(latent).all()

    def test_attention_override(self, caplog):
        """An attention override skips attentions, whose outputs it has kept."""

        def attach(model, cache):
            number = {}

            def override(func, q, *args, transformer_options=None, **kwargs):
                level = transformer_options["sigmas"]
                number[float(level[0])] = index = number.get(float(level[0]), -1) + 1
                return cache(
                    level, index, lambda: func(q, *args, transformer_options=transformer_options, **kwargs)
                )

            model.model_options["transformer_options"][ATTENTION] = override

        self._assert_dense(attach, SD3, "attention function keeps results", caplog)

    @pytest.mark.parametrize("part", ["", ".layers.1"], ids=["network", "block"])
    def test_replaced_forward(self, part, caplog):
        """An object patch replaces the forward of the network or of a block by a function with a cache."""

        def attach(model, cache):
            name = f"diffusion_model{part}.forward"
            original = model.get_model_object(name)
            level = torch.ones(1)

            def forward(*args, **kwargs):
                options = kwargs.get("transformer_options") or {}
                return cache(options.get("sigmas", level), None, lambda: original(*args, **kwargs))

            model.add_object_patch(name, forward)

        self._assert_dense(attach, LUMINA, "another node's code replaces forward of", caplog)


def all_layers(begin):
    """A way in: from call number `begin` on, a function wrapper puts `AllLayers` in place of the layers."""

    def attach(model, cache):
        network, calls = model.model.diffusion_model, itertools.count()

        def wrapper(apply_model, given):
            layers = network.layers
            if next(calls) >= begin:
                network.layers = torch.nn.ModuleList([AllLayers(layers, cache, given["timestep"])])
            try:
                return apply_model(given["input"], given["timestep"], **given["c"])
            finally:
                network.layers = layers

        model.set_model_unet_function_wrapper(wrapper)

    return attach


class AllLayers(torch.nn.Module):
    """All layers as one, which the cache may skip."""

    def __init__(self, layers, cache, level):
        super().__init__()
        self.layers, self._cache, self._level = layers, cache, level
        self.attention = layers[0].attention

    def forward(self, x, *args, **kwargs):
        def compute():
            hidden = x
            for layer in self.layers:
                hidden = layer(hidden, *args, **kwargs)
            return hidden

        return self._cache(self._level, x.shape, compute)
