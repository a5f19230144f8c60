"""The methods with which every Pareto front compares RAS: each runs, and has the cost that it states.

At the limit where a method saves nothing, its result is exact."""

import json
import math
from dataclasses import replace

import pytest
import torch
from ras_pack.bench.quality import calibrated
from ras_pack.bench.quality.baselines import OTHER_SAMPLERS
from ras_pack.bench.quality.block_cache import with_block_cache, work_of_last_run
from ras_pack.bench.quality.cells import Cell, cell_from
from ras_pack.bench.quality.costs import sd3_cost_reduction
from ras_pack.bench.quality.figures import ssim
from ras_pack.bench.quality.front import at_log_cost, pareto, time_to_equal_quality
from ras_pack.bench.quality.options import Options
from ras_pack.bench.quality.plan_cells import cell_of_plan, read_cells, step_cost, with_extra
from ras_pack.bench.quality.plan_report import plan_tables
from ras_pack.bench.quality.presets import preset
from ras_pack.bench.quality.prompts import CALIBRATION, HELD_OUT, Prompt, read_prompts
from ras_pack.bench.quality.rivals import rival_tables, standings
from ras_pack.bench.quality.sampling import Studio
from ras_pack.bench.quality.sigma_grids import density_named, kind_of, levels_named, steps_of
from ras_pack.bench.quality.sources import load_source
from ras_pack.bench.quality.sweep import local_runner
from ras_pack.bench.quality.table import COLUMNS
from ras_pack.bench.quality.whole_steps import FORMS, computed_steps, weights
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.method.family_plans import family_plans
from ras_pack.ras_core.method.plan import PLAN_SPEEDS, Plan
from ras_pack.ras_core.method.rhythm import Rhythm

FAMILIES = ("random_sd3", "random_lumina2")


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(
        (Prompt("red"), Prompt("green")), size=16, batch=2,
        default_steps=8, reference_steps=12, cache=str(tmp_path / "cache"),
    )  # fmt: skip


@pytest.fixture
def studio(options) -> Studio:
    return Studio(load_source("random_sd3", options), options)


def scheduled(name: str, steps: int) -> tuple[float, ...]:
    return tuple((steps - i) / steps for i in range(steps + 1))


def no_costs() -> tuple[float, ...]:
    raise AssertionError("this grid needs no calibration")


class TestGrids:
    def test_first_of_all_is_the_simple_schedule(self, studio):
        family = studio.source.family
        simple = studio.sigmas(Cell(family, steps=8))
        assert torch.equal(studio.sigmas(Cell(family, grid="8of8by3")), simple)
        assert torch.equal(studio.sigmas(Cell(family, grid="0of8by1")), simple)
        assert torch.equal(studio.sigmas(Cell(family, steps=8, grid="simple")), simple)

    def test_first_steps_then_every_third(self):
        levels = levels_named("2of8by3", 99, scheduled, no_costs)
        assert levels == (1.0, 7 / 8, 6 / 8, 3 / 8, 0.0)
        assert Cell("sd3", grid="2of8by3").steps == steps_of("2of8by3") == 4

    def test_a_density_in_the_cell(self):
        """The density 3+1 puts three of four steps into the first half: levels 1, 5/6, 4/6, 1/2, 0."""
        levels = levels_named("density:3+1", 4, scheduled, no_costs)
        assert levels == pytest.approx((1, 5 / 6, 4 / 6, 0.5, 0))
        assert levels_named("density:1", 4, scheduled, no_costs) == pytest.approx(scheduled("simple", 4))

    def test_a_calibrated_grid_goes_where_steps_cost(self):
        """With costs 9 and 1 for the two halves, the density is the square root: three to one. Half-way
        between this density and an even one is five to three.
        """
        assert density_named("calibrated", lambda: (9.0, 1.0)) == pytest.approx((0.75, 0.25))
        assert density_named("calibrated:0.5", lambda: (9.0, 1.0)) == pytest.approx((0.625, 0.375))

    def test_any_scheduler_of_the_host_and_no_other(self, studio):
        sigmas = studio.sigmas(Cell("random_sd3", steps=8, grid="beta"))
        assert sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
        with pytest.raises(RASError, match="grid 'magic'.*Expected: of ComfyUI's"):
            studio.sigmas(Cell("random_sd3", grid="magic"))

    @pytest.mark.parametrize("name", ["9of8by2", "2of8by0", "density:1+x"])
    def test_grids_that_make_no_sense_are_refused(self, name):
        with pytest.raises(RASError, match="What to do"):
            levels_named(name, 4, scheduled, no_costs)

    def test_kinds(self):
        names = ("simple", "beta", "2of8by3", "calibrated:0.5", "density:1+2")
        assert [kind_of(name) for name in names] == [
            "scheduler", "scheduler", "front-loaded", "calibrated", "density",
        ]  # fmt: skip


