"""Guiders and samplers that do more than one call per step and one run per image: right steps are counted,
the reasons are true, and no error of Python reaches the user.

Guiders of ComfyUI are its own classes. Interfaces of other packs are written again here, named after what
they do: a guider that returns two estimates, samplers that shift noise levels, wrappers that sample twice.
"""

from functools import partial
from itertools import islice

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host.names import KEY, START
from ras_pack.ras_core.host.patch import last_trace, patch_model, trace_of
from ras_pack.ras_core.host.planned_model import without_ras
from ras_pack.ras_core.host.second_models import IGNORED, NO_EFFECT
from ras_pack.ras_core.host.speed import Speed
from ras_pack.ras_core.run import passes
from ras_pack.ras_core.run.evaluation import ODD_RESULT
from ras_pack.ras_core.run.recorder import UNCACHED_OFTEN, UNCACHED_ONCE
from support.families import FAMILIES
from support.sampling import CALC_COND_BATCH, FAST, STEPS, distance, positive_alone, sample, sample_ras
from support.tape import FrozenTape, capture_on

DENSE = [0, 1, 6]
"""The dense steps of FAST."""

MULTIRATE = RASConfig(
    sample_ratio=0.5, start_step=2, error_reset_every=0, corrections=True, cuda_graphs="off"
)
EAGER = RASConfig(**{**vars(FAST), "cuda_graphs": "off"})


@torch.inference_mode()
def guided(guider, noise, sampler="euler", steps=STEPS, sigmas=None):
    """The latent of a run with this guider, as SamplerCustomAdvanced samples."""
    if sigmas is None:
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
    if isinstance(sampler, str):
        sampler = comfy.samplers.sampler_object(sampler)
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)


def dense_steps(trace) -> list[int]:
    return [step.step for step in trace.steps if step.kind.value == "dense"]


def is_as_planned(trace, evaluations=STEPS) -> bool:
    return (
        trace.n_steps == len(trace.steps) == STEPS
        and len(trace.evaluations) == evaluations
        and (dense_steps(trace), trace.regional_steps, trace.notes) == (DENSE, 7, ())
    )


class TwoEstimates(comfy.samplers.CFGGuider):
    """A guider whose evaluation gives two estimates, for two guidance scales."""

    form = tuple

    def predict_noise(self, *args, **kwargs):
        estimate = super().predict_noise(*args, **kwargs)
        return self.form((estimate, 2 * estimate))


class OfTheFirst(comfy.samplers.KSAMPLER):
    """A sampler for `TwoEstimates`, which needs the first one."""

    def sample(self, model_wrap, *args, **kwargs):
        original = type(model_wrap).__call__
        try:
            type(model_wrap).__call__ = lambda *own, **named: original(*own, **named)[0]
            return super().sample(model_wrap, *args, **kwargs)
        finally:
            type(model_wrap).__call__ = original


def guider_of(kind, model, family, cfg=4.0):
    guider = kind(model)
    guider.set_conds(family.conditioning(1), family.conditioning(2))
    guider.set_cfg(cfg)
    return guider


class TestResults:
    """What a guider returns."""

    @pytest.mark.parametrize("form", [tuple, list])
    @pytest.mark.parametrize("config", [EAGER, MULTIRATE], ids=["paper", "multirate"])
    def test_two_estimates(self, sd3, config, form, monkeypatch):
        monkeypatch.setattr(TwoEstimates, "form", form)
        noise, sampler = sd3.noise(), OfTheFirst(comfy.k_diffusion.sampling.sample_euler)
        patched = patch_model(sd3.build(), config)
        latent = guided(guider_of(TwoEstimates, patched, sd3), noise, sampler)
        trace, usual = last_trace(patched), patch_model(sd3.build(), config)
        expected = guided(guider_of(comfy.samplers.CFGGuider, usual, sd3), noise, OwnEuler())
        assert torch.equal(latent, expected) and not trace.notes
        assert trace.regional_steps == last_trace(usual).regional_steps > 0

    @pytest.mark.parametrize("config", [EAGER, MULTIRATE], ids=["paper", "multirate"])
    def test_no_estimate_of_the_latent(self, sd3, config):
        """A dictionary is nothing that regions could be selected from: dense, with the reason, to the bit."""

        class Named(comfy.samplers.CFGGuider):
            def predict_noise(self, *args, **kwargs):
                return {0: super().predict_noise(*args, **kwargs)}

        noise, sampler = sd3.noise(), OfTheFirst(comfy.k_diffusion.sampling.sample_euler)
        patched = patch_model(sd3.build(), config)
        latent = guided(guider_of(Named, patched, sd3), noise, sampler)
        assert torch.equal(latent, guided(guider_of(Named, sd3.build(), sd3), noise, sampler))
        assert last_trace(patched).notes == (f"running dense from here: {ODD_RESULT}",)


