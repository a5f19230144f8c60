"""The computations of the benchmark harness, compared with hand-computed numbers."""

import io
import math
from dataclasses import replace

import pytest
import torch
from ras_pack.bench.common.progress import Progress
from ras_pack.bench.quality.cells import Cell, cell_from, grid
from ras_pack.bench.quality.costs import cost_reduction, sd3_cost_reduction
from ras_pack.bench.quality.figures import frechet_distance, masked_psnr, psnr, relative_error
from ras_pack.bench.quality.front import at_cost, best_at_cost, pareto
from ras_pack.bench.quality.presets import PRESETS, preset
from ras_pack.bench.quality.solvers import sample_ab2, sample_unbounded_ab2
from ras_pack.bench.studies.start_step import cells as start_cells
from ras_pack.bench.studies.start_step import spread_resets
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.models.cost import CostProfile


class TestFigures:
    def test_psnr_of_a_known_error(self):
        """If every value is off by 0.1, the mean squared error is 0.01 and the PSNR 20 dB. Identical images
        get the maximum of 100 dB.
        """
        one = torch.full((2, 3, 4, 4), 0.5)
        other = torch.stack([one[0] + 0.1, one[1]])
        assert psnr(other, one).tolist() == pytest.approx([20.0, 100.0], abs=1e-4)

    def test_psnr_inside_a_mask(self):
        """Half of the image is off by 0.1: PSNR is 20 dB inside that half, and 23 dB over the whole image."""
        one, mask = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
        mask[..., :2] = 1
        other = one + 0.1 * mask
        assert masked_psnr(other, one, mask).item() == pytest.approx(20.0, abs=1e-4)
        assert psnr(other, one).item() == pytest.approx(20 + 10 * math.log10(2), abs=1e-4)

    def test_relative_error(self):
        reference = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
        assert relative_error(reference + torch.tensor([0.0, 1.0]).view(1, 2, 1, 1), reference).item() == (
            pytest.approx(0.2)
        )

    def test_frechet_distance_in_one_dimension(self):
        """Means 0 and 3 and standard deviations 1 and 2 give the distance (0 - 3)^2 + (1 - 2)^2 = 10."""
        a = torch.tensor([[-1.0], [1.0]]) / math.sqrt(2)
        assert frechet_distance(a, 2 * a + 3) == pytest.approx(10.0)
        assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)

    def test_frechet_distance_with_fewer_samples_than_features(self):
        """The second set is the first one shifted by 1 in each of 40 features. So only the means differ."""
        a = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
        assert frechet_distance(a, a + 1.0) == pytest.approx(40.0, rel=1e-6)


class TestFront:
    POINTS = [(1.0, 40.0), (2.0, 30.0), (2.0, 28.0), (1.5, 29.0), (4.0, 20.0)]

    def test_only_points_that_no_other_beats_are_kept(self):
        """The point (1.5x, 29 dB) is left out: (2x, 30 dB) is both cheaper and better."""
        assert pareto(self.POINTS) == [(1.0, 40.0), (2.0, 30.0), (4.0, 20.0)]

    @pytest.mark.parametrize(
        ("cost", "quality"), [(1.0, 40.0), (1.5, 35.0), (3.0, 25.0), (4.0, 20.0), (4.1, None), (0.5, 40.0)]
    )
    def test_linear_between_points_and_none_beyond_the_end(self, cost, quality):
        found = at_cost(pareto(self.POINTS), cost)
        assert found is None if quality is None else found == pytest.approx(quality)

    def test_the_best_of_several(self):
        fronts = {"a": [(1.0, 10.0), (2.0, 5.0)], "b": [(1.0, 8.0), (3.0, 7.0)], "c": []}
        assert best_at_cost(fronts, 1.0) == ("a", 10.0)
        assert best_at_cost(fronts, 2.0) == ("b", 7.5)
        assert best_at_cost(fronts, 5.0) is None


