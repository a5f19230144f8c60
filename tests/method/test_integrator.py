"""The multirate integrator on an ODE with a known solution, and with hand-computed numbers."""

import math

import pytest
import torch
from ras_pack.ras_core.method.adams import LAST_WEIGHT, adams_step, adams_weight
from ras_pack.ras_core.method.history import History
from ras_pack.ras_core.method.integrator import (
    SOLVERS,
    advance,
    continued_step,
    forecast_change,
    multirate_step,
    redo_long_step,
    second_order_estimate,
)

END = 2.0
ORDER = {"euler": 1, "dpmpp_2m": 2, "ab2": 2}
RATES = torch.tensor([0.3, -0.5, -1.2, 0.1]).view(1, 1, 2, 2).double()


def _exact(x0: torch.Tensor, t: float) -> torch.Tensor:
    """The exact solution at t of the equation dx/dt = D - x with the denoised estimate D = a x + 1."""
    slope = RATES - 1
    return (x0 + 1 / slope) * torch.exp(slope * t) - 1 / slope


def _times(n: int, uneven: bool) -> list[float]:
    grid = torch.linspace(0, 1, n + 1).double()
    return (END * (grid**1.5 if uneven else grid)).tolist()


def _integrate(
    n: int,
    periods: list[int],
    solver: str,
    corrected: bool = True,
    uneven: bool = True,
    step=multirate_step,
) -> float:
    """Largest error at the end, when pixel i is evaluated at every periods[i]-th step only."""
    x = x0 = torch.ones(1, 1, 2, 2).double()
    every = torch.tensor(periods).view(1, 1, 2, 2)
    history, fresh_before, d = History.empty(x), None, torch.zeros_like(x)
    times = _times(n, uneven)
    for i, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        fresh = torch.tensor(i) % every == 0
        d = torch.where(fresh, RATES * x + 1, d)
        stale = torch.zeros_like(fresh) if fresh_before is None or not corrected else ~fresh_before
        history, x = step(history, x, d, (t, t_next), (fresh, stale), solver)
        fresh_before = fresh
    return float((x - _exact(x0, END)).abs().max())


class TestConvergence:
    """If every step is half as long, the error is divided by 2 to the power of the solver's order."""

    @pytest.mark.parametrize("uneven", [False, True])
    @pytest.mark.parametrize("periods", [[1, 1, 1, 1], [1, 2, 4, 3]], ids=["fresh", "mixed"])
    @pytest.mark.parametrize("solver", SOLVERS)
    def test_order(self, solver, periods, uneven):
        errors = [_integrate(n, periods, solver, uneven=uneven) for n in (96, 192, 384)]
        observed = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
        assert observed == pytest.approx([ORDER[solver]] * 2, abs=0.3)

    def test_long_steps_are_first_order_without_their_correction(self):
        errors = [_integrate(n, [2, 2, 4, 4], "dpmpp_2m", corrected=False) for n in (96, 192)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)
        assert _integrate(96, [2, 2, 4, 4], "dpmpp_2m") < errors[0] / 10


