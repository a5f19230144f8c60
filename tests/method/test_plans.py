"""Sampling plans: they are validated, printed, saved as JSON, chosen, and adapted to a number of steps."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.method import family_plans as module
from ras_pack.ras_core.method.calibrating import best_grid, densities_to_try, shares_to_try
from ras_pack.ras_core.method.editing import MOST_START
from ras_pack.ras_core.method.family_plans import family_plans
from ras_pack.ras_core.method.plan import PLAN_SAMPLERS, PLAN_SPEEDS, Plan, plain_steps
from ras_pack.ras_core.method.plan_candidates import candidates, shares_for
from ras_pack.ras_core.method.plan_fitting import fitted, fitted_plan, fitted_steps
from ras_pack.ras_core.method.plan_set import PlanSet
from ras_pack.ras_core.method.regional_cost import leaves_out_references
from ras_pack.ras_core.method.schedule import StepKind, plan_steps
from ras_pack.ras_core.models import ADAPTERS

THREE_PARTS = r"Multirate RAS: .* Expected: .* What to do: "
MEAN_GRID = {"lumina_next": "test_speed_setting.py tests the mean grid on it"}
"""Adapters' modules without plans of a measured family, each with the reason."""
FINE = tuple(1 - i / 100 for i in range(101))


def plan(speed: str = "2x", steps: int = 14, regional: int = 0, share: float = 0.5, **values) -> Plan:
    shares = (1.0,) * (steps - regional) + (share,) * regional
    return Plan(
        **{"speed": speed, "sampler": "dpmpp_2m", "density": (0.75, 0.25), "shares": shares, **values}
    )


class TestPlan:
    def test_it_describes_itself_in_one_line(self):
        # 6 dense and 11 of share 0.15: (6 + 1.65) / 17 = 45 %.
        assert plan(steps=17, regional=11, share=0.15).describe() == (
            "2x: 17 steps instead of 28, 6 dense, 45 % of tokens"
        )
        assert plan().describe() == "2x: 14 steps instead of 28, all dense"

    def test_dense_steps_and_share_of_tokens_follow_from_the_shares(self):
        made = plan(shares=(1, 1, 0.5, 1, 0.5))
        assert (made.steps, made.dense_steps, made.token_share) == (5, (0, 1, 3), 0.8)
        assert not made.is_plain and plan().is_plain

    def test_the_density_is_normalised(self):
        assert plan(density=(3, 1)).density == (0.75, 0.25)

    def test_levels_are_those_of_the_density(self):
        # Three of four steps are in the first half.
        assert plan(steps=4).levels(FINE) == pytest.approx((1, 5 / 6, 4 / 6, 0.5, 0))

    def test_another_number_of_steps_keeps_the_speed(self):
        assert [plan().resized(n).steps for n in (56, 28, 20, 1)] == [28, 14, 10, 1]
        resized = plan(steps=14, regional=7).resized(56)
        assert resized.shares == (1.0,) * 14 + (0.5,) * 14
        assert resized.describe() == "2x: 28 steps instead of 56, 14 dense, 75 % of tokens"

    def test_a_part_of_a_run_gets_its_part_of_the_steps(self):
        given = tuple(1 - i / 28 for i in range(29))[14:]  # KSamplerAdvanced from step 14 of 28
        found = plan().levels_of_part(FINE, given)
        assert (len(found), found[0], found[-1]) == (8, 0.5, 0)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"speed": "4x"}, {"sampler": "heun"}, {"density": ()}, {"density": (0, 0)}, {"density": (-1, 2)},
            {"density": ("a",)}, {"shares": ()}, {"shares": (0.5, 1)}, {"shares": (1, 0.01)},
            {"shares": (1, float("nan"))}, {"kv_cache": 1}, {"full_steps": 0}, {"full_steps": 2.5},
            {"speedup": 0}, {"closeness": "good"}, {"origin": None},
        ],
    )  # fmt: skip
    def test_values_that_make_no_sense_are_refused(self, wrong):
        with pytest.raises(RASError, match=THREE_PARTS) as refused:
            plan(**wrong)
        assert next(iter(wrong)) in str(refused.value)

    def test_frozen(self):
        with pytest.raises(AttributeError):
            plan().speed = "3x"