class OwnEuler(comfy.samplers.KSAMPLER):
    """Euler of another pack, which RAS does not replace."""

    def __init__(self):
        super().__init__(comfy.k_diffusion.sampling.sample_euler)


class TestGuidersOfComfyUI:
    @pytest.mark.parametrize(
        ("first", "second"),
        [("sd3", "lumina2"), ("lumina2", "flux"), ("flux", "sd3")],
    )
    def test_two_models_of_different_families_run_dense(self, first, second):
        family, other = (FAMILIES[name] for name in (first, second))
        guider, noise, plain = _two_models(family, other), family.noise(), family.build()
        dense = guided(guider(plain), noise, "heun", steps=16)
        for settings in (EAGER, Speed("2x")):
            patched = patch_model(family.build(), settings)
            latent = guided(guider(patched), noise, "heun", steps=16)
            (note,) = last_trace(patched).notes
            assert "another family" in note and torch.equal(latent, dense)

    def test_two_models_and_one_is_of_no_supported_family(self, sd3):
        patched, noise = patch_model(sd3.build(), EAGER), sd3.noise()
        latent = guided(_two_models(sd3, sd3, unsupported)(patched), noise)
        assert torch.equal(latent, guided(_two_models(sd3, sd3, unsupported)(sd3.build()), noise))
        (note,) = last_trace(patched).notes
        assert "another family (Halved)" in note


def _two_models(family, other, change=lambda model: model):
    """A function that makes a guider with another model for the negative prompt."""
    nodes = pytest.importorskip("comfy_extras.nodes_custom_sampler")
    if not hasattr(nodes, "Guider_DualModel"):
        pytest.skip("this ComfyUI has no guider of two models")
    second = change(other.build(seed=7))

    def guider(model):
        made = nodes.Guider_DualModel(model, second)
        made.set_conds(family.conditioning(1), other.conditioning(2))
        made.set_cfg(4.0)
        return made

    return guider


class Halved(torch.nn.Module):
    """A network of no family that RAS knows, without any attribute that an adapter reads."""

    dtype = torch.float32

    def forward(self, x, timesteps, **others):
        return 0.5 * x


def unsupported(model):
    model.model.diffusion_model = Halved()
    return model


def shifted(function, factor):
    """A sampler function whose model gets other noise levels in the middle of the run than the sampler
    believes, as packs do that add details.
    """

    def sample_shifted(model, x, sigmas, **others):
        class Shifting:
            def __getattr__(self, name):
                return getattr(model, name)

            def __call__(self, x, sigma, **named):
                in_the_middle = bool(0.2 < float(sigma.flatten()[0]) < 0.95)
                return model(x, sigma * factor if in_the_middle else sigma, **named)

        return function(Shifting(), x, sigmas, **others)

    return comfy.samplers.KSAMPLER(sample_shifted)


