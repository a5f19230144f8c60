"""No token stays cached for longer than the bound, whatever the scores are, and equal scores select no part
of the image before another.
"""

import math

import pytest
import torch
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.method.preferences import Preferences
from ras_pack.ras_core.method.selector import ChangeSelector, selector_for
from ras_pack.ras_core.method.waiting import PATIENCE, Waiting, spread_order

GRID = TokenGrid((16, 12), (2, 2))  # 8 x 6 tokens
METHODS = {
    "multirate": None,
    "std": PaperSettings(),
    "l2norm": PaperSettings(metric="l2norm", high_ratio=0.0),
    "both ends": PaperSettings(high_ratio=0.5),
    "random": PaperSettings(metric="random"),
    "no starvation term": PaperSettings(starvation_scale=0.0),
    "reference": PaperSettings(starvation="reference"),
}


def _ramp(step: int, before: torch.Tensor) -> torch.Tensor:
    """The first tokens always have the highest score, by any metric or rate."""
    falling = torch.linspace(100.0, 0.001, 192).view(1, 1, 16, 12)
    return falling * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1) * step


def _against(step: int, before: torch.Tensor) -> torch.Tensor:
    """A token changes the more, the more often it has changed."""
    return before * 1.5 + torch.linspace(1.0, 1e-6, 192).view(1, 1, 16, 12)


def _with(value: float):
    def scores(step: int, before: torch.Tensor) -> torch.Tensor:
        found = torch.randn(1, 2, 16, 12, generator=torch.Generator().manual_seed(step))
        found[:, :, :4] = value  # two rows of tokens
        return found

    return scores


SCORES = {
    "equal": lambda step, before: torch.zeros(1, 2, 16, 12),
    "always the first": _ramp,
    "adversary": _against,
    "NaN": lambda step, before: torch.full((1, 2, 16, 12), torch.nan),
    "some NaN": _with(torch.nan),
    "some infinite": _with(torch.inf),
    "some still": _with(0.0),
}


def bound(share: float) -> int:
    return math.ceil(PATIENCE / share) + math.ceil(1 / share) - 1


def selected(selector, scores, count, steps):
    """The active tokens of each regional step; the first two steps are dense. Returns (steps, n) bool."""
    estimate, active, found = torch.zeros(1, 2, 16, 12), None, []
    for step in range(steps + 2):
        fresh = scores(step, estimate)
        if active is not None:
            fresh = torch.where(GRID.active_pixels(active), fresh, estimate)
        estimate = fresh
        sigma = 1.0 - step / (steps + 2)
        selector.observe(torch.zeros_like(estimate), estimate, sigma, active)
        active = selector.select(count, sigma - 1 / (steps + 2)) if step else None
        if active is not None:
            assert active.shape == (1, count) and active[0].tolist() == sorted(set(active[0].tolist()))
            found.append(GRID.active_mask(active)[0])
    return torch.stack(found[:steps])


def longest(active: torch.Tensor) -> int:
    """The largest number of steps in a row in which any token was cached."""
    absent, found = torch.zeros(active.shape[1], dtype=torch.int64), 0
    for step in active:
        absent = torch.where(step, 0, absent + 1)
        found = max(found, int(absent.max()))
    return found


def _selector(name, priority=None):
    config = RASConfig(paper=METHODS[name])
    return selector_for(config, GRID, torch.Generator().manual_seed(0), Preferences.of(GRID, priority))


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("method", METHODS)
def test_no_token_waits_longer_than_the_bound(method, scores):
    most = bound(0.5)
    assert longest(selected(_selector(method), SCORES[scores], 24, 3 * most)) <= most


@pytest.mark.parametrize("method", ["multirate", "no starvation term"])
@pytest.mark.parametrize("count", [3, 7, 43])
def test_the_bound_holds_at_any_share(count, method):
    most = bound(count / 48)
    active = selected(_selector(method), SCORES["always the first"], count, 2 * most)
    assert longest(active) <= most


@pytest.mark.parametrize("method", ["multirate", "both ends"])
def test_a_favoured_region_does_not_starve_the_rest(method):
    mask = torch.zeros(1, 16, 12)
    mask[:, :8] = 1.0
    active = selected(_selector(method, mask), SCORES["always the first"], 24, 3 * bound(0.5))
    assert longest(active) <= bound(0.5)


@pytest.mark.parametrize("count", [6, 16, 24])
def test_equal_scores_take_turns_and_are_spread(count):
    """Every token is computed once in each 48 / count steps, and each step's tokens are in all four quarters
    of the image.
    """
    active = selected(_selector("multirate"), SCORES["equal"], count, 24)
    turn = 48 // count
    assert (active[:turn].sum(0) == 1).all() and longest(active) == turn - 1
    quarters = active.view(24, 2, 4, 2, 3).sum((2, 4)).flatten(1)
    assert int(quarters.min()) >= count // 8


def test_usual_scores_decide_alone():
    """With scores that differ, the tokens with the highest ones are selected until one is overdue."""
    selector, generator = ChangeSelector(GRID), torch.Generator().manual_seed(1)
    for step in range(20):
        denoised = torch.randn(2, 2, 16, 12, generator=generator)
        active = selector.select(12, 1.0 - step / 20)
        if active is not None:
            assert step >= 18 or torch.equal(active, selector.score.topk(12).indices.sort().values)
        selector.observe(denoised, denoised, 1.0 - step / 20, active)


def test_only_what_was_computed_counts():
    """Tokens that were selected for a step that nothing computed are selected again."""
    selector = _selector("std")
    still = torch.zeros(1, 2, 16, 12)
    selector.observe(still, still, 1.0, None)
    planned = selector.select(12, 0.9)
    assert torch.equal(selector.select(12, 0.8), planned)
    selector.observe(still, still, 0.8, planned)
    selector.observe(still, still, 0.75, planned)  # a second evaluation of the same step
    assert selector._drop_count.sum() == 36
    assert not set(selector.select(12, 0.7)[0].tolist()) & set(planned[0].tolist())


def test_a_dense_step_ends_all_waits():
    waiting, first = Waiting((4, 4)), torch.arange(4)[None]
    for _ in range(4 * PATIENCE):
        waiting.count(first)
    assert waiting.admit(first)[0].tolist() != [0, 1, 2, 3]
    waiting.count(None)
    assert waiting.admit(first) is first


@pytest.mark.parametrize("shape", [(7,), (1, 1), (5, 9), (64, 64), (3, 4, 5)])
def test_the_order_for_equal_scores_has_every_token_once(shape):
    assert spread_order(shape).sort().values.tolist() == list(range(math.prod(shape)))
