"""Determines how far cached rows are extrapolated, by the formula in kv/forecast.py.

`Times` tracks at which noise levels each token was evaluated. `Extrapolation` compares forecasts of fresh
rows with the rows themselves, and scales the forecasts of cached rows accordingly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rows import Pair, RowIndex
from .plain import KVRows
from .spread import Spread
from .triton_launch import RowKernels

SAMPLE = 128
"""Approximate number of fresh rows per image and attention that are compared with their forecasts."""

JUDGED_EVERY = 2
"""Number of attentions of a call from one comparison of forecasts with fresh rows to the next."""

FARTHEST = 8.0
"""Upper bound of a row's forecast change since its last evaluation, in multiples of its last change (the one
between its last two evaluations)."""

TIMES = (-1, 0)
"""Key of a call's `Times` among its slots (`plain.Slots`); it precedes the keys of the attentions."""


@dataclass
class Times(KVRows):
    """The noise levels at which each token was last evaluated.

    `tensors` has two tensors, (bb, n) float32 each: the noise level at each token's last evaluation, and how
    far the noise level fell between its last two evaluations (0 if there was only one evaluation).
    """

    format_name: ClassVar[str] = "forecast"
    spans: ClassVar[int] = 1
    """How many falls of the noise level between successive evaluations are kept for each token."""

    @classmethod
    def start(cls, sigma: Tensor, n_tokens: int) -> Times:
        """The state before the first evaluation, which will be at noise level sigma, (bb,)."""
        last = sigma.new_full((sigma.shape[0], n_tokens), torch.inf, dtype=torch.float32)
        return cls((last, *(torch.zeros_like(last) for _ in range(cls.spans))), 0, 0)

    def update_all(self, sigma: Tensor) -> None:
        """Update the state for a dense call at noise level sigma, (bb,): it evaluates all tokens."""
        last, *spans = self.tensors
        now = sigma.float()[:, None]
        for span, before in reversed(list(zip(spans, spans[1:], strict=False))):
            before.copy_(span)
        spans[0].copy_(fallen(last, now))
        last.copy_(now.expand_as(last))

    @staticmethod
    def extrapolation(
        weight: Tensor, before: Tensor, prefix: int, suffix: int, spread: Spread | None = None
    ) -> Extrapolation:
        """How far rows are extrapolated; `weight` and `before` are as returned by `update_active`."""
        return Extrapolation(weight, before, prefix, suffix, spread)

    def ages(self, sigma: Tensor) -> Tensor:
        """How far the noise level has fallen to sigma, (bb,), since each token's last evaluation: (bb, n)."""
        last = self.tensors[0]
        return fallen(last, sigma.float()[:, None].expand_as(last))

    def update_active(self, sigma: Tensor, active_idx: Tensor) -> tuple[Tensor, Tensor]:
        """Update the state for a regional call at noise level sigma, (bb,), which evaluates the tokens of
        `active_idx`, (bb, n_active).

        Returns:
            Forecast changes of tokens since their last evaluation, in multiples of their last change: of all
            tokens, (bb, n), 0 for active ones; and of active tokens as if this call did not evaluate them,
            (bb, n_active).
        """
        last, span = self.tensors
        now = sigma.float()[:, None].expand(active_idx.shape)
        elapsed, before = fallen(last.gather(1, active_idx), now), span.gather(1, active_idx)
        span.scatter_(1, active_idx, elapsed)
        last.scatter_(1, active_idx, now)
        return weight_of(fallen(last, now[:, :1]), span), weight_of(elapsed, before)

    def forget(self) -> None:
        last, *spans = self.tensors
        last.fill_(torch.inf)
        for span in spans:
            span.zero_()


