"""The multirate integrator on an ODE with a known solution, and with hand-computed numbers."""

import math

import pytest
import torch
from ras_pack.ras_core.method.integrator import (
    History,
    advance,
    multirate_step,
    redo_long_step,
    second_order_estimate,
)

END = 2.0
RATES = torch.tensor([0.3, -0.5, -1.2, 0.1]).view(1, 1, 2, 2).double()


def _exact(x0: torch.Tensor, t: float) -> torch.Tensor:
    """dx/dt = D - x with D = a x + 1."""
    slope = RATES - 1
    return (x0 + 1 / slope) * torch.exp(slope * t) - 1 / slope


def _times(n: int, uneven: bool) -> list[float]:
    grid = torch.linspace(0, 1, n + 1).double()
    return (END * (grid**1.5 if uneven else grid)).tolist()


def _integrate(n: int, periods: list[int], order: int, corrected: bool = True, uneven: bool = True) -> float:
    """Largest error at the end if pixel i is only evaluated at every periods[i]-th step."""
    x = x0 = torch.ones(1, 1, 2, 2).double()
    every = torch.tensor(periods).view(1, 1, 2, 2)
    history, fresh_before, d = History.empty(x), None, torch.zeros_like(x)
    times = _times(n, uneven)
    for i, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        fresh = torch.tensor(i) % every == 0
        d = torch.where(fresh, RATES * x + 1, d)
        stale = torch.zeros_like(fresh) if fresh_before is None or not corrected else ~fresh_before
        history, x = multirate_step(history, x, d, (t, t_next), (fresh, stale), order)
        fresh_before = fresh
    return float((x - _exact(x0, END)).abs().max())


class TestConvergence:
    """Halving every step divides the error by 2 to the power of the order."""

    @pytest.mark.parametrize("uneven", [False, True])
    @pytest.mark.parametrize("periods", [[1, 1, 1, 1], [1, 2, 4, 3]], ids=["fresh", "mixed"])
    @pytest.mark.parametrize("order", [1, 2])
    def test_order(self, order, periods, uneven):
        errors = [_integrate(n, periods, order, uneven=uneven) for n in (96, 192, 384)]
        observed = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
        assert observed == pytest.approx([order, order], abs=0.3)

    def test_long_steps_are_first_order_without_their_correction(self):
        errors = [_integrate(n, [2, 2, 4, 4], 2, corrected=False) for n in (96, 192)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)
        assert _integrate(96, [2, 2, 4, 4], 2) < errors[0] / 10


class TestByHand:
    X = torch.full((1, 1, 1, 1), 3.0)
    D = torch.full((1, 1, 1, 1), 1.0)

    def _history(self, t=0.0, t_before=-0.5):
        at = torch.full((1, 1, 1, 1), t)
        return History(self.D, torch.zeros_like(self.D), self.X, at, torch.full_like(at, t_before))

    def test_advance_is_euler_in_sigma(self):
        """From sigma 1 to 1/2: x' = x / 2 + D / 2 = 2."""
        assert advance(self.X, self.D, math.log(2)).item() == pytest.approx(2.0)

    def test_advance_to_sigma_zero_is_the_estimate(self):
        assert advance(self.X, self.D, math.inf).item() == 1.0

    def test_second_order_estimate(self):
        """D increased from 0 to 1 in half a unit, so it is 1.5 a quarter of a unit later."""
        assert second_order_estimate(self._history(), 0.5).item() == pytest.approx(1.5)

    def test_without_a_slope_the_estimate_is_constant(self):
        assert second_order_estimate(self._history(t_before=-math.inf), 0.5).item() == 1.0

    def test_redone_step(self):
        """H = ln 2, D from 1 to 2: 3/2 + 1/2 + (2 - 1) (H - 1 + 1/2) / H."""
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

    @pytest.mark.parametrize("order", [1, 2])
    def test_all_fresh_and_none_stale_need_no_masks(self, order):
        """Bit-identical to masks of ones and zeros."""
        draw = torch.Generator().manual_seed(1)
        x, d, d_before, x_before = torch.randn(4, 2, 3, 4, 4, generator=draw)
        t, t_before = torch.rand(2, 2, 1, 4, 4, generator=draw)
        history = History(d_before, x_before, x, t + 0.5, t_before)
        ones = torch.ones(2, 1, 4, 4, dtype=torch.bool)
        some = torch.rand(2, 1, 4, 4, generator=draw) > 0.5
        for fresh, stale in ((None, None), (None, some), (some, None)):
            masks = ones if fresh is None else fresh, ~ones if stale is None else stale
            expected, state = multirate_step(history, x, d, (1.6, 1.9), masks, order)
            found, own_state = multirate_step(history, x, d, (1.6, 1.9), (fresh, stale), order)
            assert torch.equal(state, own_state)
            assert all(
                torch.equal(a, b) for a, b in zip(vars(found).values(), vars(expected).values(), strict=True)
            )
