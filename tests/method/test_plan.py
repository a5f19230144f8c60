"""The settings, and the kinds of steps that follow from them, compared with hand-counted steps."""

import pytest
import torch
from ras_pack.ras_core.config import PaperSettings, RASConfig, parse_step_list
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.method.schedule import StepKind, decreases, plan_steps, step_of_sigma, why_all_dense


def _dense(n_steps: int, **settings) -> list[int]:
    """The indices of the dense steps; unless `settings` say otherwise, by the paper's method."""
    config = RASConfig(**{"paper": PaperSettings(), **settings})
    return [p.index for p in plan_steps(n_steps, config) if p.kind is StepKind.DENSE]


class TestPlan:
    def test_default_resets_every_six_steps_after_the_start(self):
        assert _dense(28) == [0, 1, 2, 3, 10, 16, 22]
        assert [p.index for p in plan_steps(28, RASConfig()) if p.is_reset] == [10, 16, 22]

    def test_an_explicit_list_takes_precedence_and_steps_past_the_end_are_ignored(self):
        assert _dense(20, paper=PaperSettings(error_reset_steps=(12, 20))) == [0, 1, 2, 3, 12]
        assert _dense(20, paper=None, dense_steps=(12, 20)) == [0, 1, 2, 3, 12]

    def test_no_resets(self):
        assert _dense(28, error_reset_every=0) == [0, 1, 2, 3]

    def test_the_window_is_half_open(self):
        assert _dense(12, start_step=3, end_step=6, error_reset_every=0) == [0, 1, 2, 6, 7, 8, 9, 10, 11]
        assert _dense(12, start_step=3, end_step=40, error_reset_every=0) == [0, 1, 2]

    def test_the_first_step_is_dense_even_when_asked_otherwise(self):
        assert _dense(5, start_step=0, error_reset_every=0) == [0]

    def test_the_multirate_method_needs_two_dense_steps(self):
        assert _dense(5, start_step=0, error_reset_every=0, paper=None) == [0, 1]

    def test_ratio_one_has_no_regional_step(self):
        assert _dense(8, sample_ratio=1.0) == list(range(8))

    def test_the_ratio_changes_linearly_over_the_regional_steps(self):
        paper = PaperSettings(ratio_end=0.2, error_reset_steps=(5,))
        plan = plan_steps(8, RASConfig(sample_ratio=0.6, paper=paper))
        regional = {p.index: round(p.ratio, 6) for p in plan if p.kind is StepKind.REGIONAL}
        assert regional == {4: 0.6, 6: 0.4, 7: 0.2}

    @pytest.mark.parametrize(
        ("ratio", "n", "active"), [(0.5, 256, 128), (0.25, 256, 64), (0.7, 10, 7), (0.05, 3, 1)]
    )
    def test_active_counts(self, ratio, n, active):
        plan = plan_steps(6, RASConfig(sample_ratio=ratio))
        assert plan[5].active_count(n) == active
        assert plan[0].active_count(n) == n


class TestSigma:
    SIGMAS = (1.0, 0.8, 0.5, 0.2, 0.0)

    @pytest.mark.parametrize(
        ("sigma", "step"),
        [(1.0, 0), (0.9999, 0), (1.2, 0), (0.9, 0), (0.8, 1), (0.80001, 1), (0.79, 1),
         (0.5, 2), (0.2, 3), (0.01, 3), (0.0, 3)],
    )  # fmt: skip
    def test_an_evaluation_belongs_to_the_interval_that_holds_it(self, sigma, step):
        assert step_of_sigma(self.SIGMAS, sigma) == step

    @pytest.mark.parametrize("steps", [600, 10000])
    def test_steps_smaller_than_the_tolerance(self, steps):
        """ComfyUI's linear_quadratic schedule starts with steps of 8e-5 at 600 steps."""
        levels = [*torch.linspace(1.0, 0.975, steps // 2), *torch.linspace(0.975, 0.0, steps // 2 + 1)[1:]]
        sigmas = [float(level) for level in levels]
        for step in (0, 1, 2, steps // 4, steps // 2 - 1, steps // 2, len(sigmas) - 2):
            for nudge in (1.0, 1 - 1e-7, 1 + 1e-7):
                assert step_of_sigma(sigmas, sigmas[step] * nudge) == step

    def test_direction(self):
        assert decreases(self.SIGMAS) and not decreases(self.SIGMAS[::-1]) and not decreases((1.0, 0.5, 0.5))


class TestErrors:
    """Each error names the value, what is expected, and what to do."""

    @pytest.mark.parametrize(
        ("settings", "came"),
        [
            ({"sample_ratio": 0.01}, "sample_ratio = 0.01"),
            ({"sample_ratio": 1.5}, "sample_ratio = 1.5"),
            ({"sample_ratio": float("nan")}, "sample_ratio = nan"),
            ({"start_step": -1}, "start_step = -1"),
            ({"dense_steps": (4, -1)}, "dense_steps = -1"),
            ({"start_step": 6, "end_step": 5}, "end_step = 5 is not after start_step = 6"),
            ({"paper": "std"}, "paper = 'std'"),
            ({"paper": PaperSettings(), "dense_steps": (9,)}, "together with the paper's method"),
        ],
    )
    def test_a_value_of_a_run_out_of_range(self, settings, came):
        _refused(RASConfig, settings, came)

    @pytest.mark.parametrize(
        ("settings", "came"),
        [
            ({"ratio_end": 0.01}, "ratio_end = 0.01"),
            ({"high_ratio": -0.1}, "high_ratio = -0.1"),
            ({"starvation_scale": -1.0}, "starvation_scale = -1.0"),
            ({"metric": "variance"}, "metric = 'variance'"),
            ({"error_reset_steps": (-1,)}, "error_reset_steps = -1"),
            ({"starvation": "none"}, "starvation = 'none'"),
        ],
    )
    def test_a_value_of_the_papers_method_out_of_range(self, settings, came):
        _refused(PaperSettings, settings, came)

    def test_step_lists(self):
        assert parse_step_list("12, 20 ,4,") == (4, 12, 20)
        assert parse_step_list("  ") == ()
        with pytest.raises(RASError, match=r"holds 'a', 'b'.*Expected: step numbers.*What to do"):
            parse_step_list("a,b")
        with pytest.raises(RASError, match="'-1'"):
            parse_step_list("-1")

    def test_settings_are_frozen(self):
        with pytest.raises(AttributeError):
            RASConfig().sample_ratio = 0.1
        with pytest.raises(AttributeError):
            PaperSettings().metric = "l2norm"


def _refused(kind, settings: dict, came: str) -> None:
    with pytest.raises(RASError) as caught:
        kind(**settings)
    assert came in str(caught.value)
    assert "Expected:" in str(caught.value) and "What to do:" in str(caught.value)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"start_step": 6}, "the run has 5 steps, and the first 6 are dense"),
        ({"start_step": 0, "end_step": 2}, "the first 2 are dense, but regional steps end before step 2"),
        ({"start_step": 2, "dense_steps": (2, 3, 4)}, "the first 2 are dense, as are 3 error resets"),
    ],
)
def test_the_true_reason_why_all_steps_are_dense(settings, expected):
    config = RASConfig(**settings)
    plan = plan_steps(5, config)
    assert all(step.kind is StepKind.DENSE for step in plan)
    assert why_all_dense(plan, config).endswith(expected)