class TestShiftedLevels:
    @pytest.mark.parametrize(
        ("name", "evaluations", "factor"),
        [("euler", 1, 0.8), ("euler", 1, 1.05), ("dpmpp_2m", 1, 0.9), ("heun", 2, 0.8), ("dpm_2", 2, 0.9)],
    )
    def test_every_step_is_as_planned(self, sd3, name, evaluations, factor):
        config = RASConfig(sample_ratio=0.5, start_step=4, error_reset_every=0, cuda_graphs="off")
        function = getattr(comfy.k_diffusion.sampling, f"sample_{name}")
        patched = patch_model(sd3.build(), config)
        guider = guider_of(comfy.samplers.CFGGuider, patched, sd3)
        guided(guider, sd3.noise(), shifted(function, factor), steps=14)
        trace = last_trace(patched)
        assert trace.n_steps == 14 and [step.step for step in trace.steps] == list(range(14))
        assert dense_steps(trace) == [0, 1, 2, 3] and trace.regional_steps == 10 and not trace.notes
        assert len(trace.evaluations) == 14 * evaluations - (evaluations - 1)
        if evaluations > 1:
            regional = sum(each.kind.value == "regional" for each in trace.evaluations)
            assert f"({regional} of {len(trace.evaluations)} evaluations)" in trace.summary()

    def test_a_schedule_of_its_own_is_read_from_the_levels(self, sd3):
        """A sampler that takes half as many, twice as long steps as it was asked to."""

        def sample_half(model, x, sigmas, **others):
            return comfy.k_diffusion.sampling.sample_euler(model, x, sigmas[::2], **others)

        patched = patch_model(sd3.build(), EAGER)
        guider = guider_of(comfy.samplers.CFGGuider, patched, sd3)
        guided(guider, sd3.noise(), comfy.samplers.KSAMPLER(sample_half), steps=STEPS)
        assert [step.step for step in last_trace(patched).steps][-2:] == [6, 8]


class TestGuidanceThatChanges:
    """Guidance that leaves the negative prompt out of some steps."""

    @pytest.mark.parametrize("kv_cache", ["gpu", "forecast"])
    @pytest.mark.parametrize(
        ("skips", "joins", "near"),
        [(range(3, 6), 0, 0.1), (range(4, 10), 0, 0.1), (range(4), 1, 0.1), (range(3, 10, 2), 0, 0.25)],
    )
    def test_the_negative_prompt_stops_and_returns(self, sd3, skips, joins, near, kv_cache):
        """All steps are regional as planned; only if the prompt joins late, its first evaluation is dense."""
        model, noise = sd3.build(), sd3.noise()
        nearly = RASConfig(
            sample_ratio=0.9, start_step=2, error_reset_every=0, cuda_graphs="off", kv_cache=kv_cache,
            corrections=True,
        )  # fmt: skip
        latents = []
        for settings in (None, nearly):
            guiding = patch_model(model, settings) if settings else model.clone()
            guiding.add_wrapper_with_key(
                WrappersMP.PREDICT_NOISE, "skips", positive_alone(skips.__contains__)
            )
            latents.append(sample(guiding, sd3, noise))
        trace = last_trace(guiding)
        assert distance(*latents) < near
        assert trace.regional_steps == 8 - joins and len(trace.evaluations) == STEPS
        assert trace.notes == (UNCACHED_ONCE,) * joins

    def test_prompts_that_take_turns(self, sd3):
        """Of two positive prompts, each applies to every second step."""
        turns, prompts = [], [sd3.conditioning(10), sd3.conditioning(11)]

        def alternate(executor, x, timestep, model_options, seed):
            turns.append(1)
            guider, conds = executor.class_obj, executor.class_obj.conds
            guider.conds = {**conds, "positive": [conds["positive"][len(turns) % 2]]}
            try:
                return executor(x, timestep, model_options, seed)
            finally:
                guider.conds = conds

        patched = patch_model(sd3.build(), EAGER)
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "alternate", alternate)
        sample(patched, sd3, sd3.noise(), positive=prompts[0] + prompts[1])
        trace = last_trace(patched)
        assert trace.notes == (UNCACHED_ONCE,) and trace.regional_steps == 6

    def test_several_prompts_that_join_are_counted(self, sd3):
        late = []
        for start in (0.4, 0.75):
            late += sd3.conditioning(3 + len(late))
            late[-1][1]["start_percent"], late[-1][1]["end_percent"] = start, 1.0
        _, trace = sample_ras(
            sd3.build(), sd3, sd3.noise(), EAGER, positive=sd3.conditioning(1) + late, cfg=1.0
        )
        dense = STEPS - trace.regional_steps - len(DENSE)
        assert dense == 2 and trace.notes == (UNCACHED_OFTEN.format(2),)

    @pytest.mark.parametrize("name", ["sd3", "z_image"])
    @pytest.mark.parametrize("of", ["positive", "negative"])
    @pytest.mark.parametrize("sizes", [[1, 1, 1], [2, 1], [1, 2]], ids=str)
    def test_an_evaluation_that_a_prompt_joins_is_dense_in_all_calls(self, name, of, sizes, monkeypatch):
        """Guidance must not compare a fresh estimate with one of the step before, so it does not matter how
        ComfyUI groups the prompts into calls.
        """
        family = FAMILIES[name]
        prompts = {"positive": family.conditioning(1), "negative": family.conditioning(2)}
        late = family.conditioning(3)
        late[0][1].update(start_percent=0.4, end_percent=1.0)
        prompts[of] = prompts[of] + late
        model, latents, traces = family.build(), [], []
        for wrapper in (CALC_COND_BATCH, partial(in_small_calls, sizes)):
            monkeypatch.setattr(comfy.samplers, "_calc_cond_batch", wrapper)
            latent, trace = sample_ras(model, family, family.noise(), EAGER, **prompts)
            latents.append(latent)
            traces.append(trace)
        (joined,) = set(dense_steps(traces[0])) - set(DENSE)
        assert dense_steps(traces[1]) == sorted([*DENSE, joined])
        assert traces[0].notes == traces[1].notes == (UNCACHED_ONCE,)
        assert distance(*latents) < 1e-3

    def test_a_prompt_that_is_not_evaluated_joins_nothing(self, sd3):
        """At cfg 1, ComfyUI leaves the negative prompt out."""
        late = sd3.conditioning(2)
        late[0][1].update(start_percent=0.4, end_percent=1.0)
        _, trace = sample_ras(sd3.build(), sd3, sd3.noise(), EAGER, negative=late, cfg=1.0)
        assert is_as_planned(trace)