class TestJSON:
    def test_round_trip(self):
        made = plan(steps=17, regional=11, closeness=31.5, origin="calibrated on this model at 1024x768")
        assert Plan.from_json(made.to_json()) == made
        assert json.loads(made.to_json())["version"] == 2

    @pytest.mark.parametrize(
        "change",
        [
            lambda values: values.pop("density"),
            lambda values: values.update(unknown=1),
            lambda values: values.update(version=1),
            lambda values: values.pop("version"),
            lambda values: values.update(density=0.5),
            lambda values: values.update(shares="11"),
            lambda values: values.update(density=[None]),
            lambda values: values.update(speed=["2x"]),
        ],
    )
    def test_a_broken_plan_is_refused(self, change):
        values = plan().as_dict()
        change(values)
        with pytest.raises(RASError, match=THREE_PARTS):
            Plan.from_json(json.dumps(values))

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"version": 1}'])
    def test_other_json_is_refused(self, text):
        for kind in (Plan, PlanSet):
            with pytest.raises(RASError, match=THREE_PARTS):
                kind.from_json(text)

    def test_round_trip_of_a_set(self):
        made = PlanSet((plan(), plan("3x", 9, closeness=20.0)), "calibrated", "1f" * 8)
        assert PlanSet.from_json(made.to_json()) == made

    def test_a_set_of_an_earlier_version_names_no_model(self):
        values = json.loads(PlanSet((plan(),)).to_json())
        del values["model"]
        assert PlanSet.from_json(json.dumps(values)).model == ""
        with pytest.raises(RASError, match=THREE_PARTS):
            PlanSet.from_json(json.dumps({**values, "model": 3}))

    @pytest.mark.parametrize("plans", [[], None, [3], [{"version": 1}]])
    def test_a_set_with_a_broken_plan_is_refused(self, plans):
        with pytest.raises(RASError, match=THREE_PARTS):
            PlanSet.from_json(json.dumps({"version": 1, "note": "", "plans": plans}))


class TestChoice:
    def test_the_plan_with_the_highest_closeness_at_a_speed(self):
        near, far = plan(closeness=32.0, sampler="euler"), plan(closeness=28.0)
        plans = PlanSet((far, near, plan("3x", 9, closeness=40.0)))
        assert plans.best("2x") == near
        assert plans.best("2x", "dpmpp_2m") == far

    @pytest.mark.parametrize(("gain", "takes_other"), [(1.9, False), (2.1, True), (-1.0, False)])
    def test_the_expected_plan_is_taken_unless_another_is_clearly_closer(self, gain, takes_other):
        plans = plan(closeness=30.0), plan(steps=17, regional=11, closeness=30.0 + gain)
        assert PlanSet(plans).best("2x") == plans[takes_other]
        regional, plain = replace(plans[1], closeness=30.0), replace(plans[0], closeness=30.0 + gain)
        assert PlanSet((regional, plain)).best("2x") == (plain if takes_other else regional)
        assert PlanSet((plain, regional)).best("2x", plain=True) == plain
        assert PlanSet((plain, regional)).plain("2x", "dpmpp_2m") == plain

    @pytest.mark.parametrize(("speed", "steps"), [("1.5x", 19), ("2x", 14), ("3x", 9)])
    def test_without_a_plain_plan_the_plain_one_is_on_the_best_grid(self, speed, steps):
        regional = plan(speed, steps=17, regional=11, closeness=31.0, density=(0.6, 0.4))
        found = PlanSet((regional,)).plain(speed, "dpmpp_2m")
        assert (found.steps, found.is_plain, found.closeness) == (steps, True, None)
        assert found.density == regional.density
        assert found.describe() == f"{speed}: {steps} steps instead of 28, all dense"

    def test_the_first_of_unmeasured_plans(self):
        plans = PlanSet((plan(), plan(sampler="euler")))
        assert plans.best("2x").sampler == "dpmpp_2m"
        assert plans.chosen() == (plans.plans[0],)
        assert (
            plans.describe()
            == "2x: 14 steps instead of 28, all dense (dpmpp_2m, 1.00x by FLOPs, closeness not measured)"
        )

    def test_a_speed_without_a_plan_is_refused(self):
        with pytest.raises(RASError, match="no plan for 3x and euler.*Expected: one of: 2x dpmpp_2m"):
            PlanSet((plan(),)).best("3x", "euler")