class TestCosts:
    def test_a_step_of_half_the_tokens_without_attention(self):
        """Each of ten tokens costs 1 per step: four dense steps cost 40, two dense and two half steps 30."""
        profile = CostProfile(image_weights=1, text_weights=0, joint_width=0)
        assert cost_reduction(profile, 10, 0, [1, 1, 0.5, 0.5], 4) == pytest.approx(40 / 30)

    def test_sd3_medium_at_1024(self):
        """The settings of the design page: 28 steps, of which steps 0 to 3, 12 and 20 are dense."""
        for ratio, expected in ((0.5, 1.57), (0.25, 2.20), (0.125, 2.75)):
            shares = [1.0] * 6 + [ratio] * 22
            assert sd3_cost_reduction(shares) == pytest.approx(expected, abs=0.015)

    def test_fewer_steps(self):
        assert sd3_cost_reduction(Cell("sd3", steps=14).planned_shares()) == pytest.approx(2.0)

    @pytest.mark.parametrize(
        ("steps", "reset", "ratio", "expected"),
        [
            (28, 6, 0.5, 1.53),
            (28, 6, 0.25, 2.08),
            (20, 4, 0.5, 2.00),
            (20, 4, 0.25, 2.55),
            (14, 3, 0.25, 3.06),
        ],
    )
    def test_the_costs_of_the_design_tables(self, steps, reset, ratio, expected):
        cell = Cell("sd3", "multirate", steps=steps, start=4, reset_every=reset, ratio=ratio)
        assert sd3_cost_reduction(cell.planned_shares()) == pytest.approx(expected, abs=0.015)


class TestAB2:
    @staticmethod
    def error(steps: int, uneven: bool) -> float:
        """Error at the end for the equation dx/dsigma = v = -x, whose solution is x(0.2) = x(1) exp(0.8). The
        denoised estimate is D = x - sigma v.
        """
        share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        sigmas = 1 - 0.8 * (share**1.5 if uneven else share)
        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        end = sample_ab2(lambda x, sigma: x + sigma.view(-1, 1, 1, 1) * x, x, sigmas)
        return abs(float(end) - math.exp(0.8))

    @pytest.mark.parametrize("uneven", [False, True])
    def test_second_order(self, uneven):
        errors = [self.error(steps, uneven) for steps in (20, 40, 80)]
        orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
        assert all(1.8 < order < 2.3 for order in orders), orders

    def test_exact_for_a_velocity_that_is_linear_in_sigma(self):
        """For v = sigma, the first step is an Euler step and off by h^2 / 2; all other steps are exact."""
        sigmas = torch.linspace(1, 0.5, 6, dtype=torch.float64)
        x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        end = sample_ab2(lambda x, sigma: x - sigma.view(-1, 1, 1, 1) ** 2, x, sigmas)
        assert float(end) == pytest.approx((0.25 - 1) / 2 - 0.1**2 / 2)

    @pytest.mark.parametrize(("sampler", "is_exact"), [(sample_ab2, False), (sample_unbounded_ab2, True)])
    def test_a_step_that_is_longer_than_the_one_before(self, sampler, is_exact):
        """For v = sigma, a step of 0.3 after one of 0.1 is exact with the usual method only."""
        sigmas = torch.tensor([1.0, 0.9, 0.6], dtype=torch.float64)
        x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        end = float(sampler(lambda x, sigma: x - sigma.view(-1, 1, 1, 1) ** 2, x, sigmas))
        assert (end == pytest.approx((0.36 - 1) / 2 - 0.1**2 / 2)) == is_exact

    def test_its_callback_sees_every_step(self):
        seen = []
        x = torch.zeros(1, 1, 1, 1)
        sample_ab2(
            lambda x, sigma: x, x, torch.tensor([1.0, 0.5, 0.0]), callback=lambda s: seen.append(s["i"])
        )
        assert seen == [0, 1]