def in_small_calls(sizes, model, conds, x_in, timestep, model_options):
    """ComfyUI's function `_calc_cond_batch`, in calls with so many prompts each. The outputs of the prompts
    that share a name are averaged, as ComfyUI does.
    """
    prompts = [(i, cond) for i, group in enumerate(conds) for cond in group or () if is_due(cond, timestep)]
    found, numbers = {}, iter(prompts)
    for size in sizes:
        part = list(islice(numbers, size))
        outputs = CALC_COND_BATCH(model, [[cond] for _, cond in part], x_in, timestep, model_options)
        for (i, _), output in zip(part, outputs, strict=True):
            found.setdefault(i, []).append(output)
    return [sum(found[i]) / len(found[i]) for i in range(len(conds))]


def is_due(cond, timestep) -> bool:
    return START not in cond or float(timestep[0]) <= cond[START]


def cut(part):
    """A wrapper OUTER_SAMPLE or SAMPLER_SAMPLE that keeps only a part of the noise levels."""

    def wrapper(executor, *args, **kwargs):
        args = [each[part] if isinstance(each, torch.Tensor) and each.ndim == 1 else each for each in args]
        return executor(*args, **kwargs)

    return wrapper


def twice(change=lambda sigmas: sigmas):
    """An OUTER_SAMPLE wrapper that samples twice, with other noise levels the first time, and returns both
    latents' mean.
    """

    def wrapper(executor, noise, latent_image, sampler, sigmas, *others, **named):
        first = executor(noise, latent_image, sampler, change(sigmas), *others, **named)
        return (first + executor(noise, latent_image, sampler, sigmas, *others, **named)) / 2

    return wrapper


