"""Bounds how long a token may stay cached, whatever its scores are.

A token's wait is the number of tokens that regional steps have computed since the token's own last
evaluation. A token that has waited for `PATIENCE` whole images is overdue. Overdue tokens are selected before
all others, the longest wait first, so all of them are computed within one more image. In regional steps that
compute the same share of the tokens, a token therefore stays cached in at most

    ceil(PATIENCE / share) + ceil(1 / share) - 1

steps in a row: 9 at a share of 0.5, 39 at 0.125. A step in which no network ran does not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

PATIENCE = 4
"""How many whole images of tokens may be computed before a cached token is overdue. In runs of the demo
models with 12.5 to 71 % of the tokens in a regional step, the multirate scores alone brought every token back
within two images; the paper's rule let up to 1 % of the tokens wait for longer than four."""

STRIDES = {1: (0.6180,), 2: (0.7549, 0.5698), 3: (0.8192, 0.6711, 0.5497)}
"""By number of axes: strides of the R sequence (Roberts 2018), whose multiples modulo 1 are spread evenly."""

LONGER = 2**40
"""More than any wait."""


class Waiting:
    """The waits of one run's tokens, and an order of tokens for equal scores.

    Args:
        shape: the token grid, tokens along each axis.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._order = spread_order(shape)
        self._n = len(self._order)
        self._total = 0  # tokens that regional steps have computed
        self._dense_at = 0  # the same, at the last evaluation of all tokens
        self._computed_at: Tensor | None = None  # (b, n), at each token's last evaluation; None: `_dense_at`

    def count(self, active_idx: Tensor | None) -> None:
        """Count a step that has computed these tokens, (b, n_active); None for all."""
        if active_idx is None:
            self._dense_at, self._computed_at = self._total, None
            return
        if self._computed_at is None:
            shape = (active_idx.shape[0], self._n)
            self._computed_at = torch.full(shape, self._dense_at, dtype=torch.int64, device=active_idx.device)
        self._total += active_idx.shape[1]
        self._computed_at = self._computed_at.scatter(1, active_idx, self._total)

    def order(self, device: torch.device) -> Tensor:
        """All tokens, (n,) int64, in the order in which those with equal scores are selected.

        The first tokens of this order are spread over the whole grid. It is rotated by the number of tokens
        computed so far: if all scores are equal, each step selects the tokens after those of the step before.
        """
        self._order = self._order.to(device)
        return self._order.roll(-self._total)

    def admit(self, active_idx: Tensor) -> Tensor:
        """Selected tokens, with overdue tokens in place of those that were computed most recently.

        Args:
            active_idx: (b, n_active) int64.

        Returns:
            (b, n_active) int64, sorted; `active_idx` itself if no token can be overdue.
        """
        limit = PATIENCE * self._n
        if self._computed_at is None or self._total - self._dense_at < limit:
            return active_idx
        wait = self._total - self._computed_at
        selected = torch.zeros_like(wait).scatter_(1, active_idx, 1)
        rank = torch.where(wait >= limit, LONGER + 2 * wait + selected, wait + selected * (LONGER // 2))
        return first(rank, active_idx.shape[1], self.order(rank.device))


def first(rank: Tensor, count: int, order: Tensor) -> Tensor:
    """The tokens with the highest ranks.

    Args:
        rank: (b, n).
        count: number of tokens.
        order: (n,), decides between equal ranks.

    Returns:
        (b, count) int64, sorted.
    """
    ranked = rank[:, order].argsort(dim=1, descending=True, stable=True)
    return order[ranked[:, :count]].sort(dim=1).values


def spread_order(shape: tuple[int, ...]) -> Tensor:
    """All tokens of a grid, (n,) int64, in an order whose first tokens are spread over the whole grid."""
    places = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    phase = sum(place * stride for place, stride in zip(places, STRIDES[len(shape)], strict=True))
    return phase.frac().flatten().argsort(stable=True)