class TestContinued:
    """Tests of steps that extrapolate the denoised estimates of cached (stale) tokens."""

    FRESH = torch.tensor([True, True, False, False]).view(1, 1, 2, 2)

    def _history(self, d: torch.Tensor, d_before: torch.Tensor) -> History:
        """The history of a token that was last evaluated at sigma 3/4, and before that at sigma 1."""
        at = torch.zeros_like(d[:, :1])
        return History(d, d_before, 2 * d + 1, at - math.log(0.75), at)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_order(self, solver):
        errors = [_integrate(n, [1, 2, 4, 3], solver, step=continued_step) for n in (96, 192, 384)]
        observed = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
        assert observed == pytest.approx([ORDER[solver]] * 2, abs=0.3)

    def test_estimates_that_are_linear_in_sigma_end_nearer(self):
        """With D = 1 - sigma / 2, extrapolation makes the error smaller. The first three of ten steps are
        dense; then one token is computed in every 2nd step, and one in every 4th.
        """

        def error(step) -> torch.Tensor:
            x = torch.full((1, 1, 2, 2), 3.0).double()
            every, stale = torch.tensor([[1, 1], [2, 4]]), torch.zeros_like(self.FRESH)
            history, times = History.empty(x), _times(10, False)
            for i, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
                fresh = ((torch.tensor(i) % every == 0) | torch.tensor(i < 3)).view(1, 1, 2, 2)
                d = torch.where(fresh, torch.full_like(x, 1 - math.exp(-t) / 2), history.d)
                history, x = step(history, x, d, (t, t_next), (fresh, stale), "dpmpp_2m")
                stale = ~fresh
            return (x - (1 + (2 - END / 2) * math.exp(-END))).abs().flatten()

        held, continued = error(multirate_step), error(continued_step)
        assert torch.equal(held[:2], continued[:2])
        assert (continued[2:] < 0.6 * held[2:]).all()

    @pytest.mark.parametrize(("seen", "gain"), [(0.25, 1.0), (0.125, 0.5), (1.0, 1.0), (-0.25, 0.0)])
    def test_forecasts_are_scaled_by_what_fresh_tokens_confirm(self, seen, gain):
        """D rose by 1/4 while sigma fell by 1/4, and now sigma has fallen by 1/4 again. So the forecast
        change is 1/4, times the share of it that the fresh tokens really show.
        """
        d = torch.ones(1, 3, 2, 2)
        found = torch.where(self.FRESH, d + seen, d)
        elapsed, change = forecast_change(self._history(d, d - 0.25), found, math.log(2), self.FRESH)
        assert elapsed.flatten().tolist() == pytest.approx([0.25] * 4)
        torch.testing.assert_close(change, torch.full_like(d, 0.25 * gain))

    def test_each_image_has_its_own_gain(self):
        d = torch.ones(2, 3, 2, 2)
        found = torch.where(self.FRESH, d + torch.tensor([0.25, 0.125]).view(2, 1, 1, 1), d)
        _, change = forecast_change(self._history(d, d - 0.25), found, math.log(2), self.FRESH)
        assert change.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.25, 0.125])

    def test_a_token_that_was_evaluated_once_is_held(self):
        d = torch.ones(1, 3, 2, 2)
        history = self._history(d, d - 0.25)
        history.t_before = torch.full_like(history.t, -torch.inf)
        _, change = forecast_change(history, d + 1, math.log(2), self.FRESH)
        assert not change.any()

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_one_step_by_hand(self, solver):
        """For cached tokens, the state is first recomputed from their last evaluation up to now, with the
        extrapolated estimate. Then the step uses the estimate extrapolated to its middle.
        """
        d = torch.ones(1, 3, 2, 2)
        history = self._history(d, d - 0.25)
        found = torch.where(self.FRESH, d + 0.25, d)
        t, t_next = math.log(2), math.log(8)  # sigma 1/2 to 1/8, its middle in t at 1/4
        masks = self.FRESH, torch.zeros_like(self.FRESH)
        after, x = continued_step(history, 5 * d, found, (t, t_next), masks, solver)
        held_after, held = multirate_step(history, 5 * d, found, (t, t_next), masks, solver)
        state = redo_long_step(history, d + 0.25, t)
        expected = torch.where(self.FRESH, held, advance(state, d + 0.5, t_next - t))
        torch.testing.assert_close(x, expected)
        assert all(map(torch.equal, vars(after).values(), vars(held_after).values()))

    def test_the_last_step_ends_at_the_forecast(self):
        d = torch.ones(1, 3, 2, 2)
        found = torch.where(self.FRESH, d + 0.25, d)
        masks = self.FRESH, ~self.FRESH
        _, x = continued_step(
            self._history(d, d - 0.25), 5 * d, found, (math.log(2), math.inf), masks, "euler"
        )
        torch.testing.assert_close(x, d + 0.25)

    def test_a_dense_step_is_as_before(self):
        d = torch.ones(1, 3, 2, 2)
        args = self._history(d, d - 0.25), 5 * d, d + 0.25, (0.5, 0.7), (None, self.FRESH), "dpmpp_2m"
        assert torch.equal(continued_step(*args)[1], multirate_step(*args)[1])


