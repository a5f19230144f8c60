"""Determines how far cached rows are extrapolated by the formula in kv/forecast.py.

A forecast is an extrapolated row. `Times` tracks at which noise levels each token was evaluated.
`Extrapolation` compares fresh rows (rows that the call computes) with the forecasts that they would have had
if the call had not computed them. The factor by which the forecast changes of fresh rows fit the actual ones
best then scales the forecast changes of cached rows.
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
"""Forecasts are compared with fresh rows in one attention out of this many successive attentions of a
call."""

FARTHEST = 8.0
"""Upper bound of the change that is forecast for a row since its last evaluation, in multiples of the row's
change between its last two evaluations."""

TIMES = (-1, 0)
"""The key under which a call's slots (`plain.Slots`) contain its `Times`; it comes before the keys of the
attentions."""


@dataclass
class Times(KVRows):
    """The noise levels at which each token was last evaluated.

    `tensors` has two tensors, (bb, n) float32 each: the noise level at each token's last evaluation, and how
    far the noise level fell between the token's last two evaluations (0 if the token was evaluated only
    once).
    """

    format_name: ClassVar[str] = "forecast"
    spans: ClassVar[int] = 1
    """Number of pairs of successive evaluations, per token, for which the fall of the noise level is kept."""

    @classmethod
    def start(cls, sigma: Tensor, n_tokens: int) -> Times:
        """The state before any evaluation; `sigma`, (bb,), only sets the batch size and the device."""
        last = sigma.new_full((sigma.shape[0], n_tokens), torch.inf, dtype=torch.float32)
        return cls((last, *(torch.zeros_like(last) for _ in range(cls.spans))), 0, 0)

    def update_all(self, sigma: Tensor) -> None:
        """Update the state for a dense call, which evaluates all tokens at noise level sigma, (bb,)."""
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
        """An `Extrapolation` for one call; `weight` and `before` are as returned by `update_active`."""
        return Extrapolation(weight, before, prefix, suffix, spread)

    def ages(self, sigma: Tensor) -> Tensor:
        """How far the noise level fell from each token's last evaluation to the present noise level sigma,
        (bb,). Returns (bb, n).
        """
        last = self.tensors[0]
        return fallen(last, sigma.float()[:, None].expand_as(last))

    def update_active(self, sigma: Tensor, active_idx: Tensor) -> tuple[Tensor, Tensor]:
        """Update the state for a regional call at noise level sigma, (bb,), which evaluates the tokens of
        `active_idx`, (bb, n_active).

        Returns:
            Two tensors of forecast changes since a token's last evaluation, in multiples of the token's last
            change. The first, (bb, n), is for all tokens; active tokens have 0, because this call evaluates
            them. The second, (bb, n_active), is for the active tokens, as if this call did not evaluate them.
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
    """Computes how far the cached rows of one call of the network are extrapolated.

    Text and padding rows are always fresh. In every `JUDGED_EVERY`th attention, the forecasts that fresh rows
    would have had are compared with the fresh rows themselves. The resulting gain (`g` in kv/forecast.py)
    scales the forecasts of cached rows in this attention and in the attentions after it, up to the next
    comparison.

    Args:
        weight, before: as returned by `Times.update_active`.
        prefix, suffix: number of text rows before and of padding rows after the image rows.
        spread: spreads the forecast errors of active tokens to cached tokens; None for no spreading.

    Attributes:
        weights: (2, bb, prefix + n + suffix), one per row of the key and of the value. Weight 0 gives the
            row's numbers at the evaluation before its last one, weight 1 those at its last evaluation, and a
            weight above 1 extrapolates the row. With `spread`, active tokens are extrapolated too, because
            the errors of their forecasts are needed; without `spread`, active tokens have weight 1.
        row_weight: (bb, prefix + n + suffix) float32, the forecast changes that the gain multiplies; 0 for
            text and padding rows.
        prefix, spread: the arguments.
    """

    weights: Tensor
    _ridge: float = 0.0  # used by subclasses that fit two gains (kv/gains.py)

    def __init__(
        self, weight: Tensor, before: Tensor, prefix: int, suffix: int, spread: Spread | None = None
    ):
        self.spread = spread
        if spread is not None:
            weight = spread.with_active(weight, before)
        self._weight = weight  # of image and frozen rows only, not of text and padding
        self.prefix = prefix
        self.row_weight = F.pad(weight, (prefix, suffix))
        self._stride = max(1, before.shape[1] // SAMPLE)
        self._trial = F.pad(before, (prefix, suffix))[:, :: self._stride].contiguous()
        self._attentions = 0
        self._sample: Tensor | None = None  # indices of the fresh rows that are compared
        self._views: dict[tuple[int, int], Tensor] = {}  # views of `weights`, by (`which`, axes)

    def weights_like(self, which: int, rows: Tensor) -> Tensor:
        """`weights` of keys (0) or values (1), viewed with as many axes as `rows`, (bb, r, ...)."""
        if (view := self._views.get((which, rows.ndim))) is None:
            weight = self.weights[which]
            view = self._views[which, rows.ndim] = weight.view(*weight.shape, *[1] * (rows.ndim - 2))
        return view

    def judge(
        self, evaluations: tuple[Pair, ...], fresh: Pair, index: RowIndex, kernels: RowKernels | None = None
    ) -> None:
        """Set `weights` by comparing one attention's fresh rows with their forecasts, if a comparison is due.

        Args:
            evaluations: (key, value) of all rows as of each row's last evaluation, the same as of the
                evaluation before that, and so on; (bb, r, ...) each.
            fresh: key and value of the fresh rows, (bb, r_kept, ...) each.
            index: indices of the fresh rows among all rows.
            kernels: Triton kernels for such rows, if available.
        """
        if not self._is_due():
            return
        if kernels is not None:
            forecast = self.row_weight, self._trial
            self.weights = kernels.weigh(evaluations, index, fresh, forecast, self._stride, self._ridge)
        else:
            self.weights = self._fitted(evaluations, fresh, index)

    def _fitted(self, evaluations: tuple[Pair, ...], fresh: Pair, index: RowIndex) -> Tensor:
        """`weights` from one comparison, computed with PyTorch's operations."""
        weights = []
        for kept, before, new in zip(*evaluations, fresh, strict=True):
            last, earlier = self._sampled(kept, index), self._sampled(before, index)
            moved = self._sampled_fresh(new) - last
            gain = _confirmed((last - earlier) * self._trial[..., None], moved)
            weights.append((1 + self.row_weight * gain[:, None]).to(new.dtype))
        return torch.stack(weights)

    def correct(self, whole: Tensor, fresh: Tensor, last: Tensor, before: Tensor) -> None:
        """Correct the forecasts `whole` in place by the forecast errors of active tokens (kv/spread.py).

        Args:
            whole: (bb, r, ...) forecasts of all rows of the key or the value, those of active tokens too.
            fresh: (bb, r_kept, ...) fresh rows.
            last, before: (bb, r, ...) each, all rows as of their last evaluation and as of the evaluation
                before it.
        """
        n, n_active = self.spread.extent[0], self.spread.active_idx.shape[1]
        rows, last, before = (self._after_prefix(t, n) for t in (whole, last, before))
        weight = self._weight if self._weight.ndim == 2 else self._weight[..., 0]
        scales = self.spread.scales(last - before, weight[:, :n])
        self.spread.correct(rows, self._after_prefix(fresh, n_active), scales)

    def _after_prefix(self, rows: Tensor, count: int) -> Tensor:  # (bb, r, ...) -> (bb, count, d)
        return rows.flatten(2)[:, self.prefix : self.prefix + count]

    def _is_due(self) -> bool:
        """Count one attention. Returns whether this attention's fresh rows should be compared with their
        forecasts. If so, this drops the stored views (reshaped forms) of `weights`, because the comparison
        will replace `weights`.
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
    """The quotient a / b of the formula in kv/forecast.py, with a = `elapsed` and b = `span`, limited to
    `FARTHEST`; 0 for a token that was evaluated only once.
    """
    ratio = (elapsed / span.clamp_min(1e-9)).clamp_max(FARTHEST)
    return torch.where(span > 0, ratio, torch.zeros_like(elapsed))


def _confirmed(forecast: Tensor, moved: Tensor) -> Tensor:
    """The factor by which the changes `forecast` must be multiplied to fit the actual changes `moved` best
    (least squares), clamped to 0..1. Both changes are (bb, samples, d); returns one factor per image, (bb,).
    """
    agreement = (forecast * moved).sum(dim=(1, 2))
    return (agreement / forecast.square().sum(dim=(1, 2)).clamp_min(1e-9)).clamp(0, 1)


def fallen(before: Tensor, now: Tensor) -> Tensor:
    """How far the noise level fell from `before` to `now`; 0 if it rose, or if `before` is infinite because
    the token had not been evaluated.
    """
    return torch.where(before.isfinite(), before - now, torch.zeros_like(before)).clamp_min(0)
