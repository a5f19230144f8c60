"""The adaptive budget: hand-made demands first, then real runs."""

import math
from dataclasses import replace

import pytest
import torch
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.graphs.eligibility import MAX_GRAPHS
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.method.schedule import StepKind, plan_steps
from ras_pack.ras_core.method.selector import ChangeSelector
from ras_pack.ras_core.method.token_budget import EXPECTED_DECLINE, LEVELS, Purse, levels_for
from support.families import FAMILIES
from support.sampling import sample_ras

SD3 = FAMILIES["sd3"]
ADAPTIVE = RASConfig(sample_ratio=0.5, start_step=2, method="multirate", corrections=True, budget="adaptive")


def _plan(n_steps: int, **settings):
    return plan_steps(n_steps, replace(ADAPTIVE, **settings))


def _decided(plan, demands):
    purse = Purse(plan)
    return [purse.decide(step, demand) for step, demand in zip(plan, demands, strict=True)]


def _expected(n_steps: int) -> list[float]:
    """Demands that fall just as the purse expects."""
    return [EXPECTED_DECLINE ** (step / n_steps) for step in range(n_steps)]


class TestPurse:
    def test_half_of_the_tokens_are_divided_by_the_demand(self):
        """Five steps, three open: 1.5 to spend. From one to the next the demand falls to 0.13 ** (1 / 5) =
        0.665, so the first gets 1.5 / (1 + 0.665 + 0.442) = 0.71, level 0.75. Of the other 0.75 the second
        gets 1 / (1 + 0.665), 0.45 and so level 0.5, and the last the rest."""
        shares = [step.ratio for step in _decided(_plan(5), _expected(5))]
        assert shares == [1.0, 1.0, 0.75, 0.5, 0.25]

    def test_a_quarter_of_them_by_its_power_one_and_a_half(self):
        """0.5 to spend; 0.600 ** 1.5 = 0.465, so 0.5 / 1.465 = 0.341, level 0.375, and the last the rest."""
        shares = [step.ratio for step in _decided(_plan(4, sample_ratio=0.25), [None, None, 5.0, 3.0])]
        assert shares == [1.0, 1.0, 0.375, 0.125]

    def test_few_tokens_when_little_moves(self):
        """At step 10 of 28 a tenth of the expected demand: the lowest level."""
        plan, demands = _plan(28, start_step=4, sample_ratio=0.25), _expected(28)
        usual = _decided(plan, demands)[10].ratio
        demands[10] /= 10
        assert usual > LEVELS[0] and _decided(plan, demands)[10].ratio == LEVELS[0]

    def test_a_dense_step_when_much_moves(self):
        """Three times the expected demand."""
        plan, demands = _plan(28, start_step=4), _expected(28)
        assert _decided(plan, demands)[10].kind is StepKind.REGIONAL
        demands[10] *= 3
        step = _decided(plan, demands)[10]
        assert step.kind is StepKind.DENSE and step.is_reset and step.active_count(64) == 64

    def test_it_spends_early(self):
        """A falling demand alone moves the purse to the first half, without any periodic reset."""
        shares = [step.ratio for step in _decided(_plan(28, start_step=4, sample_ratio=0.25), _expected(28))]
        assert sum(shares[4:16]) > 2.5 * sum(shares[16:]) and shares[4] >= 0.75

    @pytest.mark.parametrize("ratio", [0.15, 0.25, 0.35, 0.5, 0.7])
    @pytest.mark.parametrize("shape", ["falling", "flat", "rising", "noisy", "late"])
    def test_the_average_is_the_sample_ratio(self, ratio, shape):
        generator = torch.Generator().manual_seed(3)
        noise = torch.rand(28, generator=generator).tolist()
        demands = {
            "falling": _expected(28),
            "flat": [1.0] * 28,
            "rising": _expected(28)[::-1],
            "noisy": [a * (0.3 + b) for a, b in zip(_expected(28), noise, strict=True)],
            "late": [0.1] * 20 + [1.0] * 8,
        }[shape]
        window = [step.ratio for step in _decided(_plan(28, start_step=4, sample_ratio=ratio), demands)[4:]]
        assert set(window) <= set(levels_for(ratio))
        assert ratio * 24 - 0.25 <= sum(window) <= ratio * 24 + 1e-9  # never more, and at most a level less

    def test_the_smallest_ratio_still_follows_the_demand(self):
        """24 steps of 0.05: half of that is the floor, and the rest goes to the first ones."""
        window = [s.ratio for s in _decided(_plan(28, start_step=4, sample_ratio=0.05), _expected(28))[4:]]
        assert set(window) == {0.025, 0.125}
        assert sum(window) == pytest.approx(1.2, abs=0.1)

    def test_explicit_resets_stay_and_cost_nothing_more(self):
        """As with the fixed budget: 8 steps, 2 and 5 dense, five regional steps of 0.5 to pay for."""
        steps = _decided(_plan(8, error_reset_steps=(2, 5)), _expected(8))
        assert [steps[i].kind for i in (2, 5)] == [StepKind.DENSE] * 2
        assert sum(steps[i].ratio for i in (3, 4, 6, 7)) == pytest.approx(2.0, abs=0.126)

    def test_periodic_resets_are_ignored(self):
        plan = _plan(28, start_step=4, error_reset_every=6)
        assert all(step.kind is StepKind.REGIONAL for step in plan[4:])

    def test_nothing_is_left_to_decide_after_the_window(self):
        purse = Purse(_plan(10, end_step=6))
        assert [purse.is_open(step) for step in range(10)] == [True] * 6 + [False] * 4

    def test_unknown_or_no_demand_is_no_obstacle(self):
        """A run that stands still, or has told nothing, follows the expectation."""
        expected = _decided(_plan(12), _expected(12))
        for nothing in (None, 0.0, math.nan, math.inf):
            assert _decided(_plan(12), [nothing] * 12) == expected

    @pytest.mark.parametrize("factor", [0.1, 10.0])
    def test_a_steep_demand_in_a_long_run(self, factor):
        """Ten times more or less at each of 300 steps: forecast to the end, it is beyond a number's range."""
        demands = [factor ** min(step, 100) for step in range(300)]
        shares = [step.ratio for step in _decided(_plan(300, sample_ratio=0.25), demands)[2:]]
        assert sum(shares) == pytest.approx(0.25 * 298, rel=0.01)

    def test_the_levels_leave_room_among_the_recorded_graphs(self):
        assert levels_for(0.5) == (0.25, 0.375, 0.5, 0.75, 1.0)
        assert levels_for(0.25) == LEVELS
        assert levels_for(0.1) == (0.05, *LEVELS)
        assert all(len(levels_for(ratio)) - 1 < MAX_GRAPHS for ratio in (0.05, 0.1, 0.3, 0.9))  # 1 is dense


