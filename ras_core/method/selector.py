"""From the guided results of a run to the active tokens of its next step, by the paper's or our rule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..config import RASConfig
from .grid import TokenGrid
from .metric import region_metric
from .preferences import Preferences
from .selection import count_drops, select_active

SMALLEST_STEP = 1e-6  # in sigma; a second evaluation at the same noise level tells nothing about a rate


class Selector(ABC):
    """Watches guided results and picks active tokens, for each image of the batch.

    Attributes:
        score: (b, n) float32, what the last choice or the next one is based on; None before the first result.
    """

    score: Tensor | None = None

    def __init__(self, grid: TokenGrid, preferences: Preferences):
        self._grid, self._preferences = grid, preferences

    @abstractmethod
    def observe(self, x: Tensor, denoised: Tensor, sigma: float, active_idx: Tensor | None) -> None:
        """A guided evaluation ended.

        Args:
            x, denoised: (b, c, *size) input and merged estimate.
            sigma: noise level.
            active_idx: (b, n_active) tokens that were really evaluated; None for all.
        """

    @abstractmethod
    def select(self, active_count: int, sigma: float) -> Tensor | None:
        """Tokens for the step at `sigma`: (b, n_active) int64 sorted; None when nothing was observed yet.

        n_active is `active_count`, or less where an inpaint mask leaves fewer tokens worth computing.
        """

    def demand(self, sigma: float, sigma_next: float) -> Tensor | None:
        """How much is about to change between two noise levels: one number on the device; None if unknown."""
        return None


class PaperSelector(Selector):
    """Equation 1: metric of the last output, weighted by how often a token was dropped."""

    def __init__(
        self, config: RASConfig, grid: TokenGrid, generator: torch.Generator, preferences: Preferences
    ):
        super().__init__(grid, preferences)
        self._config, self._generator = config, generator
        self._drop_count: Tensor | None = None

    def observe(self, x: Tensor, denoised: Tensor, sigma: float, active_idx: Tensor | None) -> None:
        noise = (x.float() - denoised.float()) / max(sigma, 1e-8)
        self.score = region_metric(noise, self._config.metric, self._grid, self._generator)

    def select(self, active_count: int, sigma: float) -> Tensor | None:
        if self.score is None:
            return None
        if self._drop_count is None:
            self._drop_count = torch.zeros_like(self.score, dtype=torch.int32)
        count = self._preferences.limit(active_count)
        active = select_active(self.score, self._drop_count, count, self._config, self._preferences)
        self._drop_count = count_drops(self._drop_count, active)
        return active


class ChangeSelector(Selector):
    """The tokens whose estimate has most likely moved: square root of the rate, times staleness.

    rate       change of the token's denoised estimate between its last two evaluations, over the sigma
               between them, averaged over 3 x 3 tokens along h and w;
    staleness  sigma travelled since its last evaluation.

    Rate times staleness predicts how far the cached estimate is off, which is the local error of the long
    step that a cached token takes. The rate's square root keeps quiet tokens from waiting too long, and the
    measured quality was higher with it. This is not the paper's rule: on a trained model that rule lost to
    random tokens.
    """

    def __init__(self, grid: TokenGrid, preferences: Preferences | None = None):
        super().__init__(grid, preferences or Preferences())
        self._estimate: Tensor | None = None  # (b, c, *size) each token's last own estimate
        self._sigma: Tensor | None = None  # (b, n) noise level of that evaluation
        self._rate: Tensor | None = None  # (b, n)
        self._urge: Tensor | None = None  # (b, n) square root of the smoothed rate

    def observe(self, x: Tensor, denoised: Tensor, sigma: float, active_idx: Tensor | None) -> None:
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
        self._estimate = denoised.clone()  # cached tokens carry their old estimate in the merged result
        self._urge = self._grid.smooth(self._rate).sqrt()
        self.score = self._need(sigma)

    def select(self, active_count: int, sigma: float) -> Tensor | None:
        if self.score is None:
            return None
        self.score = self._need(sigma)
        score = self.score if self._preferences.priority is None else self.score * self._preferences.weight
        worth = self._preferences.without_waste(score, last=-1.0)
        order = worth.argsort(dim=1, descending=True, stable=True)
        chosen = order[:, : self._preferences.limit(active_count)]
        return chosen.sort(dim=1).values

    def demand(self, sigma: float, sigma_next: float) -> Tensor | None:
        """Mean over tokens and images of the root of the change that is predicted for the step."""
        if self.score is None:
            return None
        return self._urge.mean() * math.sqrt(max(sigma - sigma_next, 0.0))

    def _need(self, sigma: float) -> Tensor:
        """Need for an evaluation at `sigma`, (b, n); border tokens average over the neighbours that exist.

        Only the rate is a noisy measurement. A token's staleness is its own: averaged with it, a fresh token
        among stale ones scores as high as they do, is picked again and again, and its neighbours never.
        """
        return (self._sigma - sigma).abs_().mul_(self._urge)


def selector_for(
    config: RASConfig, grid: TokenGrid, generator: torch.Generator, preferences: Preferences
) -> Selector:
    """The selector of a run."""
    if config.method == "multirate":
        return ChangeSelector(grid, preferences)
    return PaperSelector(config, grid, generator, preferences)