class Extrapolation:
    """Computes how far the rows of one call are extrapolated.

    Text and padding rows are always fresh. In every `JUDGED_EVERY`th attention, forecasts of fresh rows are
    compared with the rows themselves. The resulting gain (kv/forecast.py) scales the forecasts of cached rows
    in this attention and in those that follow, up to the next comparison.

    Args:
        weight, before: as returned by `Times.update_active`.
        prefix, suffix: rows of text before and of padding after the image rows.
        spread: spreads the forecast errors of active tokens to cached ones; None if they are not spread.

    Attributes:
        weights: (2, bb, prefix + n + suffix), of keys and of values. A row's weight of 0 gives its values at
            the evaluation before the last, 1 those at the last one; above 1 the row is extrapolated. With
            `spread`, weights of active tokens are those of their forecasts; without, they are 1.
    """

    weights: Tensor

    def __init__(
        self, weight: Tensor, before: Tensor, prefix: int, suffix: int, spread: Spread | None = None
    ):
        self.spread = spread
        if spread is not None:
            weight = spread.with_active(weight, before)
        self._image_weight = weight  # of all image tokens, without text and padding rows
        self._borders = prefix, suffix
        self._weight = F.pad(weight, (prefix, suffix))
        self._stride = max(1, before.shape[1] // SAMPLE)
        self._trial = F.pad(before, (prefix, suffix))[:, :: self._stride].contiguous()
        self._attentions = 0
        self._sample: Tensor | None = None  # indices of the fresh rows that are compared
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
        """Set `weights` by comparing one attention's fresh rows with their forecasts, if that is due.

        Args:
            halves: key and value of all rows, (bb, r, ...) each, as of each row's last evaluation; and the
                same as of the evaluation before.
            fresh: key and value of the fresh rows, (bb, r_kept, ...) each.
            index: indices of the fresh rows among all rows.
            kernels: Triton kernels for such rows, if available.
        """
        if not self._is_due():
            return
        if kernels is not None:
            self.weights = kernels.weigh(halves, index, fresh, self._weight, self._trial, self._stride)
            return
        weights = []
        for kept, before, new in zip(*halves, fresh, strict=True):
            last, earlier = self._sampled(kept, index), self._sampled(before, index)
            moved = self._sampled_fresh(new) - last
            gain = _confirmed((last - earlier) * self._trial[..., None], moved)
            weights.append((1 + self._weight * gain[:, None]).to(new.dtype))
        self.weights = torch.stack(weights)

    def correct(self, whole: Tensor, fresh: Tensor, last: Tensor, before: Tensor) -> None:
        """Correct forecasts by the errors of active tokens' forecasts (kv/spread.py), in place.

        Args:
            whole: (bb, r, ...) forecasts of all rows of the key or the value, those of active tokens too.
            fresh: (bb, r_kept, ...) fresh rows.
            last, before: (bb, r, ...) all rows as of their last evaluation, and as of the one before.
        """
        rows, new, last, before = (self._image(t) for t in (whole, fresh, last, before))
        weight = self._image_weight if self._image_weight.ndim == 2 else self._image_weight[..., 0]
        self.spread.correct(rows, new, self.spread.scales(last - before, weight))

    def _image(self, rows: Tensor) -> Tensor:  # (bb, r, ...) -> (bb, image rows, d)
        prefix, suffix = self._borders
        return rows.flatten(2)[:, prefix : rows.shape[1] - suffix]

    def _is_due(self) -> bool:
        """Count one attention. Returns whether its fresh rows should be compared with their forecasts; if so,
        views of the `weights` of the last comparison are dropped.
        """
        is_due = self._attentions % JUDGED_EVERY == 0
        self._attentions += 1
        if is_due:
            self._views.clear()
        return is_due

    def _sampled(self, rows: Tensor, index: RowIndex) -> Tensor:  # (bb, r, ...) -> (bb, samples, d) float32
        if self._sample is None:
            self._sample = index.flat.view(rows.shape[0], -1)[:, :: self._stride].flatten()
        found = rows.flatten(0, 1).index_select(0, self._sample)
        return found.view(rows.shape[0], -1, rows.shape[2:].numel()).float()

    def _sampled_fresh(self, rows: Tensor) -> Tensor:  # (bb, r_kept, ...) -> (bb, samples, d) float32
        return rows[:, :: self._stride].flatten(2).float()


def weight_of(elapsed: Tensor, span: Tensor) -> Tensor:
    """a / b of the formula in kv/forecast.py (`elapsed` / `span`), at most `FARTHEST`; 0 for a token that
    was evaluated only once.
    """
    ratio = (elapsed / span.clamp_min(1e-9)).clamp_max(FARTHEST)
    return torch.where(span > 0, ratio, torch.zeros_like(elapsed))


def _confirmed(forecast: Tensor, moved: Tensor) -> Tensor:
    """The factor on the forecast changes that best fits the actual changes `moved` (least squares), clamped
    to 0..1. Both changes are (bb, samples, d); returns one factor per image, (bb,).
    """
    agreement = (forecast * moved).sum(dim=(1, 2))
    return (agreement / forecast.square().sum(dim=(1, 2)).clamp_min(1e-9)).clamp(0, 1)


def fallen(before: Tensor, now: Tensor) -> Tensor:
    """How far the noise level fell from `before` to `now`; 0 if it rose, or if `before` is infinite because
    the token had not been evaluated.
    """
    return torch.where(before.isfinite(), before - now, torch.zeros_like(before)).clamp_min(0)
