"""Keys and values of cached tokens, extrapolated along their last two changes.

This format works as `forecast` does, but with one evaluation more: a row's numbers at its last three
evaluations, K, K_1 and K_2 (most recent first), define a parabola over the noise level. Let `a` be how far
the noise level has fallen since the last evaluation, `b` how far it fell from K_1's evaluation to K's, and
`c` how far it fell from K_2's evaluation to K_1's. In Newton's form:

    K' = K + g w (K - K_1) + g2 (q (K - K_1) - q_1 (K_1 - K_2))

    w = a / b        q = a (a + b) / (b (b + c))        q_1 = a (a + b) / (c (b + c))

The gains g and g2, both 0 to 1, are fitted together by least squares to the fresh rows of the active tokens
of the same step. If the best g2 is not positive, g2 is 0, and g is fitted alone as in `forecast`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rows import Pair, RowIndex
from .extrapolation import FARTHEST, Extrapolation, Times, fallen, weight_of
from .forecast import ForecastRows
from .gains import fitted_gains
from .spec import CacheSize, KVFormat
from .spread import Spread
from .triton_check import FORECAST2

RIDGE = 1e-3
"""The gains g and g2 are the solution of two linear equations (least squares). Each number on the diagonal of
the matrix of these equations is increased by this share of itself."""


@dataclass
class QuadraticTimes(Times):
    """As `Times`, with one more tensor, (bb, n): how far the noise level fell from each token's third-last to
    its second-last evaluation.

    The weights that `update_active` returns have a last axis of length three: w, q and q_1 of the formula
    above.
    """

    format_name: ClassVar[str] = "forecast2"
    spans: ClassVar[int] = 2

    def update_active(self, sigma: Tensor, active_idx: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Times`, but the returned tensors are (bb, n, 3) and (bb, n_active, 3)."""
        last, span, span_before = self.tensors
        now = sigma.float()[:, None].expand(active_idx.shape)
        elapsed = fallen(last.gather(1, active_idx), now)
        spans = span.gather(1, active_idx), span_before.gather(1, active_idx)
        span_before.scatter_(1, active_idx, spans[0])
        span.scatter_(1, active_idx, elapsed)
        last.scatter_(1, active_idx, now)
        return _weights(fallen(last, now[:, :1]), span, span_before), _weights(elapsed, *spans)

    @staticmethod
    def extrapolation(
        weight: Tensor, before: Tensor, prefix: int, suffix: int, spread: Spread | None = None
    ) -> QuadraticExtrapolation:
        return QuadraticExtrapolation(weight, before, prefix, suffix, spread)


class QuadraticExtrapolation(Extrapolation):
    """As `Extrapolation`, for weights that consist of w, q and q_1.

    Attributes:
        weights: (2, 2, bb, prefix + n + suffix), for keys and for values: the factors on a row's last change
            and on the change before it. The extrapolated row is the row at its last evaluation plus both
            changes times their factors.
        row_weight: (3, bb, prefix + n + suffix) float32: w, q and q_1 of each row.
    """

    def __init__(
        self, weight: Tensor, before: Tensor, prefix: int, suffix: int, spread: Spread | None = None
    ):
        super().__init__(weight, before, prefix, suffix, spread)
        self.row_weight = self._framed(self._weight, prefix, suffix)
        self._trial = self._framed(before, prefix, suffix)[:, :, :: self._stride].contiguous()

    def factors_like(self, which: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The two factors in `weights` for keys (0) or values (1), viewed with as many axes as `rows`."""
        return self.weights_like(which, rows).unbind()

    @property
    def _ridge(self) -> float:
        return RIDGE

    def _fitted(self, evaluations: tuple[Pair, ...], fresh: Pair, index: RowIndex) -> Tensor:
        weights = []
        for *kept, new in zip(*evaluations, fresh, strict=True):
            last, before, earlier = (self._sampled(rows, index) for rows in kept)
            w, q, q_before = self._trial[..., None]
            linear = (last - before) * w
            curved = (last - before) * q - (before - earlier) * q_before
            gains = fitted_gains(linear, curved, self._sampled_fresh(new) - last, RIDGE)
            weights.append(self._factors(*(each[:, None] for each in gains)).to(new.dtype))
        return torch.stack(weights)

    def _factors(self, gain: Tensor, gain2: Tensor) -> Tensor:
        """The factors on each row's last change and on the change before it, (2, bb, r). The arguments `gain`
        and `gain2`, (bb, 1) each, are g and g2 of the formula above.
        """
        w, q, q_before = self.row_weight
        return torch.stack([gain * w + gain2 * q, -gain2 * q_before])

    def _framed(self, weight: Tensor, prefix: int, suffix: int) -> Tensor:  # (bb, n, 3) -> (3, bb, r)
        return F.pad(weight.movedim(-1, 0), (prefix, suffix)).contiguous()


def _weights(elapsed: Tensor, span: Tensor, span_before: Tensor) -> Tensor:
    """w, q and q_1 of the formula above, (..., 3), at most FARTHEST each; 0 if a token has too few
    evaluations.
    """
    curved = elapsed * (elapsed + span) / (span + span_before).clamp_min(1e-9)
    parts = (curved / each.clamp_min(1e-9) for each in (span, span_before))
    has_all = (span > 0) & (span_before > 0)
    parts = (torch.where(has_all, part.clamp_max(FARTHEST), torch.zeros_like(part)) for part in parts)
    return torch.stack([weight_of(elapsed, span), *parts], dim=-1)


@dataclass
class QuadraticRows(ForecastRows):
    """As `ForecastRows`, but keeps the K and V of three evaluations instead of two."""

    format_name: ClassVar[str] = "forecast2"
    evaluations: ClassVar[int] = 3
    times: ClassVar[type[Times]] = QuadraticTimes
    kernels: ClassVar[str] = FORECAST2

    def _extrapolated(self, number: int, index: RowIndex, extrapolation: QuadraticExtrapolation) -> Tensor:
        last, before, earlier = self.tensors[number::2]
        factor, factor_before = extrapolation.factors_like(number, last)
        whole = index.scratch.empty(number, last, last.dtype)
        change = index.scratch.empty(2, last, last.dtype)
        torch.sub(before, earlier, out=change)
        torch.sub(last, before, out=whole)
        return whole.mul_(factor).addcmul_(change, factor_before).add_(last)


def _nbytes(size: CacheSize) -> int:
    return 3 * size.plain_nbytes + 12 * size.tokens  # K/V of three evaluations; three float32 per token


FORMAT = KVFormat(
    name="forecast2",
    rows=QuadraticRows,
    nbytes=_nbytes,
    text="the K/V cache of {size} is kept on the device and extrapolated (kv_cache forecast2)",
    transients=2,
    advances=True,
    allows_added_noise=False,
    is_offered=False,
)
