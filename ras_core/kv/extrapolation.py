"""Determines how far cached rows are extrapolated, by the formula in kv/forecast.py.

`Times` tracks when each token was evaluated. `Extrapolation` compares forecasts with fresh rows and scales
them accordingly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rows import Pair, RowIndex
from .plain import KVRows
from .triton_launch import RowKernels

SAMPLE = 128
"""Approximate number of fresh rows that forecasts are compared with."""

JUDGED_EVERY = 2
"""Interval, in attentions, at which forecasts are compared with fresh rows."""

FARTHEST = 8.0
"""Upper bound of a row's forecast change, in multiples of its last change."""

TIMES = (-1, 0)
"""The slot of a call's `Times`, which precedes the slots of the attentions."""


@dataclass
class Times(KVRows):
    """When each token was evaluated.

    `tensors` has two tensors, (bb, n) float32 each: the noise level at each token's last evaluation, and how
    far the noise level fell between its last two evaluations (0 if there was only one).
    """

    format_name: ClassVar[str] = "forecast"

    @classmethod
    def start(cls, sigma: Tensor, n_tokens: int) -> Times:
        """The state before the first evaluation; sigma, (bb,), is its noise level."""
        last = sigma.new_full((sigma.shape[0], n_tokens), torch.inf, dtype=torch.float32)
        return cls((last, torch.zeros_like(last)), 0, 0)

    def update_all(self, sigma: Tensor) -> None:
        """Update the state for a dense call at sigma, (bb,), which evaluates all tokens."""
        last, span = self.tensors
        now = sigma.float()[:, None]
        span.copy_(_fallen(last, now))
        last.copy_(now.expand_as(last))

    def update_active(self, sigma: Tensor, active_idx: Tensor) -> tuple[Tensor, Tensor]:
        """Update the state for a regional call at sigma, (bb,), which evaluates the tokens of `active_idx`,
        (bb, n_active).

        Returns:
            Forecast changes, in multiples of the last change: of all tokens after this call, (bb, n), 0 for
            active ones; and of the active tokens as if they had not been evaluated, (bb, n_active).
        """
        last, span = self.tensors
        now = sigma.float()[:, None].expand(active_idx.shape)
        elapsed, before = _fallen(last.gather(1, active_idx), now), span.gather(1, active_idx)
        span.scatter_(1, active_idx, elapsed)
        last.scatter_(1, active_idx, now)
        return _weight(_fallen(last, now[:, :1]), span), _weight(elapsed, before)

    def forget(self) -> None:
        self.tensors[0].fill_(torch.inf)
        self.tensors[1].zero_()


class Extrapolation:
    """Computes how far the rows of one call are extrapolated.

    Text and padding rows are always fresh. In some of the attentions, forecasts are compared with fresh rows;
    the resulting gain also applies to the attentions that follow, up to the next comparison.

    Args:
        weight, before: as returned by `Times.update_active`.
        prefix, suffix: rows of text before and of padding after the image rows.

    Attributes:
        weights: (2, bb, prefix + n + suffix), of keys and of values: 0 gives the row of the evaluation before
            the last, 1 that of the last evaluation; above 1 the row is extrapolated.
    """

    weights: Tensor

    def __init__(self, weight: Tensor, before: Tensor, prefix: int, suffix: int):
        self._weight = F.pad(weight, (prefix, suffix))
        self._stride = max(1, before.shape[1] // SAMPLE)
        self._trial = F.pad(before, (prefix, suffix))[:, :: self._stride].contiguous()
        self._attentions = 0
        self._sample: Tensor | None = None  # indices of the rows that are compared
        self._views: dict[tuple[int, int], Tensor] = {}  # of `weights`, by `which` and number of axes

    def weights_like(self, which: int, rows: Tensor) -> Tensor:
        """`weights` of keys (0) or values (1), viewed with as many axes as `rows`, (bb, r, ...)."""
        if (view := self._views.get((which, rows.ndim))) is None:
            weight = self.weights[which]
            view = self._views[which, rows.ndim] = weight.view(*weight.shape, *[1] * (rows.ndim - 2))
        return view

    def judge(
        self, halves: tuple[Pair, Pair], fresh: Pair, index: RowIndex, kernels: RowKernels | None = None
    ) -> None:
        """Set `weights` by comparing forecasts with the fresh rows of one attention, if a comparison is due.

        Args:
            halves: key and value of all rows, (bb, r, ...) each, from their last evaluation; and the same
                from the evaluation before.
            fresh: key and value of the fresh rows, (bb, r_kept, ...) each.
            index: indices of the fresh rows.
            kernels: Triton kernels for such rows, if available.
        """
        is_due = self._attentions % JUDGED_EVERY == 0
        self._attentions += 1
        if not is_due:
            return
        self._views.clear()
        if kernels is not None:
            self.weights = kernels.weigh(halves, index, fresh, self._weight, self._trial, self._stride)
            return
        if self._sample is None:
            self._sample = index.flat.view(len(self._trial), -1)[:, :: self._stride].flatten()
        weights = []
        for kept, before, new in zip(*halves, fresh, strict=True):
            last, earlier = self._sampled(kept), self._sampled(before)
            moved = new[:, :: self._stride].flatten(2).float() - last
            gain = _confirmed((last - earlier) * self._trial[..., None], moved)
            weights.append((1 + self._weight * gain[:, None]).to(new.dtype))
        self.weights = torch.stack(weights)

    def _sampled(self, rows: Tensor) -> Tensor:  # (bb, r, ...) -> (bb, samples, d) float32
        found = rows.flatten(0, 1).index_select(0, self._sample)
        return found.view(*self._trial.shape, -1).float()


def _weight(elapsed: Tensor, span: Tensor) -> Tensor:
    """a / b in the formula of kv/forecast.py, clamped; 0 for a token that was evaluated only once."""
    ratio = (elapsed / span.clamp_min(1e-9)).clamp_max(FARTHEST)
    return torch.where(span > 0, ratio, torch.zeros_like(elapsed))


def _confirmed(forecast: Tensor, moved: Tensor) -> Tensor:
    """The factor from 0 to 1 by which forecast changes best fit actual ones: (bb, s, d) each -> (bb,)."""
    agreement = (forecast * moved).sum(dim=(1, 2))
    return (agreement / forecast.square().sum(dim=(1, 2)).clamp_min(1e-9)).clamp(0, 1)


def _fallen(before: Tensor, now: Tensor) -> Tensor:
    """How far the noise level fell; 0 if it rose, or if there was no earlier evaluation."""
    return torch.where(before.isfinite(), before - now, torch.zeros_like(before)).clamp_min(0)