class TestCandidates:
    """The candidate plans of a calibration, if a regional step costs its token share of a dense step."""

    @pytest.mark.parametrize("speed", PLAN_SPEEDS)
    def test_each_costs_what_the_plain_run_does(self, speed):
        budget = plain_steps(speed)
        found = candidates(budget, lambda share: share)
        assert len(found) == 3
        for shares in found:
            assert sum(shares) == pytest.approx(budget, abs=0.01)
            assert len(shares) > budget and set(shares[:2]) == {1.0} and len(set(shares)) == 2

    def test_the_share_is_adjusted_to_the_budget(self):
        # 4 of 10 are dense; a cost of 6 is left for regional steps of about 0.7: nine of 2/3.
        assert shares_for(10, 0.7, 0.4, lambda share: share) == (1.0,) * 4 + (0.6667,) * 9

    def test_the_last_step_may_be_dense(self):
        assert shares_for(10, 0.7, 0.4, lambda share: share, end=1) == (1.0,) * 4 + (0.7143,) * 7 + (1.0,)

    def test_regional_steps_that_follow_each_other_end_with_a_dense_one(self):
        *constant, other = candidates(14, lambda share: share)
        assert [shares[-1] for shares in constant] == [1.0, 1.0] and other[-1] < 1

    def test_no_regional_plans_if_regional_steps_save_nothing(self):
        assert candidates(9, lambda share: 0.97) == []

    def test_the_method_plans_the_same_steps(self):
        """Settings made from a plan give its dense steps and shares."""
        from ras_pack.ras_core.host.planned_model import settings_of

        for shares in ((1, 1, 1, 0.5, 0.5), (1, 1, 0.3, 1, 0.3), (1, 1, 1), (1, 1, 0.7, 0.5, 1, 0.5, 0.3)):
            steps = plan_steps(len(shares), settings_of(plan(shares=shares)))
            assert tuple(step.ratio for step in steps) == shares
            assert [step.index for step in steps if step.kind is StepKind.DENSE] == [
                i for i, share in enumerate(shares) if share == 1
            ]
        with pytest.raises(RASError, match="different token shares"):
            settings_of(plan(shares=(1, 1, 0.5, 0.4, 0.3, 0.2)))


class TestCalibrating:
    """What a calibration tries, and which grid it takes."""

    def test_the_familys_grid_is_expected(self):
        found = densities_to_try((1.0,) * 12, "sd3")
        assert next(iter(found.values())) == family_plans("sd3").plans[0].density
        assert found["measured density"] == pytest.approx((1 / 12,) * 12)
        mean = found["mean of the measured density and that of the family"]
        family = found["grid of the family"]
        assert max(mean) - min(mean) == pytest.approx((max(family) - min(family)) / 2, rel=0.3)

    def test_without_a_known_family_the_measured_density_is_expected(self):
        assert next(iter(densities_to_try((1.0, 4.0), None).values())) == pytest.approx((1 / 3, 2 / 3))

    @pytest.mark.parametrize(("gain", "taken"), [(0.4, "a"), (0.6, "b"), (-1.0, "a")])
    def test_another_grid_must_be_clearly_closer_in_the_mean(self, gain, taken):
        assert best_grid({"a": [30.0, 20.0], "b": [30.0 + 2 * gain, 20.0]}) == taken
        assert best_grid({"a": [30.0]}) == "a"

    @pytest.mark.parametrize("speed", PLAN_SPEEDS)
    @pytest.mark.parametrize("family", ["sd3", "lumina2", "flux"])
    def test_the_shares_of_the_familys_plan_come_first(self, family, speed):
        plan = family_plans(family).best(speed)
        found = shares_to_try(speed, family, lambda share: share)
        is_regional = [share < 1 for share in found[0]]
        if not plan.is_plain:
            assert is_regional == [share < 1 for share in plan.shares]
        assert all(sum(shares) == pytest.approx(plain_steps(speed), abs=0.01) for shares in found)
        assert len({tuple(share < 1 for share in shares) for shares in found}) == len(found) >= 3


