"""Corrects the forecasts of cached rows by the forecast errors of the same step's fresh rows.

For a fresh row, the error that its forecast would have had is known, and the forecasts of neighbouring tokens
have similar errors. So the forecast errors of the active tokens are spread over the cached ones, separately
for the keys and for the values of each attention:

    E   = K - K'
    s   = sqrt(a |f|)
    R   = E / s
    K'' = K' + s (g near(R) + g2 mean(R))

E, of an active token, is its fresh row minus its forecast. s, of any token, measures how large its
forecast error may be: `a` is how far the noise level has fallen since the token's last evaluation, and |f|
is the root mean square of the change that is forecast for the token's row. R, of an active token, is its
error in multiples of s. K'', of a cached token, is its corrected forecast.

near(R) is the mean of R over the active tokens among the 3 x 3 tokens around a token; if none of these is
active, mean(R) is used instead. mean(R) is the mean of R over all active tokens of the image. The gains g and
g2, both 0 to 1, are fitted to a sample of the active tokens: the error of each sampled token is predicted
from the errors of the other active tokens.

If few tokens are computed, spreading makes results worse: active tokens are those that change most, so their
mean error differs from that of the cached tokens. The correction is then wrong in the same direction for all
cached tokens, so attention, which averages over tokens, does not cancel the mistake.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .gains import fitted_gains

LEAST_SHARE = 0.5
"""Errors are spread in calls that compute at least this share of the image's tokens."""

SAMPLE = 256
"""The gains are fitted to approximately this many active tokens per image."""

RIDGE = 1e-2
"""Each number on the diagonal of the gains' least-squares matrix is increased by this share of itself."""

SMALLEST = 0.05
"""This share of the image's mean |f| is added to each token's |f|, because the forecast may be wrong even for
a token with |f| = 0."""

TRANSIENTS = 5
"""Working memory that spreading needs with PyTorch's operations, as a multiple of the bytes that the key and
value of the largest attention occupy in half precision. The Triton kernels need less than half of it."""

SMALLEST_SCALE = 1e-2
"""In R = E / s, s is at least this share of the mean of s over the image."""


class Spread:
    """Spreads the forecast errors of one call's active tokens over its cached tokens.

    Args:
        shape: number of tokens along each axis of the image, (h, w) or (t, h, w).
        active_idx: (bb, n_active) int64, indices of the active tokens.
        ages: (bb, n) float32, how far the noise level has fallen since each token's last evaluation.

    Attributes:
        active_idx, ages: the arguments.
        extent: number of tokens of one image, and number of tokens along its last axis.
        stride: the gains are fitted to every `stride`th active token.
    """

    def __init__(self, shape: tuple[int, ...], active_idx: Tensor, ages: Tensor):
        self._plane = shape[-2:]
        self.active_idx = active_idx
        self.ages = ages
        self.extent = ages.shape[1], shape[-1]
        here = torch.zeros_like(ages).scatter_(1, active_idx, 1.0)
        count = self._near(here[..., None])[..., 0]
        self._has_near = (count > 0.5).float()  # (bb, n)
        self._share = self._has_near / count.clamp_min(1.0)
        self.stride = max(1, active_idx.shape[1] // SAMPLE)
        self._sampled = active_idx[:, :: self.stride]
        others = count.gather(1, self._sampled) - 1.0
        self._has_others = (others > 0.5).float()[..., None]  # (bb, samples, 1)
        self._share_of_others = self._has_others / others.clamp_min(1.0)[..., None]

    @cached_property
    def around(self) -> Tensor:
        """For each token, which of the 3 x 3 tokens around it are active: (bb, n) int32. The token that is y
        rows below and x columns to the right is active if bit 3 (y + 1) + x + 1 is set.
        """
        here = torch.zeros_like(self.ages, dtype=torch.int32).scatter_(1, self.active_idx, 1)
        planes = F.pad(here.unflatten(1, (-1, *self._plane)), (1, 1, 1, 1))
        windows = planes.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2)  # (bb, t, h, w, 9)
        bits = 1 << torch.arange(9, dtype=torch.int32, device=here.device)
        return (windows * bits).sum(-1, dtype=torch.int32).flatten(1)

    def with_active(self, weight: Tensor, before: Tensor) -> Tensor:
        """`weight` with the numbers of active tokens replaced by `before`, so that active tokens are forecast
        too. `weight` has the forecast changes of all tokens, and `before` those that the active tokens would
        have if this call did not compute them (both as returned by `Times.update_active`).
        """
        index = self.active_idx if weight.ndim == 2 else self.active_idx[..., None].expand_as(before)
        return weight.scatter(1, index, before)

    def scales(self, change: Tensor, weight: Tensor) -> Tensor:
        """s of each token, divided by the mean of s over the image: (bb, n).

        Args:
            change: (bb, n, d) last change of each token's row.
            weight: (bb, n) change that is forecast for each token, in multiples of the token's last change.
        """
        size = torch.linalg.vector_norm(change, dim=2, dtype=torch.float32) * weight
        scale = ((size + SMALLEST * size.mean(1, keepdim=True)) * self.ages).sqrt()
        mean = scale.mean(1, keepdim=True)
        return torch.where(mean > 0, scale / mean.clamp_min(1e-30), scale)

    def correct(self, rows: Tensor, fresh: Tensor, scale: Tensor) -> None:
        """Add the corrections s (g near(R) + g2 mean(R)) to the forecasts of all tokens, in place.

        Args:
            rows: (bb, n, d) forecasts of all tokens, active ones too.
            fresh: (bb, n_active, d) rows of the active tokens.
            scale: as returned by `scales`.
        """
        index = self.active_idx[..., None].expand(-1, -1, rows.shape[2])
        own = scale.gather(1, self.active_idx)[..., None]
        usable = torch.where(own > 0, 1.0 / own.clamp_min(SMALLEST_SCALE), torch.zeros_like(own))
        rates = (fresh.float() - rows.gather(1, index).float()).mul_(usable)
        mean = rates.mean(1, keepdim=True)
        near = self._near(torch.zeros_like(rows, dtype=torch.float32).scatter_(1, index, rates))
        gain, gain2 = (each[:, None] for each in self._gains(rates, near, mean, own))
        near.mul_((gain * scale * self._share)[..., None])
        near.addcmul_(mean, (scale * (gain2 + gain * (1.0 - self._has_near)))[..., None])
        rows.add_(near)

    def _gains(self, rates: Tensor, near: Tensor, mean: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The gains g of near(R) and g2 of mean(R), (bb,) each: with these, the errors of sampled active
        tokens are best predicted from the errors of the other active tokens.
        """
        count, sample = rates.shape[1], rates[:, :: self.stride]
        others = (mean * count - sample) / max(count - 1, 1)
        index = self._sampled[..., None].expand_as(sample)
        around = (near.gather(1, index) - sample) * self._share_of_others + others * (1.0 - self._has_others)
        scale = own[:, :: self.stride]
        return fitted_gains(around * scale, others * scale, sample * scale, RIDGE)

    def _near(self, tokens: Tensor) -> Tensor:
        """Sum over each token's 3 x 3 neighbourhood along h and w: (bb, n, d) -> (bb, n, d)."""
        planes = tokens.unflatten(1, (-1, *self._plane)).flatten(0, 1).permute(0, 3, 1, 2)
        near = F.avg_pool2d(planes, 3, stride=1, padding=1, divisor_override=1)
        return near.permute(0, 2, 3, 1).reshape(tokens.shape)
