"""Selects the active tokens of a step from the guided results of earlier steps, by the paper's rule or by
predicted change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..config import PaperSettings, RASConfig
from .grid import TokenGrid
from .metric import region_metric
from .preferences import Preferences
from .selection import count_drops, select_active
from .waiting import Waiting, first

SMALLEST_STEP = 1e-6  # in sigma; evaluations closer than this give no rate


class Selector(ABC):
    """Observes the guided results of a run and selects active tokens, separately for each image of the batch.

    No token stays cached for longer than `waiting` allows, and equal scores select no part of the image
    before another.

    Attributes:
        score: (b, n) float32, each token's score, computed when the last result was observed or the last
            selection was made, whichever was later; None before the first result.
    """

    score: Tensor | None = None

    def __init__(self, grid: TokenGrid, preferences: Preferences):
        self._grid, self._preferences = grid, preferences
        self._waiting = Waiting(grid.shape)
        self._counted: Tensor | None = None  # the active tokens of the last step that was counted

    def observe(self, x: Tensor, denoised: Tensor, sigma: float, active_idx: Tensor | None) -> None:
        """Update the state with the result of a guided evaluation in which the network ran.

        Args:
            x, denoised: (b, c, *size) input, and denoised estimate in which cached tokens have their old
                values.
            sigma: noise level.
            active_idx: (b, n_active) indices of the tokens that were evaluated; None if all were. All
                evaluations of one step pass the same object.
        """
        if active_idx is None or active_idx is not self._counted:
            self._counted = active_idx
            self._count(active_idx)
        self._update(x, denoised, sigma, active_idx)

    def select(self, active_count: int, sigma: float) -> Tensor | None:
        """Active tokens of the step at `sigma`: (b, active_count) int64, sorted; None before any result."""
        if self.score is None:
            return None
        order = self._waiting.order(self.score.device)
        return self._waiting.admit(self._choose(active_count, sigma, order))

    def _count(self, active_idx: Tensor | None) -> None:
        """Count a step that has computed these tokens; None for all."""
        self._waiting.count(active_idx)

    @abstractmethod
    def _update(self, x: Tensor, denoised: Tensor, sigma: float, active_idx: Tensor | None) -> None:
        """As `observe`, except for the counts of steps."""

    @abstractmethod
    def _choose(self, active_count: int, sigma: float, order: Tensor) -> Tensor:
        """As `select`, by score alone; tokens with equal scores come in this order, (n,)."""


class PaperSelector(Selector):
    """Selects by equation 1: each token's region metric (method/metric.py) in the last guided result,
    weighted by how often the token was cached.
    """

    def __init__(
        self, settings: PaperSettings, grid: TokenGrid, generator: torch.Generator, preferences: Preferences
    ):
        super().__init__(grid, preferences)
        self._settings, self._generator = settings, generator
        self._drop_count: Tensor | None = None

    def _update(self, x: Tensor, denoised: Tensor, sigma: float, active_idx: Tensor | None) -> None:
        noise = (x.float() - denoised.float()) / max(sigma, 1e-8)
        self.score = region_metric(noise, self._settings.metric, self._grid, self._generator)

    def _choose(self, active_count: int, sigma: float, order: Tensor) -> Tensor:
        drops = self._drops()[:, order]
        favoured = self._preferences.in_order(order)
        metric = finite(self.score)[:, order]
        return order[select_active(metric, drops, active_count, self._settings, favoured)].sort(dim=1).values

    def _count(self, active_idx: Tensor | None) -> None:
        super()._count(active_idx)
        if active_idx is not None:
            self._drop_count = count_drops(self._drops(), active_idx)

    def _drops(self) -> Tensor:
        """How often each token has been cached so far: (b, n) int32."""
        if self._drop_count is None:
            self._drop_count = torch.zeros_like(self.score, dtype=torch.int32)
        return self._drop_count


class ChangeSelector(Selector):
    """Selects the tokens whose estimate has probably changed most, by sqrt(rate) times staleness.

    rate: by how much the token's denoised estimate changed between the token's last two evaluations, divided
        by the difference in sigma; then averaged over the token and its neighbours (3 x 3 tokens of a plane).
    staleness: how far sigma has fallen since the token's last evaluation.

    Rate times staleness predicts the error of a cached estimate, i.e. the local error of the long step that a
    cached token takes. The square root of the rate is used instead of the rate, for two reasons: slowly
    changing tokens do not wait too long, and measured quality is higher. This differs from the paper's rule,
    which gave worse results than a random selection on a trained model.
    """

    def __init__(self, grid: TokenGrid, preferences: Preferences | None = None):
        super().__init__(grid, preferences or Preferences())
        self._estimate: Tensor | None = None  # (b, c, *size) each token's last estimate
        self._sigma: Tensor | None = None  # (b, n) sigma of each token's last estimate
        self._rate: Tensor | None = None  # (b, n)
        self._sqrt_rate: Tensor | None = None  # (b, n) square root of the smoothed rate

    def _update(self, x: Tensor, denoised: Tensor, sigma: float, active_idx: Tensor | None) -> None:
        denoised = denoised.float()
        if self._estimate is None:
            self._estimate = denoised.clone()
            self._sigma = torch.full((denoised.shape[0], self._grid.n), sigma, device=denoised.device)
            self._rate = torch.zeros_like(self._sigma)
            return
        travelled = (self._sigma - sigma).abs()
        moved = self._grid.pool((denoised - self._estimate).square_().sum(dim=1)).sqrt()
        fresh = travelled > SMALLEST_STEP
        if active_idx is not None:
            fresh &= self._grid.active_mask(active_idx)
        self._rate = torch.where(fresh, moved.div_(travelled.clamp_min_(SMALLEST_STEP)), self._rate)
        self._sigma = self._sigma.masked_fill(fresh, sigma)
        self._estimate = denoised.clone()  # for cached tokens, these are their old estimates
        self._sqrt_rate = self._grid.smooth(self._rate).sqrt()
        self.score = self._need(sigma)

    def _choose(self, active_count: int, sigma: float, order: Tensor) -> Tensor:
        self.score = self._need(sigma)
        score = self.score if self._preferences.priority is None else self.score * self._preferences.weight
        return first(finite(score), active_count, order)

    def _need(self, sigma: float) -> Tensor:
        """Score at `sigma`: (b, n).

        Only the rate is smoothed, because only the rate is noisy. If staleness were averaged too, a fresh
        token among stale tokens would get as high a score as they have. The fresh token could then be
        selected again and again, and its stale neighbours never.
        """
        return (self._sigma - sigma).abs_().mul_(self._sqrt_rate)


def finite(score: Tensor) -> Tensor:
    """Scores in which NaN counts as 0 and an infinite score as the largest or smallest number."""
    return score.nan_to_num(nan=0.0)


def selector_for(
    config: RASConfig, grid: TokenGrid, generator: torch.Generator, preferences: Preferences
) -> Selector:
    """The selector of a run."""
    if config.paper is None:
        return ChangeSelector(grid, preferences)
    return PaperSelector(config.paper, grid, generator, preferences)
