"""Sets a limit to the number of steps in a row in which a token may stay cached, whatever its scores are.

A token's wait is measured in tokens: it is the number of all tokens that regional steps have computed since
this token itself was computed last. A token is overdue if its wait is at least `PATIENCE` times the number of
tokens of the image. Overdue tokens are selected before all other tokens, those with the longest wait first.
So every overdue token is computed before the regional steps have computed as many more tokens as the image
has. If all regional steps compute the same share of the tokens, a token therefore stays cached in at most

    ceil(PATIENCE / share) + ceil(1 / share) - 1

steps in a row. These are 9 steps at a share of 0.5, and 39 steps at a share of 0.125. Steps in which no
network ran are not counted.
"""

from __future__ import annotations

import torch
from torch import Tensor

PATIENCE = 4
"""A cached token is overdue once regional steps have computed this many times the image's number of tokens.
In runs of the demo models whose regional steps computed 12.5 to 71 % of the tokens, the multirate scores
alone selected every token again before its wait was twice the image's number of tokens. With the paper's
scores, up to 1 % of the tokens waited for longer than four times that number."""

STRIDES = {1: (0.6180,), 2: (0.7549, 0.5698), 3: (0.8192, 0.6711, 0.5497)}
"""For each number of axes of the token grid, the strides of the R sequence (Roberts 2018) along these axes.
The multiples of the strides, modulo 1, are spread evenly over the interval from 0 to 1."""

LONGER = 2**40
"""A number that is larger than any token's wait."""


class Waiting:
    """Counts the waits of one run's tokens, and orders tokens that have equal scores.

    Args:
        shape: number of tokens along each axis of the token grid.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._order = spread_order(shape)
        self._n = len(self._order)
        self._total = 0  # number of tokens that the regional steps so far have computed
        self._dense_at = 0  # value of `_total` when all tokens were computed last
        # Value of `_total` when each token was computed last, (b, n); None if it is `_dense_at` for all
        # tokens.
        self._computed_at: Tensor | None = None

    def count(self, active_idx: Tensor | None) -> None:
        """Count a step that has computed the tokens `active_idx`, (b, n_active); None if it has computed all
        tokens.
        """
        if active_idx is None:
            self._dense_at, self._computed_at = self._total, None
            return
        if self._computed_at is None:
            shape = (active_idx.shape[0], self._n)
            self._computed_at = torch.full(shape, self._dense_at, dtype=torch.int64, device=active_idx.device)
        self._total += active_idx.shape[1]
        self._computed_at = self._computed_at.scatter(1, active_idx, self._total)

    def order(self, device: torch.device) -> Tensor:
        """The indices of all tokens, (n,) int64. Tokens with equal scores are selected in this order.

        The first tokens of this order are spread over the whole grid. The order is rotated by the number of
        tokens that regional steps have computed so far. So if all scores are equal, each step selects the
        tokens that follow those of the step before.
        """
        self._order = self._order.to(device)
        return self._order.roll(-self._total)

    def admit(self, active_idx: Tensor) -> Tensor:
        """Put overdue tokens into a selection, in place of the selected tokens with the shortest waits.

        Args:
            active_idx: indices of the selected tokens, (b, n_active) int64.

        Returns:
            The new selection, (b, n_active) int64, sorted; `active_idx` itself if no token can be overdue.
        """
        limit = PATIENCE * self._n
        if self._computed_at is None or self._total - self._dense_at < limit:
            return active_idx
        wait = self._total - self._computed_at
        selected = torch.zeros_like(wait).scatter_(1, active_idx, 1)
        rank = torch.where(wait >= limit, LONGER + 2 * wait + selected, wait + selected * (LONGER // 2))
        return first(rank, active_idx.shape[1], self.order(rank.device))


def first(rank: Tensor, count: int, order: Tensor) -> Tensor:
    """The indices of the `count` tokens with the highest ranks.

    Args:
        rank: one number for each token, (b, n).
        count: how many tokens to return for each image.
        order: the indices of all tokens, (n,). Of tokens with equal ranks, those that come first in this
            order are returned.

    Returns:
        (b, count) int64, sorted.
    """
    ranked = rank[:, order].argsort(dim=1, descending=True, stable=True)
    return order[ranked[:, :count]].sort(dim=1).values


def spread_order(shape: tuple[int, ...]) -> Tensor:
    """The indices of all tokens of a grid, (n,) int64, in an order in which the first tokens are spread over
    the whole grid, however many of them are taken.
    """
    places = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    phase = sum(place * stride for place, stride in zip(places, STRIDES[len(shape)], strict=True))
    return phase.frac().flatten().argsort(stable=True)
