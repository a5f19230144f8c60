"""Each value of the `speed` setting in runs by ComfyUI's own sampling nodes.

Tests check the cost of the run, which plan the speed selects, and what the speed must not change."""

import json
import re
from itertools import pairwise
from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import folder_paths
import latent_preview
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from ras_pack.nodes.compare import RASCompare
from ras_pack.nodes.live import end_message
from ras_pack.nodes.patch_model import RASPatchModel
from ras_pack.nodes.plans import RASScheduler
from ras_pack.nodes.sampler import RASKSampler
from ras_pack.nodes.settings import CUSTOM
from ras_pack.ras_core.config import RASConfig, Window
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.host import cache_plan, samplers
from ras_pack.ras_core.host.measured_runs import simple_levels
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.host.plan_files import save_plans
from ras_pack.ras_core.host.plans import FINE_LEVELS, plans_for
from ras_pack.ras_core.host.run_facts import NEEDS_PLAN_SAMPLER
from ras_pack.ras_core.host.speed import REPLACED, Speed
from ras_pack.ras_core.method import small_images
from ras_pack.ras_core.method.family_plans import family_plans
from ras_pack.ras_core.method.few_steps import AT_LEAST, FEW_STEPS_PLAN, NO_ROOM, STAYS_OUT
from ras_pack.ras_core.method.plan import PLAN_SPEEDS, Plan
from ras_pack.ras_core.method.plan_set import PlanSet
from ras_pack.ras_core.method.rhythm import Rhythm
from ras_pack.ras_core.method.shares import percent
from ras_pack.ras_core.run.references import DENSE_ONLY
from support.families import FAMILIES
from support.rotated import rotated

import nodes as host_nodes

STEPS = 28
SAMPLERS = ("euler", "dpmpp_2m")
OF_FAMILY = {speed: family_plans("sd3").best(speed).steps for speed in PLAN_SPEEDS}
"""Steps of the family's plans for a run of STEPS steps."""
DEFAULTS = {
    "sample_ratio": 0.5, "start_percent": 0.2, "end_percent": 1.0, "error_reset_every": 0,
    "cuda_graphs": "off", "kv_cache": "auto",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_user_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))


@pytest.fixture(autouse=True)
def _as_comfyui_executes_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture
def progress(monkeypatch):
    """A list of (step, total) from every progress callback of ComfyUI's sampling nodes."""
    seen, prepare = [], latent_preview.prepare_callback

    def watched(*args, **kwargs):
        callback = prepare(*args, **kwargs)

        def told(step, x0, x, total):
            seen.append((step, total))
            callback(step, x0, x, total)

        return told

    monkeypatch.setattr(latent_preview, "prepare_callback", watched)
    return seen


def values(family, **changes):
    """KSampler's inputs."""
    return {
        "seed": 3, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple",
        "positive": family.conditioning(1), "negative": family.conditioning(2),
        "latent_image": {"samples": torch.zeros(1, family.channels, 16, 12)}, "denoise": 1.0, **changes,
    }  # fmt: skip


def ras_ksampler(family, speed, model=None, plan=None, settings=None, **changes):
    """Run the node RASKSampler. Returns its latent and its trace."""
    inputs = {"speed": speed, "plan": plan, **DEFAULTS, **(settings or {}), **values(family, **changes)}
    latent, trace = RASKSampler.execute(model=model or family.build(), **inputs).result
    return latent["samples"], trace


def ras_model(family, speed, model=None, plan=None, **settings):
    return RASPatchModel.execute(
        model or family.build(), speed=speed, plan=plan, **{**DEFAULTS, **settings}
    ).result[0]


def ksampler(model, family, **changes):
    return host_nodes.KSampler().sample(model, **values(family, **changes))[0]["samples"]


def advanced(model, family, start, end, latent, leftover=True, **changes):
    """The latent after steps `start` to `end` of a run, computed by ComfyUI's node KSamplerAdvanced."""
    given = values(family, **changes)
    given.pop("denoise")
    seed = given.pop("seed")
    return host_nodes.KSamplerAdvanced().sample(
        model, add_noise="enable" if start == 0 else "disable", noise_seed=seed, start_at_step=start,
        end_at_step=end, return_with_leftover_noise="enable" if leftover else "disable",
        **{**given, "latent_image": {"samples": latent}},
    )[0]["samples"]  # fmt: skip


def custom(model, family, sampler, sigmas, **changes):
    node, given = SamplerCustom(), values(family, **changes)
    run = getattr(node, "sample", None) or node.execute
    result = run(
        model, True, given["seed"], given["cfg"], given["positive"], given["negative"], sampler, sigmas,
        given["latent_image"],
    )  # fmt: skip
    return (result.result if hasattr(result, "result") else result)[0]["samples"]


def factor(speed: str) -> float:
    return float(speed.removesuffix("x"))


def gain(trace, full_steps=STEPS) -> float:
    """The expected speed-up (FLOPs) of the run over a dense run of `full_steps` steps."""
    return trace.expected_speedup * full_steps / len(trace.evaluations)


def levels_of(trace) -> list[float]:
    return [evaluation.sigma for evaluation in trace.evaluations]


def planned(speed="2x", sampler="euler", steps=17, share=0.5, dense=11, density=(0.7, 0.3), **more):
    shares = (1.0,) * dense + (share,) * (steps - dense)
    return PlanSet((Plan(speed, sampler, density, shares, origin="made for a test", **more),))


PLAIN = planned(steps=14, dense=14)
"""A plan without regional steps."""