class TestCalibration:
    def test_it_is_measured_once_on_other_prompts_and_kept(self, studio, options, monkeypatch):
        for name, value in (("FINE_STEPS", 8), ("BLOCKS", 4)):
            monkeypatch.setattr(calibrated, name, value)
        sigmas = studio.sigmas(Cell("random_sd3", steps=6, grid="calibrated"))
        assert len(sigmas) == 7 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
        monkeypatch.setattr(calibrated, "measured_costs", None)  # would fail if it were asked
        again = Studio(studio.source, options)
        assert torch.equal(again.sigmas(Cell("random_sd3", steps=6, grid="calibrated")), sigmas)

    def test_its_prompts_are_not_among_the_judged_ones(self):
        own = {prompt.text for prompt in read_prompts(CALIBRATION)}
        assert len(own) == 8 and not own & {prompt.text for prompt in read_prompts(HELD_OUT)}
        assert len(calibrated.unjudged([min(own)])) == 7
        with pytest.raises(RASError, match="all calibration prompts"):
            calibrated.unjudged(sorted(own))


class TestSamplers:
    @pytest.mark.parametrize("sampler", OTHER_SAMPLERS)
    def test_the_hosts_other_samplers_evaluate_once_a_step_and_add_no_noise(self, studio, sampler):
        cell = Cell("random_sd3", sampler=sampler, steps=6, grid="simple")
        one, other = studio.sample(cell), studio.sample(cell)
        assert len(one.shares) == 6 and bool(one.latents.isfinite().all())
        assert torch.equal(one.latents, other.latents)


class TestWholeSteps:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
    def test_with_every_step_computed_it_is_the_plain_run(self, studio, form, sampler):
        plain = studio.sample(Cell("random_sd3", sampler=sampler, steps=6))
        cell = Cell("random_sd3", "whole_steps", sampler, 6, start=2, reset_every=1, form=form)
        assert torch.equal(studio.sample(cell).latents, plain.latents)

    @pytest.mark.parametrize("form", FORMS)
    def test_skipped_steps_cost_nothing(self, studio, form):
        cell = Cell("random_sd3", "whole_steps", "dpmpp_2m", 9, start=3, reset_every=3, form=form)
        sampled = studio.sample(cell)
        assert sampled.shares == (1.0,) * 5 == tuple(cell.planned_shares())
        assert computed_steps(9, 3, 3) == 5 and bool(sampled.latents.isfinite().all())

    @pytest.mark.parametrize("form", FORMS)
    def test_a_constant_stays(self, form):
        assert sum(weights(form, [1.0, 0.9, 0.7, 0.6], 0.5)) == pytest.approx(1.0)
        assert weights(form, [1.0], 0.5) == [1.0]

    @pytest.mark.parametrize("order", [1, 2])
    def test_taylor_is_exact_for_polynomials_of_its_order(self, order):
        known = [1.0, 0.9, 0.7, 0.6]
        found = weights(f"taylor{order}", known, 0.4)
        assert sum(w * s**order for w, s in zip(found, known, strict=True)) == pytest.approx(0.4**order)

    def test_taylor_of_order_0_keeps_the_last(self):
        assert weights("taylor0", [1.0, 0.9], 0.4) == [0.0, 1.0]

    def test_hermite_damps_taylors_terms(self):
        """For equal steps, one step ahead (u = 1) and scale s = 1/2: s H1(s) = 1/2 and s^2 H2(s) = -1/4.

        So Taylor's sum with the backward differences d1 and d2 becomes f + d1 / 2 - d2 / 8.
        """
        found = weights("hermite2", [1.0, 0.9, 0.8], 0.7)
        assert found == pytest.approx([-1 / 8, -1 / 2 + 1 / 4, 1 + 1 / 2 - 1 / 8])

    def test_chebyshev_follows_a_line_with_a_ridge(self):
        """For values on a line, the ridge term keeps the forecast between the last value and the next value
        on the line.
        """
        known = [1.0, 0.95, 0.9, 0.85, 0.8]
        found = sum(w * s for w, s in zip(weights("chebyshev2", known, 0.7), known, strict=True))
        assert 0.7 < found < 0.8

    def test_an_unknown_form_is_refused(self):
        with pytest.raises(RASError, match="forecast 'magic'"):
            weights("magic", [1.0], 0.5)


