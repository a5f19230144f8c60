"""Keys and values of cached tokens, continued along their last change.

Most of what a regional step gets wrong comes from the keys and values of the tokens that it leaves out: with
those of a dense call in their place, and everything else as it is, runs of the demo models come 4 to 10 dB
closer to the dense run. Tokens keep moving while they are not computed, so their rows are continued:

    K' = K + g (K - K_before) a / b

with `b` the noise levels between a token's last two evaluations, and `a` those since the last one. A straight
line alone is worse than nothing where few tokens are computed or steps are long. So `g`, 0 to 1, is what the
tokens of this very step have just shown: the multiple of their own forecasts that is nearest to their new
rows. Where the past tells nothing, early in a run or in very small pictures, nothing is forecast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rows import Pair, Places, gather_rows, scatter_into
from .arena import Arena, copies
from .storage import Sequence
from .triton_launch import Fused, fused_for

SAMPLE = 128
"""Fresh rows, about, by which a forecast is judged."""

JUDGED_EVERY = 2
"""Attentions from one that is judged to the next."""

FARTHEST = 8.0
"""Times the last change at most."""

TIMES = (-1, 0)
"""Where a call's `Times` stand among its K/V sequences: before the first block's."""


@dataclass
class ForecastSequence(Sequence):
    """K and V as they are, and as they were at the evaluation before.

    `tensors` are key, value, and what each was before, (bb, prefix + n + suffix, ...).
    """

    storage: ClassVar[str] = "forecast"

    @classmethod
    def of(
        cls, key: Tensor, value: Tensor, prefix: int, suffix: int, arena: Arena | None = None
    ) -> ForecastSequence:
        """Keep the K/V of a dense call; nothing was before."""
        return cls(copies((key, value, key, value), arena), prefix, suffix)

    def write(self, key: Tensor, value: Tensor) -> None:
        """A dense call's K/V over everything kept."""
        for fresh, kept, before in zip((key, value), *self._halves, strict=True):
            before.copy_(kept)
            kept.copy_(fresh)

    def update(self, places: Places, fresh: Pair) -> Pair:
        """Keep fresh rows, and give the whole K and V as they were evaluated."""
        for number, rows in enumerate(fresh):
            self._remember(number, places)
            self._put(number, places, rows)
        return self.tensors[:2]

    def update_ahead(self, places: Places, fresh: Pair, ahead: Ahead) -> Pair:
        """As `update`, and gives K and V continued to now as far as fresh rows confirm it."""
        halves, fused = self._halves, fused_for(*fresh)
        ahead.judge(halves, fresh, places, fused)
        if fused is not None:
            return fused.continue_rows(halves, places, fresh, ahead.weights)
        self.update(places, fresh)
        (key, value), (key_before, value_before) = halves
        whole = tuple(places.scratch.empty(i, t, t.dtype) for i, t in enumerate((key, value)))
        torch.lerp(key_before, key, ahead.weights_like(0, key), out=whole[0])
        torch.lerp(value_before, value, ahead.weights_like(1, value), out=whole[1])
        return whole

    def _remember(self, number: int, places: Places) -> None:
        """Keep rows that are about to be overwritten as those of the evaluation before."""
        kept, before = self.tensors[number], self.tensors[number + 2]
        if torch.compiler.is_compiling():
            scatter_into(before, places.flat, gather_rows(kept, places.flat))
        else:
            writers = self._writers or self._make_writers()
            writers[number].move(places.flat, writers[number + 2])

    def forget(self) -> None:
        """Another run begins; what went wrong in the last one must not come back with a weight of 0."""
        for rows in self.tensors[:2]:
            rows.zero_()  # the first dense call makes of it what was before

    @property
    def _halves(self) -> tuple[Pair, Pair]:
        """What is kept, and what was before."""
        return self.tensors[:2], self.tensors[2:]

    def _empty(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return like.new_zeros(shape)  # text rows were nothing before, and chance could make NaN of a weight 0


@dataclass
class Times(Sequence):
    """When tokens were evaluated: `tensors` are the noise level of the last time, and how much it had fallen
    since the time before (0 where there was none), (bb, n) float32 each.
    """

    storage: ClassVar[str] = "forecast"

    @classmethod
    def start(cls, sigma: Tensor, n_tokens: int) -> Times:
        """Nothing was evaluated yet: sigma (bb,) of the first call."""
        last = sigma.new_full((sigma.shape[0], n_tokens), torch.inf, dtype=torch.float32)
        return cls((last, torch.zeros_like(last)), 0, 0)

    def pass_all(self, sigma: Tensor) -> None:
        """A dense call at the noise levels sigma, (bb,)."""
        last, span = self.tensors
        now = sigma.float()[:, None]
        span.copy_(_fallen(last, now))
        last.copy_(now.expand_as(last))

    def pass_active(self, sigma: Tensor, active_idx: Tensor) -> tuple[Tensor, Tensor]:
        """A regional call at sigma, (bb,), evaluates the tokens of `active_idx`, (bb, n_active).

        Returns:
            Weights of the last change: of all tokens after it, (bb, n), which are 0 for those evaluated now;
            and of the latter before it, (bb, n_active).
        """
        last, span = self.tensors
        now = sigma.float()[:, None].expand(active_idx.shape)
        gone, before = _fallen(last.gather(1, active_idx), now), span.gather(1, active_idx)
        span.scatter_(1, active_idx, gone)
        last.scatter_(1, active_idx, now)
        return _weight(_fallen(last, now[:, :1]), span), _weight(gone, before)

    def forget(self) -> None:
        """Another run begins."""
        self.tensors[0].fill_(torch.inf)
        self.tensors[1].zero_()


class Ahead:
    """How far the rows of one call are continued, from the weights of its image tokens.

    Text and padding rows are always fresh. What fresh rows confirm is looked at in some of the attentions,
    and holds for those that follow.

    Args:
        weight: (bb, n) of their last change, for all tokens.
        before: (bb, n_active) the same of the active ones before they were evaluated.
        prefix, suffix: rows of text before and of padding after the image rows.

    Attributes:
        weights: (2, bb, prefix + n + suffix), of keys and of values: from the evaluation before the last (0)
            over the last (1) to now.
    """

    weights: Tensor

    def __init__(self, weight: Tensor, before: Tensor, prefix: int, suffix: int):
        self._weight = F.pad(weight, (prefix, suffix))
        self._stride = max(1, before.shape[1] // SAMPLE)
        self._trial = F.pad(before, (prefix, suffix))[:, :: self._stride].contiguous()
        self._asked = 0
        self._sample: Tensor | None = None  # indices of the rows that are compared
        self._views: dict[tuple[int, int], Tensor] = {}  # of `weights`, by half and number of axes

    def weights_like(self, which: int, rows: Tensor) -> Tensor:
        """`weights` of keys (0) or values (1), viewed with as many axes as `rows`, (bb, r, ...)."""
        if (view := self._views.get((which, rows.ndim))) is None:
            weight = self.weights[which]
            view = self._views[which, rows.ndim] = weight.view(*weight.shape, *[1] * (rows.ndim - 2))
        return view

    def judge(
        self, halves: tuple[Pair, Pair], fresh: Pair, places: Places, fused: Fused | None = None
    ) -> None:
        """One attention's fresh rows tell how good their own forecasts were.

        Args:
            halves: key and value of all rows as last evaluated, and as before that, (bb, r, ...) each.
            fresh: key and value of fresh rows, (bb, r_kept, ...).
            places: where these stand.
            fused: Triton kernels for such rows, if available.
        """
        is_due = self._asked % JUDGED_EVERY == 0
        self._asked += 1
        if not is_due:
            return
        self._views.clear()
        if fused is not None:
            self.weights = fused.weigh(halves, places, fresh, self._weight, self._trial, self._stride)
            return
        if self._sample is None:
            self._sample = places.flat.view(len(self._trial), -1)[:, :: self._stride].flatten()
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


def _weight(gone: Tensor, span: Tensor) -> Tensor:
    """a / b above, up to a bound; 0 where a token was evaluated only once."""
    return torch.where(span > 0, (gone / span.clamp_min(1e-9)).clamp_max(FARTHEST), torch.zeros_like(gone))


def _confirmed(forecast: Tensor, moved: Tensor) -> Tensor:
    """The multiple, 0 to 1, of forecast moves that is nearest to the real ones: (bb, s, d) each -> (bb,)."""
    agreement = (forecast * moved).sum(dim=(1, 2))
    return (agreement / forecast.square().sum(dim=(1, 2)).clamp_min(1e-9)).clamp(0, 1)


def _fallen(before: Tensor, now: Tensor) -> Tensor:
    """How far the noise level fell; 0 where it rose, or where there was none before."""
    return torch.where(before.isfinite(), before - now, torch.zeros_like(before)).clamp_min(0)