class TestFitted:
    """A family's plan is fitted to a model whose regional steps have another cost than the family's."""

    SHARES = (1.0,) * 6 + (0.7,) * 10

    def test_the_run_costs_the_budget(self):
        found = fitted(self.SHARES, 14.0, lambda share: 0.5 + share / 2)
        assert found[:6] == (1.0,) * 6 and found[6:] == pytest.approx((0.6,) * 10, abs=1e-3)

    def test_a_budget_that_takes_too_few_or_too_many_tokens_is_refused(self):
        """Every step computes all tokens of the reference images. If they are large, keeping the budget would
        leave so few image tokens active that the image is spoilt.
        """
        assert fitted(self.SHARES, 14.0, lambda share: 0.75 + share / 4) is None
        assert fitted(self.SHARES, 15.9, lambda share: share) is None

    @pytest.mark.parametrize("budget", [56 / 3, 14.0, 11.2, 28 / 3, 6.0])
    @pytest.mark.parametrize("references", [0.3, 1, 3])
    def test_dense_and_regional_steps_of_editing_alternate(self, budget, references):
        """A dense step also computes `references` reference images as large as the image. If only the first
        steps were dense, the image would be spoilt: bench/results/2026-11-28-h100/edit.
        """

        def cost(share):
            return (share + 0.1) / (1.1 + references)  # the text has a tenth of the image's rows

        found = fitted(self.SHARES, budget, cost)
        regional = [step for step, share in enumerate(found) if share < 1]
        spent = len(found) - len(regional) + sum(cost(found[step]) for step in regional)
        assert spent == pytest.approx(budget, rel=0.05)
        assert regional and all(later - step > 1 for step, later in pairwise(regional))
        assert found[:2] == (1.0, 1.0) and found[-1] == 1.0
        assert len(found) > budget + 1 and regional[0] <= MOST_START

    @pytest.mark.parametrize("rows", [0.02, 0.05])
    def test_small_reference_images_are_noticed(self, rows):
        """They cost so little that regional steps cost more than their share of the tokens."""

        def cost(share):
            return (share + 0.2) / (1.2 + rows)

        assert cost(0.7) > 0.7 and leaves_out_references(cost)
        for budget in (56 / 3, 14.0, 6.0):
            shares = fitted(self.SHARES, budget, cost)
            regional = [step for step, share in enumerate(shares or ()) if share < 1]
            assert all(later - step > 1 for step, later in pairwise(regional))
            assert shares is None or len(shares) > budget
        assert not leaves_out_references(lambda share: (share + 0.2) / 1.2)


class TestFittedSteps:
    """The same for noise levels that are made already, so that the number of steps stays."""

    SHARES = (1.0,) * 4 + (0.54, 1.0) * 6 + (0.54,)

    @pytest.mark.parametrize(
        ("base", "slope", "budget", "expected"),
        [
            (0.1, 0.9, 14.0, 10),  # the same steps are dense
            (0.5, 0.5, 14.0, 2),  # long text: fewer
            (0.0, 1 / 3, 14.0, 13),  # reference images: more
            (0.0, 1 / 3, 16.0, 16),
            (0.0, 1 / 3, 11.0, 10),
            (0.45, 0.55, 13.0, 2),
        ],
    )
    def test_the_run_costs_the_budget(self, base, slope, budget, expected):
        found = fitted_steps(self.SHARES, budget, lambda share: base + slope * share)
        spent = sum(1.0 if share == 1 else base + slope * share for share in found)
        assert len(found) == len(self.SHARES) and 0.4 <= min(found) and found.count(1.0) == expected
        assert spent == pytest.approx(budget, rel=0.03)

    def test_it_costs_more_if_the_shares_would_be_too_small(self):
        assert fitted_steps(self.SHARES, 9.0, lambda share: share)[2:] == (0.4667,) * 15
        assert fitted_steps(self.SHARES, 5.0, lambda share: share)[2:] == (0.4,) * 15

    @pytest.mark.parametrize(("budget", "cost"), [(14.0, lambda share: 0.9), (17.0, lambda share: share)])
    def test_all_steps_are_dense_if_regional_ones_save_too_little(self, budget, cost):
        assert fitted_steps(self.SHARES, budget, cost) is None