class TestByHand:
    X = torch.full((1, 1, 1, 1), 3.0)
    D = torch.full((1, 1, 1, 1), 1.0)

    def _history(self, t=0.0, t_before=-0.5):
        at = torch.full((1, 1, 1, 1), t)
        return History(self.D, torch.zeros_like(self.D), self.X, at, torch.full_like(at, t_before))

    def test_advance_is_euler_in_sigma(self):
        """A step from sigma 1 to 1/2 is Euler's step x' = x / 2 + D / 2, here 2."""
        assert advance(self.X, self.D, math.log(2)).item() == pytest.approx(2.0)

    def test_advance_to_sigma_zero_is_the_estimate(self):
        assert advance(self.X, self.D, math.inf).item() == 1.0

    def test_adams_step(self):
        """A step from sigma 2 to 1. The previous evaluation was at sigma 3, with velocity (9 - 3) / 3 = 2."""
        at = torch.full((1, 1, 1, 1), -math.log(3.0))
        history = History(3 * self.D, self.D, 9 * self.D, at, torch.full_like(at, -math.inf))
        x = adams_step(history, self.X, self.D, -math.log(2.0), 0.0)  # its own velocity is (3 - 1) / 2 = 1
        assert x.item() == pytest.approx(3 - (1 + (1 - 2) / 2))

    def test_adams_step_without_an_evaluation_before(self):
        x = adams_step(History.empty(self.X), self.X, self.D, -math.log(2.0), 0.0)
        assert x.item() == pytest.approx(3 - 1)

    def test_the_last_adams_step_extrapolates_half_as_far(self):
        """A step from sigma 2 to 0, twice as long as the one before: the weight is 0.75, and half of it."""
        at = torch.full((1, 1, 1, 1), -math.log(3.0))
        history = History(3 * self.D, self.D, 9 * self.D, at, torch.full_like(at, -math.inf))
        x = adams_step(history, self.X, self.D, -math.log(2.0), math.inf)
        assert LAST_WEIGHT == 0.5 and x.item() == pytest.approx(3 - 2 * (1 + 0.5 * 0.75 * (1 - 2) / 2))

    def test_adams_weight(self):
        ratios = torch.tensor([0.0, 0.5, 1.0, 1.5, 3.0, math.inf, -1.0, -50.0, -math.inf, math.nan])
        expected = [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, -1.0, -2.0, -2.0, 0.0]
        assert adams_weight(ratios).tolist() == pytest.approx(expected)

    @pytest.mark.parametrize("levels", [(2, 1, 1, 1, 0.5), (2, 1.9, 2.5, 0.5), (2, 2, 3, 0.5)])
    def test_levels_that_repeat_or_rise(self, levels):
        """With D = 0 the velocity x / sigma is constant, so every schedule gives the exact result."""
        x, history = self.X, History.empty(self.X)
        for before, after in zip(levels, levels[1:], strict=False):
            times = -math.log(before), -math.log(after)
            history, x = multirate_step(history, x, torch.zeros_like(x), times, (None, None), "ab2")
        assert x.item() == pytest.approx(3 * levels[-1] / levels[0])

    def test_second_order_estimate(self):
        """D increased from 0 to 1 in a time of 0.5, so it is extrapolated to 1.5 a time of 0.25 later."""
        assert second_order_estimate(self._history(), 0.5).item() == pytest.approx(1.5)

    def test_without_a_slope_the_estimate_is_constant(self):
        assert second_order_estimate(self._history(t_before=-math.inf), 0.5).item() == 1.0

    def test_redone_step(self):
        """A step of length H = ln 2, in which D changes linearly from 1 to 2, ends at
        3/2 + 1/2 + (2 - 1) (H - 1 + 1/2) / H.
        """
        span = math.log(2)
        expected = 2.0 + (span - 0.5) / span
        assert redo_long_step(self._history(), 2 * self.D, span).item() == pytest.approx(expected)

    def test_constant_estimates_need_no_correction(self):
        span = math.log(2)
        redone = redo_long_step(self._history(), self.D, span)
        assert redone.item() == pytest.approx(advance(self.X, self.D, span).item())

    def test_history_only_advances_for_fresh_pixels(self):
        x = torch.zeros(1, 1, 1, 2)
        fresh = torch.tensor([[[[True, False]]]])
        history = History.empty(x).after(x, x + 1, 0.5, fresh).after(x, x + 2, 0.7, fresh)
        assert history.t.flatten().tolist() == pytest.approx([0.7, -math.inf])
        assert history.t_before.flatten().tolist() == pytest.approx([0.5, -math.inf])
        assert history.d.flatten().tolist() == [2.0, 0.0] and history.d_before.flatten().tolist() == [
            1.0,
            0.0,
        ]

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_all_fresh_and_none_stale_need_no_masks(self, solver):
        """None instead of a mask means that all tokens are fresh, or that none is stale. The result is
        bit-identical to that with a mask of ones or zeros.
        """
        draw = torch.Generator().manual_seed(1)
        x, d, d_before, x_before = torch.randn(4, 2, 3, 4, 4, generator=draw)
        t, t_before = torch.rand(2, 2, 1, 4, 4, generator=draw)
        history = History(d_before, x_before, x, t + 0.5, t_before)
        ones = torch.ones(2, 1, 4, 4, dtype=torch.bool)
        some = torch.rand(2, 1, 4, 4, generator=draw) > 0.5
        for fresh, stale in ((None, None), (None, some), (some, None)):
            masks = ones if fresh is None else fresh, ~ones if stale is None else stale
            expected, state = multirate_step(history, x, d, (1.6, 1.9), masks, solver)
            found, own_state = multirate_step(history, x, d, (1.6, 1.9), (fresh, stale), solver)
            assert torch.equal(state, own_state)
            assert all(
                torch.equal(a, b) for a, b in zip(vars(found).values(), vars(expected).values(), strict=True)
            )