class TestSamplingTwice:
    """Wrappers of other packs that sample more than once in what ComfyUI counts as one run."""

    @pytest.mark.parametrize("config", [EAGER, MULTIRATE], ids=["paper", "multirate"])
    @pytest.mark.parametrize("is_outside", [True, False])
    def test_both_times_are_accelerated(self, sd3, is_outside, config):
        noise, model = sd3.noise(), sd3.build()
        if not is_outside:
            model = patch_model(model, config)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "twice", twice())
        patched = patch_model(model, config) if is_outside else model
        latent, trace = sample(patched, sd3, noise), last_trace(patched)
        single, expected = sample_ras(sd3.build(), sd3, noise, config)
        assert torch.equal(latent, single) and not trace.notes
        passes = 1 if is_outside else 2  # from outside, each time is a run of its own
        assert (trace.n_steps, len(trace.evaluations)) == (passes * STEPS, passes * STEPS)
        assert trace.regional_steps == passes * expected.regional_steps
        assert trace.token_share == pytest.approx(expected.token_share)
        assert [step.step for step in trace.steps] == list(range(passes * STEPS))

    def test_a_shorter_time_before(self, sd3):
        """The steps of each time are planned for its own noise levels."""
        model = patch_model(sd3.build(), EAGER)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "twice", twice(lambda sigmas: sigmas[::2]))
        noise = sd3.noise()
        latent, trace = sample(model, sd3, noise), last_trace(model)
        assert (trace.n_steps, trace.regional_steps) == (5 + STEPS, 3 + 7) and not trace.notes
        halves = []
        for every in (2, 1):
            plain = patch_model(sd3.build(), EAGER)
            sampling = plain.get_model_object("model_sampling")
            sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)[::every]
            halves.append(guided(guider_of(comfy.samplers.CFGGuider, plain, sd3), noise, sigmas=sigmas))
        assert torch.equal(latent, (halves[0] + halves[1]) / 2)

    def test_other_steps_than_the_plan_of_a_speed_has(self, sd3):
        """A plan has shares for its own number of steps only: dense, with the reason, to the bit."""
        noise, latents = sd3.noise(), []
        shares = RASConfig(shares=(1.0,) * 4 + (0.5,) * 6, cuda_graphs="off")
        for patch in (lambda model: patch_model(model, shares), lambda model: model):
            model = patch(sd3.build())
            model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "twice", twice(lambda sigmas: sigmas[::2]))
            latents.append(sample(model, sd3, noise))
            if patch(model) is not model:
                (note,) = last_trace(model).notes
        assert torch.equal(*latents) and passes.CHANGED_STEPS.format(10, 5) in note

    @pytest.mark.parametrize("part", [slice(0, 6), slice(11, None)])
    @pytest.mark.parametrize(("order", "sampler"), [("before", "euler"), ("after", "dpmpp_2m")])
    def test_a_wrapper_of_the_sampler_that_cuts_noise_levels_by_index(self, part, order, sampler, sd3):
        """It must get the sampler's own noise levels, not those of a plan, or the latent would have another
        noise level at the end. Its number of steps is not the plan's, so all steps are dense.
        """
        noise, latents = sd3.noise(), []
        for settings in (None, Speed("2x")):
            model = sd3.build()
            if settings and order == "after":
                model = patch_model(model, settings)
            model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "cut", cut(part))
            if settings and order == "before":
                model = patch_model(model, settings)
            latents.append(sample(model, sd3, noise, sampler=sampler, steps=16))
        (note,) = last_trace(model).notes
        assert passes.CHANGED_STEPS.format(16, 5) in note and passes.OTHER_LEVELS not in note
        assert torch.equal(*latents)

    @pytest.mark.parametrize("settings", [Speed("2x"), EAGER])
    def test_the_reason_says_that_a_cut_of_a_plans_levels_changes_the_end(self, settings, sd3):
        model = patch_model(sd3.build(), settings)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "cut", cut(slice(0, 4)))
        sample(model, sd3, sd3.noise())
        notes = last_trace(model).notes
        assert len(notes) == (settings is not EAGER)
        assert all(note.endswith(passes.OTHER_LEVELS) and len(note) <= 300 for note in notes)

    def test_noise_levels_that_rise(self, sd3):
        model = patch_model(sd3.build(), MULTIRATE)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "twice", twice(lambda s: s.flip(0)[1:]))
        sample(model, sd3, sd3.noise(), sampler="dpmpp_2m")
        assert last_trace(model).notes == (f"running dense from here: {passes.NOT_DECREASING}",)

    def test_calls_are_captured_once(self, sd3):
        model, tape, noise = sd3.build(), FrozenTape(), sd3.noise()
        capture_on(model, tape)
        patched = patch_model(model, FAST)
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "twice", twice())
        latent = sample(patched, sd3, noise)
        expected, _ = sample_ras(sd3.build(), sd3, noise, EAGER)
        trace = last_trace(patched)
        assert distance(latent, expected) < 2e-5 and not trace.notes
        assert trace.regional_steps == 14 and trace.graphs.replayed >= 12 and tape.captured == 1