class TestBlockCache:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_at_threshold_0_it_is_the_dense_run_bit_for_bit(self, options, family):
        studio = Studio(load_source(family, options), options)
        plain = studio.sample(Cell(family, steps=6))
        cached = studio.sample(Cell(family, "dbcache", steps=6, probe=1))
        assert torch.equal(cached.latents, plain.latents)
        assert cached.work == (1.0,) * 6

    @pytest.mark.parametrize("family", FAMILIES)
    def test_above_every_change_only_the_probe_runs(self, options, family):
        studio = Studio(load_source(family, options), options)
        cached = studio.sample(Cell(family, "dbcache", steps=6, probe=1, start=2, threshold=1e9))
        assert cached.shares == (1.0,) * 6 and cached.work[:2] == (1.0, 1.0)
        assert all(0.1 < part < 0.8 for part in cached.work[2:])
        assert bool(cached.latents.isfinite().all())
        plain = studio.sample(Cell(family, steps=6))
        assert not torch.equal(cached.latents, plain.latents)

    @pytest.mark.parametrize("family", (*FAMILIES, "random_flux"))
    def test_residuals_of_an_unchanged_call_give_its_output_again(self, options, family):
        """The model is called twice with the same latent: the second output, which the cache provides, equals
        the first up to rounding. Flux's blocks overwrite their inputs.
        """
        studio = Studio(load_source(family, options), options)
        source = studio.source
        model = with_block_cache(source.model, threshold=1e9, probe=1, warm_up=1)
        outputs = []

        def sampler(denoise, x, sigmas, extra_args, **kwargs):
            for _ in range(2):
                outputs.append(denoise(x, sigmas[0] * x.new_ones(len(x)), **extra_args))
            return x

        import comfy.samplers

        batch = studio.batches[0]
        studio.sample_batch(model, comfy.samplers.KSAMPLER(sampler), torch.tensor([0.7, 0.0]), batch, 0)
        assert work_of_last_run(model)[0] == 1.0 and work_of_last_run(model)[1] < 0.7
        assert torch.allclose(*outputs, atol=1e-5)

    def test_the_network_is_as_before_afterwards(self, studio):
        plain = studio.sample(Cell("random_sd3", steps=3))
        studio.sample(Cell("random_sd3", "dbcache", steps=3, probe=1, threshold=1e9))
        assert torch.equal(studio.sample(Cell("random_sd3", steps=3)).latents, plain.latents)
        assert not any("forward" in vars(module) for module in studio.source.network.modules())