def test_the_demand_is_the_mean_root_of_the_predicted_change():
    """Three tokens with one channel; from sigma 1 to 0.5 each moves by 2 on four pixels, so by the root of
    the mean square, 2: rate 4. Until sigma 0.25 that is a change of 1, and its root is 1."""
    selector = ChangeSelector(TokenGrid((2, 6), (2, 2)))
    assert selector.demand(1.0, 0.5) is None
    for value, sigma in ((0.0, 1.0), (2.0, 0.5)):
        x = torch.full((2, 1, 2, 6), value)
        selector.observe(x, x, sigma, None)
    assert float(selector.demand(0.5, 0.25)) == pytest.approx(1.0)
    assert float(selector.demand(0.5, 0.4375)) == pytest.approx(math.sqrt(0.25))


def test_the_papers_rule_predicts_no_change():
    with pytest.raises(
        RASError, match=r"budget = 'adaptive' with method = 'paper'.*Expected: .*What to do: "
    ):
        RASConfig(method="paper", budget="adaptive")
    with pytest.raises(RASError, match="one of fixed, adaptive"):
        RASConfig(budget="free")


class TestRuns:
    @pytest.fixture(scope="class")
    def run(self):
        """Twelve steps of a batch of two."""
        return sample_ras(SD3.build(), SD3, SD3.noise(batch=2), ADAPTIVE, steps=12)

    def test_the_trace_tells_what_was_done(self, run):
        _, trace = run
        shares = [step.active_share for step in trace.steps]
        assert shares[:2] == [1.0, 1.0] and set(shares) <= set(levels_for(0.5)) and len(set(shares)) > 2
        assert 4.75 <= sum(shares[2:]) <= 5.0
        for step in trace.steps[2:]:
            assert step.is_reset == (step.active_share == 1.0) == (step.kind is StepKind.DENSE)

    def test_one_count_for_the_whole_batch(self, run):
        _, trace = run
        for step in trace.steps:
            counts = step.active.sum(axis=(1, 2))
            assert counts[0] == counts[1]

    def test_the_same_again(self, run):
        latent, trace = run
        again, other = sample_ras(SD3.build(), SD3, SD3.noise(batch=2), ADAPTIVE, steps=12)
        assert torch.equal(again, latent)
        assert [s.active_share for s in other.steps] == [s.active_share for s in trace.steps]

    def test_all_evaluations_of_a_step_work_on_the_same_tokens(self):
        _, trace = sample_ras(SD3.build(), SD3, SD3.noise(), ADAPTIVE, steps=10, sampler="heun")
        by_step = {}
        for evaluation in trace.evaluations:
            by_step.setdefault(evaluation.step, []).append(evaluation)
        assert any(len(each) > 1 for each in by_step.values())
        assert all((each.active == same[0].active).all() for same in by_step.values() for each in same)

    def test_a_regional_step_after_a_dense_one_of_its_own_choice(self, run):
        """The dense step has filled the cache: nothing ran dense for want of it."""
        _, trace = run
        kinds = [step.kind for step in trace.steps[2:]]
        assert StepKind.DENSE in kinds and StepKind.REGIONAL in kinds[kinds.index(StepKind.DENSE) :]
        assert trace.notes == ()