class TestCells:
    def test_axes_that_a_method_lacks_add_no_cells(self):
        """Dense: two samplers x two step counts. Multirate: two step counts x two ratios x two orders. The
        cache has only two step counts.
        """
        cells = grid(
            ["sd3"], ["dense", "multirate", "lazycache"], ["euler", "ab2"],
            steps=[28, 14], starts=[4], resets=[4], ratios=[0.5, 0.25], orders=[1, 2],
            thresholds=[0.2], seeds=[0],
        )  # fmt: skip
        assert len(cells) == 4 + 8 + 2
        assert len({cell.key for cell in cells}) == len(cells)

    def test_settings_of_each_method(self):
        base = Cell("sd3", "paper", start=4, reset_every=6, ratio=0.25, metric="l2norm", starvation=0.1)
        assert base.config() == RASConfig(
            sample_ratio=0.25, paper=PaperSettings(metric="l2norm"), corrections=False
        )
        assert replace(base, method="random").config().paper.metric == "random"
        corrected = replace(base, method="multirate").config()
        assert (corrected.paper, corrected.corrections) == (None, True)
        selection = replace(base, method="change").config()
        assert (selection.paper, selection.corrections) == (None, False)
        forecast = replace(base, method="forecast").config()
        assert (forecast.kv_cache, corrected.kv_cache, forecast.spread) == ("forecast", "gpu", False)
        fresher = replace(base, method="fresher").config()
        assert (fresher.kv_cache, fresher.corrections) == ("forecast2", True)
        assert fresher.continue_outputs and fresher.spread
        spread = replace(base, method="spread").config()
        assert (spread.kv_cache, spread.spread, spread.continue_outputs) == ("forecast", True, False)
        assert Cell("sd3").config() is None

    def test_a_cell_can_be_read_back_from_its_row(self):
        cell = Cell("sd3", "paper", steps=20, reset_steps=(4, 9), ratio=0.3, starvation=0.1, seed=2)
        text = {
            name: "+".join(map(str, v)) if isinstance(v, tuple) else str(v) for name, v in vars(cell).items()
        }
        assert cell_from(text) == cell and cell_from(text).key == cell.key

    def test_an_unknown_method_is_refused(self):
        with pytest.raises(RASError, match="method 'magic'.*Expected: one of dense, multirate"):
            Cell("sd3", "magic")

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_contain_each_cell_once_and_can_be_planned(self, name):
        cells = preset(name, ["sd3", "lumina2"], [0])
        assert len({cell.key for cell in cells}) == len(cells)
        least = 0.75 if name == "speeds" else 1.0  # up to 36 steps instead of 28
        assert all(sd3_cost_reduction(cell.planned_shares()) >= least for cell in cells)

    def test_the_front_brackets_every_target(self):
        """The cost reductions of the baselines, and of multirate, range from below 1.5x to beyond 3.5x."""
        cells = preset("front", ["sd3"], [0])
        assert not any(cell.method == "easycache" for cell in cells)  # it has no effect on SD3
        for wanted in (lambda c: c.method == "multirate", lambda c: c.sampler == "ab2"):
            costs = [sd3_cost_reduction(cell.planned_shares()) for cell in cells if wanted(cell)]
            assert min(costs) <= 1.5 and max(costs) >= 3.5

    def test_schedules_of_equal_cost(self):
        assert spread_resets(4, dense=7, steps=28) == (10, 16, 22)
        assert spread_resets(7, dense=7, steps=28) == ()
        costs = [sd3_cost_reduction(cell.planned_shares()) for cell in start_cells("sd3", True).values()]
        assert max(costs) == pytest.approx(min(costs))


class TestProgress:
    def test_the_time_left_is_estimated_from_the_work_since_the_first_job(self):
        """Setup and the first job take 100 s, which the estimate ignores. Then two units of work take 4 s, so
        the remaining five units are expected to take 10 s.
        """
        times, out = iter([0.0, 100.0, 104.0, 114.0]), io.StringIO()
        progress = Progress(3, 8.0, out, clock=lambda: next(times))
        for work in (1.0, 2.0, 5.0):
            progress.step(work, "cell")
        assert out.getvalue().splitlines() == [
            "[1/3] cell | ...",
            "[2/3] cell | 10 s left",
            "[3/3] cell | done in 114 s",
        ]