class TestPlans:
    PLAN = Cell("random_sd3", "plan", "dpmpp_2m", grid="3of8by2", start=2, ratio=0.5, kv_cache="gpu")

    def test_a_plan_runs_its_grid_and_shares(self, studio):
        sampled = studio.sample(self.PLAN)
        assert self.PLAN.steps == 6 and sampled.notes == ()
        assert sampled.shares == pytest.approx((1, 1, 0.5, 0.5, 0.5, 0.5))

    def test_shares_of_each_step(self, studio):
        cell = replace(self.PLAN, grid="simple", shares=(1.0, 1.0, 0.5, 1.0, 0.5))
        sampled = studio.sample(cell)
        assert cell.steps == 5 and sampled.shares == pytest.approx(cell.shares)

    def test_all_steps_dense_is_the_plain_run(self, studio):
        plain = studio.sample(Cell("random_sd3", sampler="dpmpp_2m", grid="3of8by2"))
        planned = studio.sample(replace(self.PLAN, shares=(1.0,) * 6))
        assert torch.allclose(planned.latents, plain.latents, atol=1e-5)

    def test_further_settings_reach_the_run(self, studio):
        cell = replace(self.PLAN, extra={"cuda_graphs": "auto"})
        assert cell.extra == json.dumps({"cuda_graphs": "auto"}) and cell.extra in cell.label
        with pytest.raises(TypeError, match="no_such_setting"):
            studio.sample(replace(self.PLAN, extra={"no_such_setting": 1}))

    def test_a_plan_survives_its_row(self):
        cell = replace(self.PLAN, shares=(1.0, 1.0, 0.7, 0.35), grid="calibrated", extra={"a": True})
        text = {
            name: "+".join(map(str, v)) if isinstance(v, tuple) else str(v) for name, v in vars(cell).items()
        }
        assert cell_from(text) == cell and cell_from(text).key == cell.key

    def test_exact_keys_and_values_come_closer_to_the_dense_run(self, studio):
        """With exact keys and values, a regional step differs from a dense step only at the cached tokens."""
        cell = replace(self.PLAN, grid="simple", shares=(1.0, 1.0, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7))
        dense = studio.sample(replace(cell, shares=(1.0,) * 8)).latents
        cached, exact = (studio.sample(replace(cell, method=method)) for method in ("plan", "exact_kv"))
        assert exact.shares == pytest.approx(cell.shares, rel=0.01)
        assert (exact.latents - dense).norm() < (cached.latents - dense).norm()
        assert math.isfinite(float(exact.latents.norm()))


class TestFronts:
    """The baseline has 40 dB at cost reduction 1x and 20 dB at 4x, so it loses 10 dB per factor of two."""

    BASE = ((1.0, 40.0), (4.0, 20.0))

    def test_straight_over_the_logarithm_of_cost(self):
        assert at_log_cost(self.BASE, 2.0) == pytest.approx(30.0)
        assert at_log_cost(self.BASE, 5.0) is None

    def test_time_to_equal_quality(self):
        """At cost reduction 3x RAS has 30 dB. The baseline has these 30 dB at 2x, so the ratio is 1.5."""
        ours = pareto([(1.5, 35.0), (3.0, 30.0)])
        ratio = time_to_equal_quality(ours, self.BASE, 3.0)
        assert (ratio.value, ratio.bound) == (pytest.approx(1.5), "")
        assert time_to_equal_quality(ours, self.BASE, 3.5) is None
        assert time_to_equal_quality(self.BASE, self.BASE, 2.7).value == pytest.approx(1.0)

    def test_beyond_the_other_fronts_ends_there_is_a_bound(self):
        better, worse = [(2.0, 41.0)], [(2.0, 19.0)]
        found = [time_to_equal_quality(front, self.BASE, 2.0) for front in (better, worse)]
        assert [(each.value, each.bound) for each in found] == [(2.0, ">="), (0.5, "<=")]


class TestRivals:
    ROWS = (
        ("dense", "", 1.0, 40.0), ("dense", "calibrated", 2.0, 30.0), ("dense", "", 4.0, 15.0),
        ("dbcache", "", 4.0, 20.0), ("plan", "", 1.0, 40.0), ("plan", "", 3.0, 30.0),
        ("exact_kv", "", 3.0, 36.0), ("change", "", 3.0, 50.0),
    )  # fmt: skip

    def rows(self):
        return [
            {**dict.fromkeys(COLUMNS), **vars(Cell("sd3", method, grid=grid, kv_cache=f"row {number}")),
             "cost_sd3": cost, "psnr": quality, "images": 2, "key": str(number)}
            for number, (method, grid, cost, quality) in enumerate(self.ROWS)
        ]  # fmt: skip

    def test_against_the_best_of_all(self):
        """At cost reduction 3x RAS has 30 dB and the best baseline 30 - 10 log2(1.5) dB. The baseline has 30
        dB at 2x. The upper bound of 36 dB is from `exact_kv`, which does not count as a method.
        """
        found = standings(self.rows(), "sd3", (3.0,))[0]
        assert found.gain == pytest.approx(10 * math.log2(1.5)) and found.bound == 36.0
        assert found.time.value == pytest.approx(1.5)
        assert found.best["method"] == "plan" and found.rival["method"] == "dbcache"

    def test_the_report_names_the_kinds(self):
        told = rival_tables(self.rows(), "sd3")
        for name in ("calibrated grid", "DBCache", "RAS with a plan", "not achievable"):
            assert name in told