class TestCost:
    @rotated("speed", PLAN_SPEEDS)
    def test_families_and_speeds_reach_their_cost_through_both_entry_points(self, family, speed):
        model = family.build()
        latent, trace = ras_ksampler(family, speed, model)
        assert gain(trace) == pytest.approx(factor(speed), rel=0.05)
        behind = ras_model(family, speed, model)
        assert torch.equal(ksampler(behind, family), latent)
        assert levels_of(last_trace(behind)) == levels_of(trace)

    @rotated("sampler_name", SAMPLERS)
    def test_a_plan_with_regional_steps_through_both_entry_points(self, family, sampler_name):
        plan = planned(sampler=sampler_name, share=0.4, dense=6, steps=18)
        latent, trace = ras_ksampler(family, "2x", plan=plan, sampler_name=sampler_name)
        assert (trace.n_steps, trace.regional_steps) == (18, 12)
        assert trace.plan == f"2x: 18 steps instead of 28, 6 dense, {percent(trace.token_share)} of tokens"
        behind = ras_model(family, "2x", plan=plan)
        assert torch.equal(ksampler(behind, family, sampler_name=sampler_name), latent)
        sigmas = comfy.samplers.calculate_sigmas(behind.get_model_object("model_sampling"), "simple", STEPS)
        found = custom(behind, family, comfy.samplers.sampler_object(sampler_name), sigmas)
        assert torch.equal(found, latent)

    @pytest.mark.parametrize("steps", [20, 25, 45])
    def test_a_measured_plan_with_another_number_of_steps(self, sd3, steps):
        """A measured plan has the cost of its speed with the number of steps at which it was measured."""
        plan = Plan("2.5x", "euler", (0.7, 0.3), Rhythm(start=6, share=0.51, every=2).shares(13))
        _, trace = ras_ksampler(sd3, "2.5x", plan=PlanSet((plan,)), steps=steps)
        assert gain(trace, steps) == pytest.approx(2.5, rel=0.05)

    def test_several_shares_are_computed_as_planned(self, sd3):
        shares = (1.0,) * 4 + (0.75,) * 4 + (0.5,) * 3 + (1.0,) + (0.25,) * 4
        plan = PlanSet((Plan("2x", "euler", (1.0,), shares),))
        _, trace = ras_ksampler(sd3, "2x", plan=plan)
        assert [step.active_share for step in trace.steps] == list(shares)
        assert [step.is_reset for step in trace.steps].index(True) == 11

    def test_other_samplers_keep_their_grid(self, family, info):
        """With a sampler for which there are no plans, the number of steps and the noise levels stay. The
        share of active tokens is lowered until the run has the speed-up.
        """
        model = family.build()
        _, trace = ras_ksampler(family, "2x", model, sampler_name="lms")
        assert (trace.n_steps, levels_of(trace)) == (STEPS, pytest.approx(simple_levels(model, STEPS)[:-1]))
        assert f"the noise levels are kept: {NEEDS_PLAN_SAMPLER}" in info.text
        assert gain(trace) == pytest.approx(2, rel=0.05) or "is all that 28 steps can reach" in info.text

    def test_rows_of_reference_images_are_counted(self, info):
        kontext = FAMILIES["flux_kontext"]
        _, trace = ras_ksampler(kontext, "1.5x", kontext.build(), sampler_name="lms")
        said = f"{gain(trace):.2f}x is all that 28 steps can reach" in info.text
        assert gain(trace) == pytest.approx(1.5, rel=0.05) or said

    @pytest.mark.parametrize("kind", ["family", "measured", "kept levels", "levels of RAS Scheduler"])
    @pytest.mark.parametrize("speed", ["1.5x", "3x"])
    def test_editing_has_no_successive_regional_steps(self, kind, speed):
        """Successive ones would use outdated reference images, whatever the origin of the plan."""
        kontext = FAMILIES["flux_kontext"]
        shares = (1.0,) * 5 + (0.6,) * 12
        measured = PlanSet(tuple(Plan(each, "dpmpp_2m", (0.6, 0.4), shares) for each in PLAN_SPEEDS))
        plan, sampler = (measured if kind == "measured" else None), "dpmpp_2m"
        if kind == "levels of RAS Scheduler":
            model = ras_model(kontext, speed)
            made = RASScheduler.execute(model, speed, STEPS, 1.0, sampler).result[0]
            custom(model, kontext, comfy.samplers.sampler_object(sampler), made)
            trace = last_trace(model)
        else:
            name = "lms" if kind == "kept levels" else sampler
            _, trace = ras_ksampler(kontext, speed, plan=plan, sampler_name=name)
        regional = [each.step for each in trace.evaluations if each.active_share < 1]
        assert regional and all(later - step > 1 for step, later in pairwise(regional))
        assert DENSE_ONLY in trace.remarks

    def test_cheap_regional_steps_of_editing_become_more_steps(self):
        """Regional steps leave out the rows of reference images, so the budget of 14 dense steps pays for
        more steps than without references. Every second one is dense, so that these rows stay fresh.
        """
        kontext = FAMILIES["flux_kontext"]
        _, trace = ras_ksampler(kontext, "2x", kontext.build(), sampler_name="dpmpp_2m")
        assert (trace.n_steps, trace.regional_steps, trace.notes) == (18, 7, ())
        assert gain(trace) == pytest.approx(2, rel=0.05)

    @pytest.mark.parametrize("speed", PLAN_SPEEDS)
    @pytest.mark.parametrize(("family", "rows"), [("flux_kontext", 4), ("flux", 4), ("flux", 20)])
    def test_levels_of_ras_scheduler(self, speed, family, rows):
        """RAS Scheduler does not know the prompt and the reference images, on which costs depend."""
        family = FAMILIES[family]
        model = ras_model(family, speed)
        made = RASScheduler.execute(model, speed, STEPS, 1.0, "euler").result[0]
        text = {"positive": family.conditioning(1, rows=rows), "negative": family.conditioning(2, rows=rows)}
        custom(model, family, comfy.samplers.sampler_object("euler"), made, **text)
        trace = last_trace(model)
        assert trace.n_steps == len(made) - 1 and trace.regional_steps > 0 and trace.notes == ()
        assert gain(trace) == pytest.approx(factor(speed), rel=0.05)

    def test_a_family_plan_that_too_few_tokens_would_have_to_pay_for_gives_way_to_the_plain_one(self):
        flux = FAMILIES["flux"]
        for rows, expected in ((4, (17, 7, ())), (20, (16, 9, ())), (80, (14, 0, ()))):
            text = {"positive": flux.conditioning(1, rows=rows), "negative": flux.conditioning(2, rows=rows)}
            _, trace = ras_ksampler(flux, "2x", flux.build(), sampler_name="dpmpp_2m", **text)
            assert (trace.n_steps, trace.regional_steps, trace.notes) == expected

    @pytest.mark.small_images
    def test_a_small_image_has_dense_steps_only(self, sd3, monkeypatch):
        """Unless its plan was measured at this size."""
        for limit, regional in ((49, 0), (48, 12)):  # the image has 48 tokens
            monkeypatch.setattr(small_images, "LEAST_TOKENS", limit)
            _, trace = ras_ksampler(sd3, "2x")
            assert (trace.n_steps, trace.regional_steps) == (17 if regional else 14, regional)
            assert trace.plan.endswith(small_images.SMALL_IMAGE_PLAN) == (not regional)
        monkeypatch.setattr(small_images, "LEAST_TOKENS", 49)
        assert ras_ksampler(sd3, "2x", plan=planned())[1].regional_steps > 0

    @pytest.mark.small_images
    def test_512_pixels_are_not_small(self):
        assert not small_images.is_small(32 * 32) and small_images.is_small(24 * 24)

    def test_what_is_reached_is_said(self, sd3, info):
        text = {"positive": sd3.conditioning(1, rows=40), "negative": sd3.conditioning(2, rows=40)}
        _, trace = ras_ksampler(sd3, "3x", steps=24, sampler_name="lms", **text)
        assert gain(trace, 24) < 2.5
        assert f"{gain(trace, 24):.2f}x is all that 24 steps can reach" in info.text

    @pytest.mark.parametrize("steps", [9, 10, 12, 15, 16, 20, 50])
    def test_any_number_of_steps(self, sd3, steps):
        """With less than the cost of eight dense steps, all steps are dense."""
        _, trace = ras_ksampler(sd3, "2x", steps=steps, plan=planned())
        assert trace.n_steps == max(round(steps * 17 / 28 if steps >= 16 else steps / 2), 5)
        assert bool(trace.regional_steps) == (steps >= 16) and not trace.notes

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_few_dense_steps_are_those_of_euler(self, sd3, sampler):
        model = sd3.build()
        latent, trace = ras_ksampler(sd3, "2x", model, steps=10, sampler_name=sampler)
        sigmas = torch.tensor(RASScheduler.execute(ras_model(sd3, "2x"), "2x", 10, 1.0, sampler).result[0])
        assert len(sigmas) - 1 == trace.n_steps == 5
        assert torch.equal(custom(model, sd3, comfy.samplers.sampler_object("euler"), sigmas), latent)

    @pytest.mark.parametrize(("steps", "sampler"), [(10, "euler"), (14, "dpmpp_2m"), (12, "lms")])
    def test_few_steps_leave_no_room_for_regional_ones(self, sd3, steps, sampler):
        _, trace = ras_ksampler(sd3, "2x", steps=steps, sampler_name=sampler)
        assert trace.regional_steps == 0 and trace.n_steps == (steps if sampler == "lms" else steps // 2)
        assert trace.reason == (NO_ROOM if sampler == "lms" else "")
        assert trace.plan.endswith("all dense" if sampler == "lms" else FEW_STEPS_PLAN)

    def test_progress_counts_the_plans_steps(self, sd3, progress):
        _, trace = ras_ksampler(sd3, "3x", sampler_name="dpmpp_2m")
        steps = OF_FAMILY["3x"]
        assert progress == [(step, steps) for step in range(steps)] and trace.regional_steps > 0
        progress.clear()
        ras_ksampler(sd3, "2x", plan=planned())
        assert progress == [(step, 17) for step in range(17)]


class TestLevels:
    """A plan has its own noise levels, but the first and the last are those of the sampler's schedule."""

    @pytest.mark.parametrize("sampler_name", SAMPLERS)
    def test_it_is_plain_sampling_on_the_grid(self, sd3, sampler_name):
        """If all steps of a plan are dense, the run equals plain sampling on the plan's noise levels."""
        model = sd3.build()
        plan = plans_for(model).best("2x", sampler_name, plain=True)
        latent, trace = ras_ksampler(sd3, "2x", model, sampler_name=sampler_name, plan=PlanSet((plan,)))
        assert plan.is_plain and trace.regional_steps == 0 and trace.notes == ()
        sigmas = torch.tensor(plan.levels(simple_levels(model, FINE_LEVELS)))
        assert plan.solver == "ab2"
        assert torch.equal(custom(model, sd3, samplers.multirate_sampler("ab2"), sigmas), latent)

    @pytest.mark.parametrize("speed", ["2x", "3x"])
    def test_the_log_names_the_solver(self, sd3, speed, caplog):
        with caplog.at_level("INFO"):
            ras_ksampler(sd3, speed, sampler_name="dpmpp_2m")
        assert "(sampler ab2 in place of dpmpp_2m, " in caplog.text

    def test_any_scheduler_of_comfyui_makes_way(self, sd3):
        simple, _ = ras_ksampler(sd3, "2x")
        for scheduler in ("karras", "beta", "sgm_uniform"):
            found, trace = ras_ksampler(sd3, "2x", scheduler=scheduler)
            assert trace.n_steps == OF_FAMILY["2x"]
            assert torch.allclose(found, simple, atol=1e-3)

    @pytest.mark.parametrize("plan", [PLAIN, planned()], ids=["plain", "regional"])
    def test_denoise(self, sd3, plan):
        model = sd3.build()
        latent = torch.randn(1, 16, 16, 12, generator=torch.Generator().manual_seed(1))
        changes = {"denoise": 0.6, "latent_image": {"samples": latent}}
        found, trace = ras_ksampler(sd3, "2x", model, plan, **changes)
        own = comfy.samplers.KSampler(model, STEPS, torch.device("cpu"), "euler", "simple", 0.6).sigmas
        assert levels_of(trace)[0] == pytest.approx(float(own[0]))
        assert trace.n_steps == (14 if plan is PLAIN else 17)
        dense = ksampler(model, sd3, **changes)
        assert (found - dense).norm() < 0.25 * (dense - latent).norm()

    def test_halves_have_the_levels_of_the_whole(self, sd3):
        """If the plan's steps are spaced evenly, two half runs have exactly the noise levels of the whole
        run. (Their result differs a little, as the second half does not know the estimates of the first.)
        """
        plan = planned("3x", steps=14, dense=14, density=(1.0,))
        model = ras_model(sd3, "3x", plan=plan)
        empty = values(sd3)["latent_image"]["samples"]
        ksampler(model, sd3)
        whole = levels_of(last_trace(model))
        half = advanced(model, sd3, 0, 14, empty)
        first = levels_of(last_trace(model))
        advanced(model, sd3, 14, STEPS, half)
        assert len(first) == 7 and [*first, *levels_of(last_trace(model))] == pytest.approx(whole)

    @pytest.mark.parametrize("sampler_name", SAMPLERS)
    def test_halves_meet_at_the_level_between_them(self, sd3, sampler_name):
        model = ras_model(sd3, "2x")
        simple = simple_levels(model, STEPS)
        half = advanced(model, sd3, 0, 14, values(sd3)["latent_image"]["samples"], sampler_name=sampler_name)
        first = last_trace(model)
        advanced(model, sd3, 14, STEPS, half, leftover=False, sampler_name=sampler_name)
        second = last_trace(model)
        assert (levels_of(first)[0], levels_of(second)[0]) == pytest.approx((simple[0], simple[14]))
        assert len(levels_of(first)) == len(levels_of(second)) == OF_FAMILY["2x"] // 2

    @pytest.mark.parametrize("speed", ["1.5x", "2x", "3x"])
    @pytest.mark.parametrize("sampler_name", SAMPLERS)
    def test_a_part_of_one_step_saves_nothing_and_reports_no_gain(self, sd3, speed, sampler_name, info):
        """A single step has no levels inside, which could tell a plan's steps from the sampler's."""
        model, given = ras_model(sd3, speed), values(sd3)
        for start in (0, 13, STEPS - 1):
            latent = given["latent_image"]["samples"]
            advanced(model, sd3, start, start + 1, latent, sampler_name=sampler_name)
            trace = last_trace(model)
            assert trace.plan == f"{speed}: 1 of 1 steps, all dense" and not trace.is_accelerated
        RASKSampler.execute(model=sd3.build(), **{**DEFAULTS, **given, "speed": speed, "steps": 1})
        assert not any(f"{speed}: 1 of {steps} steps" in info.text for steps in (2, 3))

    @pytest.mark.parametrize("part", [2, 3, 5])
    def test_a_short_part_has_the_steps_that_the_speed_leaves(self, sd3, part):
        model = ras_model(sd3, "2x")
        for start in (0, 10, STEPS - part):
            advanced(model, sd3, start, start + part, values(sd3)["latent_image"]["samples"])
            trace = last_trace(model)
            said = "1 of 2 steps" if part == 2 else f"{trace.n_steps} steps instead of {part}"
            assert trace.n_steps < part and trace.plan.startswith(f"2x: {said}")

    @pytest.mark.parametrize("plan", [PLAIN, planned()], ids=["plain", "regional"])
    def test_the_schedulers_levels_are_not_shortened_again(self, sd3, plan):
        model = ras_model(sd3, "2x", plan=plan)
        made = RASScheduler.execute(model, "2x", STEPS, 1.0, "euler", plan).result[0]
        sampler = comfy.samplers.sampler_object("euler")
        found = custom(model, sd3, sampler, made)
        assert last_trace(model).n_steps == len(made) - 1 == (14 if plan is PLAIN else 17)
        assert torch.allclose(found, ras_ksampler(sd3, "2x", plan=plan)[0], atol=1e-5)

    @pytest.mark.parametrize(
        ("solver", "plans"), [("euler", "euler"), ("dpmpp_2m", "dpmpp_2m"), ("ab2", "dpmpp_2m")]
    )
    def test_the_multirate_sampler_takes_the_plans_of_its_order(self, solver, plans):
        assert samplers.plan_sampler(samplers.multirate_sampler(solver)) == plans

    @pytest.mark.parametrize("solver", ["dpmpp_2m", "ab2"])
    def test_the_multirate_sampler_keeps_its_order_and_the_log_names_no_other(self, sd3, solver, info):
        """The plan for dpmpp_2m at 2x is made for ab2, but here the user has chosen the solver."""
        model, sampler = sd3.build(), samplers.multirate_sampler(solver)
        plan = plans_for(model).best("2x", "dpmpp_2m", plain=True)
        sigmas = torch.tensor(plan.levels(simple_levels(model, FINE_LEVELS)))
        patched = patch_model(model, Speed("2x", PlanSet((plan,))))
        # A run without regional steps is computed by ComfyUI's sampler of this name, if there is one.
        same = sampler if solver == "ab2" else comfy.samplers.sampler_object(solver)
        assert torch.equal(custom(patched, sd3, sampler, sigmas), custom(model, sd3, same, sigmas))
        assert "(sampler dpmpp_2m, " in info.text and "in place of" not in info.text

    @pytest.mark.parametrize(
        "change", [lambda x: x * 0.9999, lambda x: x.half().float()], ids=["scaled", "float16"]
    )
    def test_the_schedulers_levels_that_a_node_has_changed_a_little(self, sd3, change, info):
        model = ras_model(sd3, "2x")
        made = change(RASScheduler.execute(model, "2x", STEPS, 1.0, "euler").result[0])
        custom(model, sd3, comfy.samplers.sampler_object("euler"), made)
        assert last_trace(model).n_steps == len(made) - 1 == OF_FAMILY["2x"] and REPLACED not in info.text

    def test_a_scheduler_that_resembles_an_even_grid(self):
        """For Flux, `sgm_uniform` has almost the levels of a plan with an even grid."""
        flux = FAMILIES["flux"]
        even = planned(steps=14, dense=14, density=(1.0,)).plans[0]
        model = ras_model(flux, "2x", plan=PlanSet((*planned().plans, even)))
        ksampler(model, flux, scheduler="sgm_uniform")
        trace = last_trace(model)
        assert trace.n_steps < 18 and (trace.asked_steps, trace.remarks) == (STEPS, ())

    @pytest.mark.parametrize("steps", [12, 28])
    def test_levels_of_ddim_uniform_are_not_custom(self, sd3, steps):
        model = ras_model(sd3, "2x")
        ksampler(model, sd3, scheduler="ddim_uniform", steps=steps)
        assert last_trace(model).remarks == ()

    def test_schedulers_without_a_function_are_not_tried(self, sd3, monkeypatch, caplog):
        """Other packs may add a name whose levels only their own code can make."""
        names = [*comfy.samplers.SCHEDULER_NAMES, "of_another_pack"]
        monkeypatch.setattr(comfy.samplers, "SCHEDULER_NAMES", names)
        ksampler(ras_model(sd3, "2x"), sd3, scheduler="karras")
        assert "of_another_pack" not in caplog.text

    def test_custom_levels_that_make_way_are_reported(self, sd3, info):
        model = ras_model(sd3, "2x")
        sigmas = RASScheduler.execute(model, "2x", STEPS, 1.0, "euler").result[0]
        between = torch.cat([sigmas[:1], (sigmas[:1] + sigmas[1:2]) / 2, sigmas[1:]])
        for levels, is_custom in ((between, True), (simple_levels(model, 18), False)):
            custom(model, sd3, comfy.samplers.sampler_object("euler"), torch.as_tensor(levels))
            trace = last_trace(model)
            assert trace.n_steps == round(18 * OF_FAMILY["2x"] / STEPS)
            assert trace.remarks == (REPLACED,) * is_custom
        assert info.text.count(f"Multirate RAS: {REPLACED}.") == 1

    @pytest.mark.parametrize("made_for", [("2x", "dpmpp_2m"), ("3x", "euler")])
    def test_the_schedulers_levels_for_another_choice_are_not_shortened_either(self, sd3, made_for):
        """RAS Scheduler's default sampler is dpmpp_2m, and that of ComfyUI's KSamplerSelect is euler. So a
        user can easily run a sampler on noise levels that were made for another one.
        """
        speed, sampler = made_for
        model = ras_model(sd3, "2x")
        made = RASScheduler.execute(model, speed, STEPS, 1.0, sampler).result[0]
        custom(model, sd3, comfy.samplers.sampler_object("euler"), made)
        assert levels_of(last_trace(model)) == pytest.approx(made[:-1].tolist())

    def test_an_even_grid_is_told_from_the_simple_schedule(self, sd3):
        """Noise levels made by RAS Scheduler must not be mistaken for ComfyUI's simple schedule, which would
        be shortened. With denoise below 1, the simple schedule must still be recognised.
        """
        plan = planned(steps=10, dense=10, density=(1.0,))
        model = ras_model(sd3, "2x", plan=plan)
        made = RASScheduler.execute(model, "2x", STEPS, 1.0, "euler", plan).result[0]
        custom(model, sd3, comfy.samplers.sampler_object("euler"), made)
        assert last_trace(model).n_steps == len(made) - 1 == 10
        ksampler(model, sd3, steps=12, denoise=0.6)
        assert last_trace(model).n_steps == round(12 * 10 / 28)

    @pytest.mark.parametrize(
        "sampler",
        [
            comfy.samplers.ksampler("euler", {"s_churn": 1.0}),
            comfy.samplers.sampler_object("euler_ancestral"),
            comfy.samplers.sampler_object("heun"),
        ],
    )
    def test_what_a_plan_was_not_made_for(self, sd3, info, sampler):
        model = ras_model(sd3, "2x")
        custom(model, sd3, sampler, torch.tensor(simple_levels(model, 20)))
        assert last_trace(model).n_steps == 20
        assert f"the noise levels are kept: {NEEDS_PLAN_SAMPLER}" in info.text

    @pytest.mark.parametrize(
        ("sigmas", "reason"),
        [
            ((14.6, *(14 - 0.7 * step for step in range(20)), 0.0), "outside the range of the model's own"),
            ((1.0, 0.7, 0.7, 0.5, 0.2, 0.0), "they are not strictly decreasing"),
        ],
    )
    def test_levels_of_another_kind_stay(self, sd3, info, sigmas, reason):
        model = ras_model(sd3, "2x")
        custom(model, sd3, comfy.samplers.sampler_object("euler"), torch.tensor(sigmas))
        assert last_trace(model).n_steps == len(sigmas) - 1 and reason in info.text


class TestFewSteps:
    """RAS stays out of a run with 8 or fewer steps over the whole schedule: the run is the user's own."""

    @pytest.mark.parametrize("steps", [1, 2, 4, 8])
    @pytest.mark.parametrize("sampler_name", [*SAMPLERS, "heun", "euler_ancestral"])
    @pytest.mark.parametrize("scheduler", ["simple", "beta"])
    def test_it_is_the_run_without_ras_to_the_bit(self, sd3, steps, sampler_name, scheduler, info):
        changes = {"steps": steps, "sampler_name": sampler_name, "scheduler": scheduler}
        plain, model = sd3.build(), ras_model(sd3, "2x", cuda_graphs="auto")
        assert torch.equal(ksampler(model, sd3, **changes), ksampler(plain, sd3, **changes))
        trace = last_trace(model)
        assert (trace.n_steps, trace.regional_steps, trace.notes, trace.kv_bytes) == (steps, 0, (), 0)
        assert info.text.count(f"2x: {steps} of {steps} steps, all dense ({STAYS_OUT}).") == 1
        assert (trace.is_accelerated, trace.reason) == (False, STAYS_OUT)

    @rotated("speed", PLAN_SPEEDS)
    def test_families_and_speeds_through_both_entry_points(self, family, speed):
        plain = ksampler(family.build(), family, steps=8)
        assert torch.equal(ras_ksampler(family, speed, steps=8)[0], plain)
        assert torch.equal(ksampler(ras_model(family, speed), family, steps=8), plain)

    def test_saved_and_connected_plans_do_not_change_it(self, sd3):
        plain = ksampler(sd3.build(), sd3, steps=4)
        assert torch.equal(ras_ksampler(sd3, "2x", plan=planned(), steps=4)[0], plain)
        model = sd3.build()
        save_plans(planned(), model, (16, 12))
        assert torch.equal(ras_ksampler(sd3, "2x", model, steps=4)[0], plain)

    def test_nine_steps_follow_a_plan(self, sd3):
        _, trace = ras_ksampler(sd3, "2x", steps=9)
        assert trace.n_steps == 5 and trace.regional_steps == 0 and trace.reason == AT_LEAST

    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize(
        ("speed", "steps", "told"),
        [
            ("3x", 9, AT_LEAST),
            ("3x", 12, AT_LEAST),
            ("3x", 14, AT_LEAST),
            ("2x", 9, AT_LEAST),
            ("2.5x", 12, ""),
        ],
    )
    def test_at_least_five_steps(self, sd3, speed, steps, told, sampler):
        """The run says so, unless it reaches almost the speed all the same, such as 2.4x of 2.5x."""
        model = ras_model(sd3, speed)
        found = ksampler(model, sd3, steps=steps, sampler_name=sampler)
        trace = last_trace(model)
        assert (trace.n_steps, trace.regional_steps, trace.shortfall, trace.reason) == (5, 0, told, told)
        assert trace.expected_gain == pytest.approx(steps / 5)
        made = RASScheduler.execute(model, speed, steps, 1.0, sampler).result[0]
        assert torch.equal(found, custom(sd3.build(), sd3, comfy.samplers.sampler_object("euler"), made))

    def test_parts_of_a_run_of_five_steps(self, sd3):
        model, empty = ras_model(sd3, "3x"), values(sd3)["latent_image"]["samples"]
        half = advanced(model, sd3, 0, 5, empty, steps=10)
        assert last_trace(model).n_steps in (2, 3)
        advanced(model, sd3, 5, 10, half, leftover=False, steps=10)
        assert last_trace(model).n_steps in (2, 3)

    @pytest.mark.parametrize(("total", "part"), [(8, 4), (8, 6), (4, 2)])
    def test_parts_of_a_run_with_few_steps(self, sd3, total, part):
        empty = values(sd3)["latent_image"]["samples"]
        found = []
        for model in (sd3.build(), ras_model(sd3, "2x")):
            half = advanced(model, sd3, 0, part, empty, steps=total)
            found.append(advanced(model, sd3, part, total, half, leftover=False, steps=total))
        assert torch.equal(*found)

    @pytest.mark.parametrize(("total", "start", "end"), [(4, 0, 2), (6, 4, 6), (8, 3, 5)])
    def test_parts_that_an_even_grid_may_also_have(self, sd3, total, start, end):
        """A plan with an even grid has almost the noise levels of some parts of the `simple` schedule."""
        plan = planned(sampler="dpmpp_2m", steps=14, dense=9, density=(1.0,))
        empty, found = values(sd3)["latent_image"]["samples"], []
        for model in (sd3.build(), ras_model(sd3, "2x", plan=plan)):
            found.append(advanced(model, sd3, start, end, empty, steps=total, sampler_name="dpmpp_2m"))
        assert last_trace(model).reason == STAYS_OUT and torch.equal(*found)

    @pytest.mark.parametrize(
        ("scheduler", "steps", "denoise"), [("karras", 6, 0.8), ("karras", 4, 0.6), ("normal", 4, 0.5)]
    )
    def test_the_last_steps_of_any_schedule_with_few_steps(self, sd3, scheduler, steps, denoise):
        changes = {"scheduler": scheduler, "steps": steps, "denoise": denoise}
        model = ras_model(sd3, "2x")
        assert torch.equal(ksampler(model, sd3, **changes), ksampler(sd3.build(), sd3, **changes))
        assert last_trace(model).reason == STAYS_OUT

    def test_the_last_steps_of_a_sampler_that_leaves_out_a_level(self, sd3):
        changes = {"scheduler": "karras", "steps": 4, "denoise": 0.6, "sampler_name": "uni_pc"}
        model = ras_model(sd3, "2x")
        assert torch.equal(ksampler(model, sd3, **changes), ksampler(sd3.build(), sd3, **changes))

    @pytest.mark.parametrize(
        ("scheduler", "start", "end"),
        [("beta", 0, 3), ("linear_quadratic", 0, 5), ("karras", 3, 8), ("kl_optimal", 2, 4)],
    )
    def test_parts_of_any_schedule_with_few_steps(self, sd3, scheduler, start, end):
        model, empty = ras_model(sd3, "2x"), values(sd3)["latent_image"]["samples"]
        advanced(model, sd3, start, end, empty, steps=8, scheduler=scheduler)
        trace = last_trace(model)
        assert (trace.n_steps, trace.reason) == (end - start, STAYS_OUT)

    def test_a_few_steps_of_a_longer_run_follow_a_plan(self, sd3):
        """The steps of the whole run count, so that each part of a run is as fast as the whole."""
        model, empty = ras_model(sd3, "2x"), values(sd3)["latent_image"]["samples"]
        advanced(model, sd3, 0, 8, empty)
        assert last_trace(model).n_steps == 5
        ksampler(model, sd3, steps=8, denoise=0.5)
        assert last_trace(model).n_steps == 5

    def test_inpainting(self, sd3):
        latent = torch.randn(1, 16, 16, 12, generator=torch.Generator().manual_seed(1))
        mask = torch.zeros(1, 1, 16, 12)
        mask[..., 6:] = 1
        changes = {"steps": 8, "latent_image": {"samples": latent, "noise_mask": mask}}
        model = ras_model(sd3, "2x")
        assert torch.equal(ksampler(model, sd3, **changes), ksampler(sd3.build(), sd3, **changes))
        assert last_trace(model).reason == STAYS_OUT

    @pytest.mark.parametrize(("steps", "denoise"), [(4, 1.0), (8, 1.0), (8, 0.92)])
    def test_ras_scheduler_leaves_the_schedule_as_well(self, sd3, steps, denoise, info):
        """ComfyUI rounds the number of steps of the whole schedule down: with denoise 0.92, 8.7 to 8."""
        model = ras_model(sd3, "2x")
        made = RASScheduler.execute(model, "2x", steps, denoise, "euler").result[0]
        assert made.tolist() == pytest.approx(simple_levels(model, steps))
        assert f"noise levels of the schedule simple: {STAYS_OUT}" in info.text
        sampler = comfy.samplers.sampler_object("euler")
        assert torch.equal(custom(model, sd3, sampler, made), custom(sd3.build(), sd3, sampler, made))

    def test_few_levels_that_ras_scheduler_made_for_a_longer_run_follow_a_plan(self, sd3):
        model = ras_model(sd3, "3x")
        made = RASScheduler.execute(model, "3x", 12, 1.0, "euler").result[0]
        custom(model, sd3, comfy.samplers.sampler_object("euler"), made)
        trace = last_trace(model)
        assert trace.n_steps == len(made) - 1 < 8 and trace.regional_steps == 0 and trace.reason == ""

    @pytest.mark.parametrize("speed", ["2x", "3x"])
    def test_levels_that_ras_scheduler_made_for_nine_steps_follow_a_plan(self, sd3, speed):
        """A plan of so few steps does not show for how many steps it was made."""
        model = ras_model(sd3, speed)
        made = RASScheduler.execute(model, speed, 9, 1.0, "euler").result[0]
        custom(model, sd3, comfy.samplers.sampler_object("euler"), made)
        trace = last_trace(model)
        assert trace.n_steps == len(made) - 1 and trace.regional_steps == 0 and trace.reason == ""

    def test_the_last_of_the_levels_that_ras_scheduler_made_follow_a_plan(self, sd3):
        """Half of the schedule is in the last four steps."""
        model = ras_model(sd3, "2x")
        made = RASScheduler.execute(model, "2x", STEPS, 1.0, "euler").result[0]
        custom(model, sd3, comfy.samplers.sampler_object("euler"), made[-5:])
        trace = last_trace(model)
        assert (trace.n_steps, trace.reason) == (4, "") and trace.regional_steps > 0

    def test_a_trace_of_noise_levels_that_are_no_numbers_is_valid_json(self, sd3):
        """ComfyUI's scheduler kl_optimal divides by zero in a run of one step."""
        model = ras_model(sd3, "2x")
        ksampler(model, sd3, steps=1, scheduler="kl_optimal")
        assert json.dumps(last_trace(model).as_dict(), allow_nan=False)

    def test_custom_settings_apply_to_any_number_of_steps(self, sd3):
        _, trace = ras_ksampler(sd3, CUSTOM, steps=8)
        assert (trace.n_steps, trace.regional_steps) == (8, 6)


class TestChoice:
    def test_the_input_wins_over_kept_plans_and_those_over_the_family(self, sd3, info):
        model = sd3.build()
        _, trace = ras_ksampler(sd3, "2x", model)
        assert (
            trace.n_steps == OF_FAMILY["2x"]
            and "(sampler ab2 in place of euler, noise levels of the SD3 family)" in info.text
        )
        save_plans(planned(steps=16), model, (16, 12))
        assert ras_ksampler(sd3, "2x", model)[1].n_steps == 16
        assert ras_ksampler(sd3, "2x", model, planned(steps=18))[1].n_steps == 18
        assert "(sampler ab2 in place of euler, made for a test)" in info.text

    def test_kept_plans_are_those_of_the_runs_size(self, sd3):
        model = sd3.build()
        save_plans(planned(steps=16), model, (16, 16))
        assert ras_ksampler(sd3, "2x", model)[1].n_steps == OF_FAMILY["2x"]
        large = {"samples": torch.zeros(1, 16, 16, 16)}
        assert ras_ksampler(sd3, "2x", model, latent_image=large)[1].n_steps == 16

    def test_kept_plans_are_found_behind_a_lora_that_comes_later(self, sd3):
        model = sd3.build()
        changed = model.clone()
        name = "diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"
        weight = dict(model.model.named_parameters())[name]
        changed.add_patches({name: ("diff", (torch.full_like(weight, 0.01),))}, 1.0)
        save_plans(planned(steps=16), changed, (16, 12))
        patched = ras_model(sd3, "2x", model)
        patched.add_patches({name: ("diff", (torch.full_like(weight, 0.01),))}, 1.0)
        changes = set(patched.patches) ^ set(changed.patches)
        assert not changes
        ksampler(patched, sd3)
        assert last_trace(patched).n_steps == 16

    def test_it_is_said_once_for_a_model(self, sd3, info):
        model = ras_model(sd3, "2x")
        for _ in range(3):
            ksampler(model, sd3)
        taken = f"Multirate RAS: 2x: {OF_FAMILY['2x']} steps instead of 28, 5 dense, "
        origin = "\\(sampler ab2 in place of euler, noise levels of the SD3 family\\)"
        assert len(re.findall(f"{taken}.* {origin}", info.text)) == 1
        assert last_trace(model).summary().startswith(taken)

    def test_the_line_at_the_end_says_what_gains_compare_with(self, sd3):
        _, trace = ras_ksampler(sd3, "2x", plan=planned())
        assert trace.summary().startswith(
            "Multirate RAS: 2x: 17 steps instead of 28, 11 dense, 82 % of tokens; speed-up expected "
        )
        assert trace.summary().endswith(" over 28 dense steps")
        assert trace.expected_gain == pytest.approx(gain(trace)) and trace.expected_gain > 1.8
        found = re.search(r"expected (\d\.\d\d)x, measured (\d+\.\d\d)x", trace.summary())
        assert float(found[1]) == pytest.approx(trace.expected_gain, abs=0.01)
        assert float(found[2]) == pytest.approx(trace.measured_speedup * 28 / 17, abs=0.01)
        assert end_message(trace)["speedup"] == trace.measured_gain

    @pytest.mark.parametrize("tokens", [5, 6, 7, 9, 11])
    @pytest.mark.parametrize("sampler", ["euler", "er_sde"])
    def test_the_share_of_tokens_is_the_same_before_and_after_the_run(self, sd3, tokens, sampler):
        """A step computes whole tokens, so it computes a little more than the plan's share."""
        latent = {"samples": torch.zeros(1, 16, 2 * tokens, 2 * tokens)}
        _, trace = ras_ksampler(sd3, "2x", latent_image=latent, sampler_name=sampler)
        assert trace.regional_steps and f"{percent(trace.token_share)} of tokens" in trace.plan
        assert "tokens processed" not in trace.summary()

    def test_a_plan_without_regional_steps_is_as_much_faster_as_it_has_fewer_steps(self, sd3):
        _, trace = ras_ksampler(sd3, "2x", plan=PLAIN)
        assert trace.expected_gain == end_message(trace)["speedup"] == 2.0

    def test_levels_of_ras_scheduler_are_compared_with_the_steps_that_it_was_asked_for(self, sd3):
        model = ras_model(sd3, "2x", plan=planned())
        sigmas = RASScheduler.execute(model, "2x", STEPS, 1.0, "euler", planned()).result[0]
        custom(model, sd3, comfy.samplers.sampler_object("euler"), sigmas)
        trace = last_trace(model)
        assert (trace.n_steps, trace.asked_steps) == (17, 28) and trace.expected_gain > 1.8

    @pytest.mark.parametrize("node", [RASPatchModel, RASKSampler, RASCompare])
    def test_a_node_runs_again_after_a_calibration(self, sd3, node):
        before = node.fingerprint_inputs(speed="2x", steps=28)
        save_plans(planned(steps=16), sd3.build(), (16, 12))
        assert node.fingerprint_inputs(speed="2x", steps=28) != before
        assert node.fingerprint_inputs(speed=CUSTOM, steps=28) is None

    def test_a_family_without_figures_says_so(self, info):
        ras_ksampler(FAMILIES["lumina_next"], "2x")
        assert "mean noise levels of all families that were measured" in info.text

    @pytest.mark.parametrize(
        "changes",
        [
            {"kv_cache": "fp3"},
            {"shares": [1.0, 1.0, 0.2, 0.3, 0.4, 0.5]},
            {"density": [1, 10**400]},
        ],
        ids=["unknown form", "too many shares", "huge number"],
    )  # fmt: skip
    def test_kept_plans_that_no_run_can_follow_are_ignored(self, sd3, info, changes):
        model, plans = sd3.build(), planned()
        path = save_plans(plans, model, (16, 12))
        plan = {**plans.plans[0].as_dict(), **changes}
        path.write_text(json.dumps({"version": 1, "note": "", "plans": [plan]}))
        assert ras_ksampler(sd3, "2x", model)[1].n_steps == OF_FAMILY["2x"]
        assert "saved plans are ignored" in info.text

    def test_an_unknown_form_of_the_cache_in_a_plan_is_refused(self, sd3):
        with pytest.raises(RASError, match="kv_cache = 'fp3'.*Expected.*What to do"):
            ras_ksampler(sd3, "2x", plan=planned(kv_cache="fp3"))

    @pytest.mark.parametrize(("free", "regional"), [(0, 0), (330_000, 6)])
    def test_a_plan_that_was_measured_with_more_memory(self, sd3, monkeypatch, free, regional):
        """Calibration measured the plan with the K/V cache format `forecast`, which takes twice the memory of
        `gpu`. This run has too little memory for it.
        """
        monkeypatch.setattr(cache_plan, "free_device_bytes", lambda *_: free)
        monkeypatch.setattr(cache_plan, "free_main_memory", lambda: 0)
        _, trace = ras_ksampler(sd3, "2x", plan=planned(kv_cache="forecast"))
        assert "do not fit into" in trace.notes[0] and trace.regional_steps == regional

    def test_a_measured_plan_keeps_forecasts_where_memory_is_ample(self, sd3, info):
        ras_ksampler(sd3, "2x", plan=planned(kv_cache="forecast"))
        assert "is kept on the device and extrapolated (kv_cache forecast)" in info.text

    def test_settings_without_effect_are_named(self, sd3, info):
        text = "these settings have no effect"
        ras_model(sd3, "2x")
        ras_model(sd3, CUSTOM, sample_ratio=0.3, kv_cache="cpu")
        assert text not in info.text
        ras_model(sd3, "2x", sample_ratio=0.3, kv_cache="cpu", cuda_graphs="auto")
        assert f"with speed = 2x, {text}: sample_ratio, kv_cache." in info.text
        ras_model(sd3, CUSTOM, plan=planned())
        assert f"with speed = custom, {text}: plan." in info.text

    def test_a_comparison_ignores_a_window_that_the_speed_ignores(self, sd3, info):
        """The dense run of a comparison has speed = custom, for which this window (start after end) is an
        error. But neither run uses the window, so the comparison must work.
        """
        given = values(sd3, sampler_name="euler", steps=4)
        changes = {**DEFAULTS, "start_percent": 0.5, "end_percent": 0.3}
        vae = SimpleNamespace(decode=lambda latent: torch.rand(1, 64, 48, 3))
        RASCompare.execute(vae, model=sd3.build(), speed="2x", plan=planned(), **changes, **given)
        assert info.text.count("have no effect: start_percent, end_percent.") == 1
        assert "effect: plan" not in info.text

    def test_a_comparison_with_fewer_steps_of_the_connected_plan(self, sd3):
        """The set has no plan without regional steps: the noise levels are those of its only plan."""
        vae = SimpleNamespace(decode=lambda latent: latent[:, :3].movedim(1, -1).sigmoid())
        given = {"model": sd3.build(), **DEFAULTS, **values(sd3)}
        result = RASCompare.execute(vae, speed="2x", plan=planned(), **given)
        steps = result.ui["ras_compare"][0]["steps"]["fewer"]
        assert steps == 14  # the cost of 11 dense steps, and of 6 with half of the tokens
        latent, _ = ras_ksampler(sd3, "2x", plan=planned(steps=steps, dense=steps))
        assert torch.equal(result.args[5], vae.decode(latent))

    def test_plans_without_the_speed_are_refused(self, sd3):
        with pytest.raises(RASError, match="no plan for 3x and euler.*Expected"):
            ras_ksampler(sd3, "3x", plan=planned())

    def test_the_papers_method_needs_custom(self, sd3):
        from ras_pack.ras_core.config import PaperSettings

        with pytest.raises(RASError, match="speed = 2x.*Expected.*What to do: set speed to custom"):
            ras_model(sd3, "2x", paper=PaperSettings())


class TestCustom:
    @pytest.mark.parametrize("sampler_name", SAMPLERS)
    def test_it_is_the_settings_below_to_the_bit(self, sd3, sampler_name):
        """With speed = custom, the node's own settings apply exactly. The default start_percent is 20 %: six
        of 28 steps, as many as the default had when it was a number of steps.
        """
        latent, trace = ras_ksampler(sd3, CUSTOM, sampler_name=sampler_name)
        config = RASConfig(sample_ratio=0.5, start_step=6, error_reset_every=0, corrections=True)
        model = patch_model(sd3.build(), config)
        assert torch.equal(ksampler(model, sd3, sampler_name=sampler_name), latent)
        assert trace.regional_steps == 22 and trace.plan == ""

    def test_the_plan_input_has_no_effect(self, sd3):
        assert torch.equal(ras_ksampler(sd3, CUSTOM)[0], ras_ksampler(sd3, CUSTOM, plan=planned())[0])

    @pytest.mark.parametrize(
        ("start", "end", "steps", "dense"),
        [
            (0.2, 1.0, 28, range(6)),
            (0.2, 1.0, 12, range(3)),  # a second pass: three, and not six
            (0.2, 1.0, 30, range(6)),
            (0.0, 1.0, 10, range(2)),  # selection needs two
            (0.5, 0.8, 10, (*range(5), 8, 9)),
            (1.0, 1.0, 10, range(10)),
            (0.2, 0.25, 3, range(3)),
        ],
    )
    def test_shares_of_the_runs_steps(self, sd3, start, end, steps, dense):
        settings = {"start_percent": start, "end_percent": end}
        _, trace = ras_ksampler(sd3, CUSTOM, steps=steps, settings=settings)
        found = [step.step for step in trace.steps if step.active_share == 1]
        assert found == list(dense)

    @pytest.mark.parametrize("wrong", [(0.5, 0.5), (0.5, 0.2), (-0.1, 1.0), (0.2, 1.1)])
    def test_a_window_that_makes_no_sense_is_refused(self, wrong):
        with pytest.raises(RASError, match="_percent = .*Expected.*What to do"):
            Window(*wrong)