class TestFamilies:
    def test_a_plain_plan_for_every_speed_and_sampler(self):
        for family in ("sd3", "lumina2", "lumina_next", "flux", None):
            plain = [p for p in family_plans(family).plans if p.is_plain]
            assert {(p.speed, p.sampler) for p in plain} == {
                (speed, sampler) for speed in PLAN_SPEEDS for sampler in PLAN_SAMPLERS
            }
            assert all(p.closeness is None for p in plain)

    def test_measured_families_have_regional_plans_where_these_gain(self):
        for family in ("sd3", "lumina2", "flux"):
            plans = family_plans(family)
            for sampler in PLAN_SAMPLERS:
                plain = [speed for speed in PLAN_SPEEDS if plans.best(speed, sampler).is_plain]
                assert plain == (["2.5x", "3x"] if family == "lumina2" else [])
            assert plans.best("2x", "dpmpp_2m", plain=True).is_plain
        assert all(p.is_plain for p in family_plans("lumina_next").plans)

    def test_speeds_are_kept_within_five_percent(self):
        for p in family_plans("sd3").plans:
            assert p.speedup == pytest.approx(float(p.speed.removesuffix("x")), rel=0.05)

    def test_a_measured_family_says_so(self):
        assert family_plans("sd3").note == "noise levels of the SD3 family"
        assert family_plans("lumina_next").note == "mean noise levels of all families that were measured"

    def test_every_adapter_has_the_plans_of_a_measured_family(self):
        modules = {type(adapter).__module__.rpartition(".")[2] for adapter in ADAPTERS}
        measured = set(module._costs())
        assert modules == {*measured, *module.NEAREST, *MEAN_GRID}
        assert set(module.NEAREST.values()) <= measured

    def test_whole_plans_of_the_file_come_first(self, tmp_path, monkeypatch):
        """plans.json, which the pack ships, can contain complete plans for a family, in the format that a
        calibration saves. They are preferred to plans computed from the family's grids.
        """
        data = json.loads(module.DATA.read_text(encoding="utf-8"))
        better = plan(steps=17, regional=11, sampler="euler", origin="our own fronts")
        data["plans"]["sd3"] = json.loads(PlanSet((better,)).to_json())["plans"]
        (tmp_path / "plans.json").write_text(json.dumps(data), encoding="utf-8")
        monkeypatch.setattr(module, "DATA", tmp_path / "plans.json")
        module._shipped.cache_clear()
        try:
            plans = family_plans("sd3")
            assert plans.best("2x", "euler") == better
            assert plans.best("2x", "dpmpp_2m").origin == "noise levels of the SD3 family"
            assert plans.best("2x", "euler", plain=True).is_plain
            assert family_plans("lumina2").best("2x", "euler").origin == "noise levels of the Lumina 2 family"
        finally:
            module._shipped.cache_clear()

    def test_the_mean_is_between_them(self):
        first = [family_plans(name).best("2x", "euler").density[0] for name in ("sd3", "lumina2", "flux")]
        assert min(first) <= family_plans(None).best("2x", "euler").density[0] <= max(first)


class TestMeasuredPlans:
    """A plan measured on the run's model keeps its dense and regional steps with any number of steps."""

    PLAN = Plan("2x", "euler", (0.7, 0.3), (1.0,) * 10 + (0.3,) * 14)

    def test_only_its_share_changes(self):
        plan = self.PLAN.resized(27)
        found = fitted_plan(plan, self.PLAN, 13.5, lambda share: share, is_measured=True)
        assert [share == 1 for share in found.shares] == [share == 1 for share in plan.shares]
        assert sum(found.shares) == pytest.approx(13.5, abs=0.01)

    def test_it_stays_as_it_is_if_no_share_fits_or_if_it_was_measured_so(self):
        plan = self.PLAN.resized(27)
        assert fitted_plan(plan, self.PLAN, 3.0, lambda share: share, is_measured=True) == plan
        assert fitted_plan(self.PLAN, self.PLAN, 13.0, lambda share: share, is_measured=True) == self.PLAN