@pytest.mark.parametrize("config", [FAST, MULTIRATE, Speed("2x")], ids=["paper", "multirate", "2x"])
def test_a_callback_that_writes_into_the_estimate_does_not_change_the_image(sd3, config):
    """In ComfyUI, euler no longer needs the estimate when it calls the callback."""
    model, noise = sd3.build(), sd3.noise()
    expected = sample(patch_model(model, config), sd3, noise, steps=16)
    patched = patch_model(model, config)
    found = sample(patched, sd3, noise, steps=16, callback=lambda step, x0, *_: x0.zero_())
    assert torch.equal(found, expected)
    assert last_trace(patched).regional_steps > 0


class TestRASOnASecondModel:
    """ComfyUI calls the wrappers of a guider's first model only."""

    def test_the_first_model_has_no_ras(self, sd3, caplog):
        second, noise = patch_model(sd3.build(seed=7), EAGER), sd3.noise()
        guider = _two_models(sd3, sd3, lambda model: second)
        for _ in range(2):
            latent = guided(guider(sd3.build()), noise)
        assert torch.equal(latent, guided(_two_models(sd3, sd3)(sd3.build()), noise))
        assert caplog.text.count(NO_EFFECT) == 1
        assert last_trace(second).reason == NO_EFFECT == trace_of(second, {"samples": latent}).reason

    @pytest.mark.parametrize("settings", [EAGER, Speed("2x")])
    def test_both_models_have_ras(self, settings, sd3, caplog):
        first, noise = patch_model(sd3.build(), EAGER), sd3.noise()
        guider = _two_models(sd3, sd3, lambda model: patch_model(model, settings))
        latent, trace = guided(guider(first), noise), last_trace(first)
        assert trace.regional_steps == 7 and not trace.reason
        is_ignored = settings != EAGER
        assert trace.remarks == (IGNORED,) * is_ignored and (IGNORED in trace.summary()) is is_ignored
        assert caplog.text.count(f"RAS: {IGNORED}") == is_ignored
        alone = patch_model(sd3.build(), EAGER)
        assert torch.equal(latent, guided(_two_models(sd3, sd3)(alone), noise))

    def test_one_model_twice(self, sd3, caplog):
        patched = patch_model(sd3.build(), EAGER)
        guided(_two_models(sd3, sd3, lambda model: patched)(patched), sd3.noise())
        assert not last_trace(patched).remarks and NO_EFFECT not in caplog.text

    def test_a_run_inside_another_run(self, sd3, caplog):
        """A callback may sample with another patched model, as its guider's own model."""
        outer, inner, traces = patch_model(sd3.build(), EAGER), patch_model(sd3.build(), Speed("2x")), []

        def callback(step, *others):
            if step == 3:
                sample(inner, sd3, sd3.noise())
                traces.append(last_trace(inner))

        sample(outer, sd3, sd3.noise(), callback=callback)
        traces.append(last_trace(outer))
        assert [trace.remarks for trace in traces] == [(), ()] and NO_EFFECT not in caplog.text

    def test_a_model_whose_ras_was_removed(self, sd3, caplog):
        patched = patch_model(sd3.build(), EAGER)
        removed = patched.clone()
        removed.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
        for model in (removed, without_ras(patched)):
            sample(model, sd3, sd3.noise())
        assert NO_EFFECT not in caplog.text