class TestPlanTables:
    CELLS = (
        ("plan", "ab2", "calibrated", 2.003, 36.0, 110.0), ("plan", "ab2", "calibrated", 3.0, 30.0, 120.0),
        ("dense", "ab2", "calibrated", 1.0, 40.0, 105.0), ("dense", "ab2", "calibrated", 4.0, 20.0, 130.0),
        ("dense", "euler", "beta", 2.0, 25.0, 111.0), ("dense", "euler", "calibrated", 2.0, 27.0, 112.0),
        ("exact_kv", "ab2", "calibrated", 1.998, 37.0, 109.0),
    )  # fmt: skip

    def tables(self, families=("sd3",)):
        rows = [
            {**dict.fromkeys(COLUMNS), **vars(Cell(family, method, sampler=sampler, grid=grid)),
             "cost_sd3": cost, "psnr": quality, "fd": distance}
            for family in families
            for method, sampler, grid, cost, quality, distance in self.CELLS
        ]  # fmt: skip
        told = plan_tables(rows)
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in told.splitlines()]
        found: dict[str, list[list[str]]] = {}
        for line in lines:
            found.setdefault(line[0], []).append(line[1:])
        return found

    def test_psnr_at_equal_cost(self):
        """Dense `ab2` has 30 dB at 2x, halfway between 1x and 4x over the logarithm of the cost."""
        found = self.tables()
        assert found["the plan"][0] == ["–", "36.0", "–", "30.0"]
        assert found["dense, `ab2`"][0][1] == "30.0"
        assert found["dense, euler or dpmpp_2m, any noise levels"][0][1] == "27.0"
        assert found["dense, ComfyUI's schedulers"][0][1:] == ["25.0", "–", "–"]
        assert found["exact keys and values (not achievable)"][0][1] == "37.0"

    def test_time_to_equal_quality(self):
        """Dense `ab2` has the 30 dB of the plan for 3x at 2x."""
        assert self.tables()["dense, `ab2`"][1][3] == "1.50"

    def test_figures_of_the_nearest_cell(self):
        found = self.tables()
        assert found["the plan"][-1][1] == "110.0"
        assert found["dense, `ab2`"][-1][1] == "130.0"
        assert found["dense, euler or dpmpp_2m, any noise levels"][-1][1] == "112.0"

    def test_one_value_for_each_family(self):
        assert self.tables(("sd3", "flux"))["the plan"][0][1] == "36.0 / 36.0"

    def test_nothing_without_a_plan(self):
        assert (
            plan_tables([{**dict.fromkeys(COLUMNS), **vars(Cell("sd3")), "cost_sd3": 2.0, "psnr": 1.0}]) == ""
        )


