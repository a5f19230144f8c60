"""Token selection by predicted change, compared with hand-computed numbers."""

import pytest
import torch
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.method.selector import ChangeSelector


def _estimates(values: list[float]) -> torch.Tensor:
    """A latent (1, 1, 2, 2 n) of n tokens in a row; every pixel of token i has the value `values[i]`."""
    row = torch.tensor(values).repeat_interleave(2)
    return row.expand(1, 1, 2, -1).clone()


def _selector(n: int) -> ChangeSelector:
    return ChangeSelector(TokenGrid((2, 2 * n), (2, 2)))


def _observe(selector, values, sigma, active=None):
    denoised = _estimates(values)
    active_idx = None if active is None else torch.tensor([active])
    selector.observe(torch.zeros_like(denoised), denoised, sigma, active_idx)


class TestChange:
    def test_there_is_no_score_before_two_results(self):
        selector = _selector(3)
        assert selector.select(1, 1.0) is None
        _observe(selector, [0, 0, 0], 1.0)
        assert selector.select(1, 0.9) is None

    def test_rate_times_staleness(self):
        """From sigma 1.0 to 0.8, tokens 0 and 7 change by 1 and 2, so their rates are 5 and 10. Only token 7
        is evaluated at sigma 0.6; it has not changed there, so its rate becomes 0. At sigma 0.5 the last
        evaluation of token 0 is 0.3 ago (in sigma), that of token 7 is 0.1 ago.
        """
        selector = _selector(8)
        zeros = [0.0] * 8
        _observe(selector, zeros, 1.0)
        _observe(selector, [1.0, *zeros[1:7], 2.0], 0.8)
        assert selector._rate[0, [0, 7]].tolist() == pytest.approx([5.0, 10.0])
        _observe(selector, [1.0, *zeros[1:7], 2.0], 0.6, active=[7])
        assert selector._rate[0, [0, 7]].tolist() == pytest.approx([5.0, 0.0])
        assert selector.select(1, 0.5).tolist() == [[0]]
        # a corner token has one neighbour here: the root of rate (5 + 0) / 2, times 0.3
        assert selector.score[0, 0].item() == pytest.approx(2.5**0.5 * 0.3)

    def test_smoothing_at_the_border_uses_the_existing_neighbours(self):
        selector = _selector(3)
        _observe(selector, [0, 0, 0], 1.0)
        _observe(selector, [0.0, 0.0, 6.0], 0.5)
        selector.select(1, -0.5)
        # Token 2's rate is 6 / 0.5 = 12; its mean over 3 tokens (at token 1) is 4, over 2 (at token 2) 6.
        # The scores are the roots of these, times a staleness of 1.
        assert selector.score[0].tolist() == pytest.approx([0.0, 2.0, 6**0.5])

    def test_a_fresh_token_does_not_inherit_the_staleness_of_its_neighbours(self):
        """All three tokens change at the rate 4. Only token 1 was evaluated at sigma 0.5, so it ranks below
        the other tokens until its own value is old too.
        """
        selector = _selector(3)
        _observe(selector, [0, 0, 0], 1.0)
        _observe(selector, [1.6, 1.6, 1.6], 0.6)
        _observe(selector, [1.6, 2.0, 1.6], 0.5, active=[1])
        assert selector.select(2, 0.4).tolist() == [[0, 2]]
        assert selector.score[0].tolist() == pytest.approx([0.4, 0.2, 0.4])

    def test_every_token_returns_in_a_long_run_without_resets(self):
        """Four of 16 tokens are active in each step, so a token is computed every four steps on average. The
        slowest token changes at a quarter of the fastest one's rate. Still, none waits for more than 16
        steps.
        """
        selector = ChangeSelector(TokenGrid((8, 8), (2, 2)))
        rates = (1.0 + torch.arange(16) % 4).view(1, 1, 4, 4)
        absent, longest, active = torch.zeros(16), 0, None
        for step in range(100):
            sigma = 1.0 - step / 100
            denoised = (rates * (1.0 - sigma)).repeat_interleave(2, 2).repeat_interleave(2, 3)
            selector.observe(torch.zeros_like(denoised), denoised, sigma, active)
            active = selector.select(4, sigma - 0.01)
            absent += 1
            if active is None:
                continue
            absent[active[0]] = 0
            longest = max(longest, int(absent.max()))
        assert longest <= 16

    def test_a_second_evaluation_at_the_same_sigma_gives_no_rate(self):
        selector = _selector(2)
        _observe(selector, [0, 0], 1.0)
        _observe(selector, [1, 0], 0.5)
        _observe(selector, [7, 7], 0.5)
        assert selector._rate[0].tolist() == pytest.approx([2.0, 0.0])

    def test_over_time(self):
        """A latent has two frames of 1 x 3 tokens, and only the last token of the second frame changes. The
        rates of this frame are 0, 0, 12; averaged over neighbours they are 0, 4, 6. So the frame's middle
        token ranks second, and the first frame has the score zero.
        """
        selector = ChangeSelector(TokenGrid((2, 1, 3), (1, 1, 1)))
        still, moved = torch.zeros(1, 4, 2, 1, 3), torch.zeros(1, 4, 2, 1, 3)
        moved[0, :, 1, 0, 2] = 3.0  # four channels: a distance of 6 in a sigma of 0.5
        selector.observe(still, still, 1.0, None)
        selector.observe(still, moved, 0.5, None)
        assert selector.select(2, -0.5).tolist() == [[4, 5]]
        assert selector.score[0].tolist() == pytest.approx([0, 0, 0, 0, 2, 6**0.5])
        selector.observe(still, moved, 0.4, torch.tensor([[4, 5]]))  # neither changes now
        assert selector._sigma[0].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.4, 0.4])

    def test_selected_tokens_are_sorted_and_counted(self):
        selector = _selector(8)
        _observe(selector, [0.0] * 8, 1.0)
        _observe(selector, [8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0], 0.5)
        active = selector.select(5, 0.4)
        assert active.shape == (1, 5) and active[0].tolist() == sorted(set(active[0].tolist()))