class TestPresets:
    def test_baselines_have_every_kind_first(self):
        for family, missing in (("lumina2", set()), ("sd3", {"easycache"})):
            cells = preset("baselines", [family], [0])
            assert 60 <= len(cells) <= 80
            methods = {cell.method for cell in cells[:25]}
            wanted = {"dense", "whole_steps", "dbcache", "lazycache", "easycache", "random", "paper"}
            assert methods == wanted - missing

    def test_plans_cost_what_is_asked_for(self):
        cells = preset("plans", ["sd3"], [0])
        costs = [sd3_cost_reduction(cell.planned_shares()) for cell in cells[:6]]
        assert costs == pytest.approx([2.0, 1.5, 3.0, 2.5, 1.75, 3.5], rel=0.02)
        assert {"plan", "exact_kv", "multirate"} == {cell.method for cell in cells}
        assert len({cell.grid for cell in cells}) > 5 and step_cost(1.0) == 1.0

    def test_shapes_have_every_rhythm_at_every_speed(self):
        cells = [cell for cell in preset("shapes", ["flux"], [0]) if cell.method == "plan"]
        costs = [sd3_cost_reduction(cell.planned_shares()) for cell in cells]
        for speed in (1.5, 2.0, 2.5, 3.0):
            found = {
                (rhythm.every, rhythm.end)
                for cell, cost in zip(cells, costs, strict=True)
                if cost == pytest.approx(speed, rel=0.002) and (rhythm := Rhythm.of(cell.shares))
            }
            assert found == {(0, 0), (0, 1), (2, 0), (2, 1)}
        assert 80 < len(cells) < 220

    @pytest.mark.parametrize("family", ["sd3", "lumina2", "flux"])
    def test_speeds_have_the_packs_own_plans(self, family):
        cells = preset("speeds", [family], [0])
        for cell, speed in zip(cells, PLAN_SPEEDS, strict=False):
            plan = family_plans(family).best(speed)
            cost = sd3_cost_reduction(cell.planned_shares())
            assert cell.steps == plan.steps and cost == pytest.approx(float(speed[:-1]), rel=0.05)
            assert (cell.method == "dense") == plan.is_plain
            assert plan.is_plain or cell.shares == plan.shares
        assert {"ab2_unbounded", "dpmpp_2m", "euler"} < {cell.sampler for cell in cells}

    def test_the_front_has_both(self):
        front = {cell.key for cell in preset("front", ["lumina2"], [0])}
        parts = [cell.key for name in ("baselines", "plans") for cell in preset(name, ["lumina2"], [0])]
        assert front == set(parts) and len(front) == len(parts)

    def test_further_settings_make_further_cells(self):
        cells = [Cell("sd3"), Cell("sd3", "plan", start=4, ratio=0.5)]
        found = with_extra(cells, [{"continue_outputs": True}])
        assert found[:2] == cells and found[2].extra_settings == {"continue_outputs": True}

    def test_cells_and_plans_from_a_file(self, tmp_path):
        plan = Plan("2x", "euler", (0.75, 0.25), (1.0, 1.0, 0.5), "gpu")
        entries = [{"method": "dbcache", "probe": 1, "threshold": 0.2}, plan.as_dict()]
        (tmp_path / "cells.json").write_text(json.dumps(entries))
        found = read_cells(tmp_path / "cells.json", ("sd3", "lumina2"))
        assert [cell.method for cell in found] == ["dbcache", "plan"] * 2
        assert found[1] == cell_of_plan("sd3", plan) and found[1].shares == plan.shares
        assert found[1].grid == "density:0.75+0.25"
        (tmp_path / "cells.json").write_text('[{"no": 1}]')
        with pytest.raises(RASError, match="cells in .*Expected: a JSON list"):
            read_cells(tmp_path / "cells.json", ("sd3",))


def test_cells_that_do_not_fit_the_time_are_left_out(options, tmp_path, capsys):
    """The fake clock advances by 1 s per reading, and the limit is 3 s. After two of the four cells, the
    remaining time is too short for the third.
    """
    times = iter(range(9))
    cells = [Cell("random_sd3", steps=steps) for steps in (3, 4, 5, 6)]
    run = local_runner(options, tmp_path, limit=3.0, clock=lambda: float(next(times)))
    assert [cell.steps for cell, _ in run(cells)] == [3, 4]
    assert "time limit reached, 2 of 4 cells left out" in capsys.readouterr().err


def test_a_cell_that_fails_does_not_end_the_others(options, tmp_path, capsys):
    cells = [
        Cell("random_sd3", "plan", steps=4, start=2, ratio=0.5, extra={"no": 1}),
        Cell("random_sd3", steps=3),
    ]
    assert [cell.steps for cell, _ in local_runner(options, tmp_path)(cells)] == [3]
    assert "left out (TypeError" in capsys.readouterr().err


def test_ssim_of_equal_and_of_unequal_images():
    pytest.importorskip("pytorch_msssim")
    one = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = ssim(torch.stack([one[0], 1 - one[1]]), one)
    assert found[0] == pytest.approx(1.0, abs=1e-5) and found[1] < 0.1
