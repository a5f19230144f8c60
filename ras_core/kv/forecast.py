"""Keys and values of cached tokens, extrapolated along their last change.

Most of a regional step's error comes from the outdated keys and values of the tokens that it does not
compute. An experiment with the demo models (small models in this repository, demo/) showed this. It took
these keys and values from a dense call and changed nothing else. This raised the PSNR of the images by 4 to
10 dB; the reference images came from dense runs. Tokens keep changing while they are not computed, so their
rows are extrapolated:

    K' = K + g (K - K_before) a / b

where K is a token's key (or value) at its last evaluation and K_before that at the evaluation before; `b` is
how far the noise level fell between these two evaluations, and `a` how far the noise level has fallen since
the last evaluation. Plain linear extrapolation (g = 1) makes results worse if few tokens are computed or
steps are long. So `g` is fitted to the active tokens of the same step. For these, K' can be compared with the
row that the step has just computed: `g` is the number between 0 and 1 for which K' is closest to that row
(least squares over a sample of the active tokens). Early in a run, or in very small images, past changes do
not predict the next one, and `g` is close to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..rows import Pair, RowIndex, gather_rows, scatter_into
from .arena import Arena, copies
from .extrapolation import Extrapolation, Times
from .plain import KVRows
from .spec import CacheSize, KVFormat
from .triton_check import BASIC, SPREAD, kernels_for


@dataclass
class ForecastRows(KVRows):
    """K and V of each row at its last `evaluations` evaluations.

    `tensors` are the key and the value at each row's last evaluation, then the key and the value at the
    evaluation before it, and so on: (bb, prefix + n + suffix, ...) each.
    """

    format_name: ClassVar[str] = "forecast"
    evaluations: ClassVar[int] = 2
    times: ClassVar[type[Times]] = Times
    kernels: ClassVar[str] = BASIC
    """The group of Triton kernels that extrapolate such rows, if errors are not spread (`triton_check`)."""

    @classmethod
    def of(
        cls, key: Tensor, value: Tensor, prefix: int, suffix: int, arena: Arena | None = None
    ) -> ForecastRows:
        """Keep the K/V of the dense call that creates the cache. Earlier evaluations do not exist yet; copies
        of these K/V take the place of theirs.
        """
        return cls(copies((key, value) * cls.evaluations, arena), prefix, suffix)

    def write(self, key: Tensor, value: Tensor) -> None:
        for kept, before in reversed(self._moves(0) + self._moves(1)):
            self.tensors[before].copy_(self.tensors[kept])
        self.key.copy_(key)
        self.value.copy_(value)

    def update(self, index: RowIndex, fresh: Pair) -> Pair:
        """Write fresh rows and return the whole K and V, without extrapolation."""
        for number, rows in enumerate(fresh):
            self._remember(number, index)
            self._put(number, index, rows)
        return self.tensors[:2]

    def update_extrapolated(self, index: RowIndex, fresh: Pair, extrapolation: Extrapolation) -> Pair:
        """As `update`, but cached rows are returned extrapolated to this call's noise level."""
        kernels = kernels_for(*fresh, self.kernels if extrapolation.spread is None else SPREAD)
        extrapolation.judge(self._evaluations, fresh, index, kernels)
        if kernels is None:
            return self._updated(index, fresh, extrapolation)
        if extrapolation.spread is None:
            return kernels.extrapolate_rows(self._evaluations, index, fresh, extrapolation.weights)
        return kernels.spread_rows(self._evaluations, index, fresh, extrapolation)

    def _updated(self, index: RowIndex, fresh: Pair, extrapolation: Extrapolation) -> Pair:
        """The part of `update_extrapolated` after `extrapolation.weights` is set, done with PyTorch's
        operations.
        """
        if extrapolation.spread is None:
            self.update(index, fresh)
            return self._extrapolated(0, index, extrapolation), self._extrapolated(1, index, extrapolation)
        whole = self._extrapolated(0, index, extrapolation), self._extrapolated(1, index, extrapolation)
        for rows, new, last, before in zip(whole, fresh, *self._evaluations[:2], strict=True):
            extrapolation.correct(rows, new, last, before)
            scatter_into(rows, index.flat, new)
        self.update(index, fresh)
        return whole

    def _extrapolated(self, number: int, index: RowIndex, extrapolation: Extrapolation) -> Tensor:
        """All rows of the key (`number` 0) or the value (1), extrapolated to the call's noise level."""
        last, before = self.tensors[number : number + 3 : 2]
        whole = index.scratch.empty(number, last, last.dtype)
        return torch.lerp(before, last, extrapolation.weights_like(number, last), out=whole)

    def _remember(self, number: int, index: RowIndex) -> None:
        """Before rows of the key (`number` 0) or the value (1) are overwritten, copy them into the tensor
        that holds the rows of the evaluation before.
        """
        for kept, before in reversed(self._moves(number)):
            if torch.compiler.is_compiling():
                scatter_into(self.tensors[before], index.flat, gather_rows(self.tensors[kept], index.flat))
            else:
                writers = self._writers or self._make_writers()
                writers[kept].move(index.flat, writers[before])

    def _moves(self, number: int) -> list[tuple[int, int]]:
        """Pairs of indices into `tensors`, for the key (`number` 0) or the value (1): (index of an
        evaluation's tensor, index of the previous evaluation's tensor).
        """
        numbers = range(number, 2 * self.evaluations, 2)
        return list(zip(numbers, numbers[1:], strict=False))

    def forget(self) -> None:
        """Overwrite the rows with 0: a NaN that a failed run left in them would stay NaN even at weight 0."""
        for rows in self.tensors[:-2]:
            rows.zero_()  # a new run's first dense call keeps them as those of earlier evaluations

    @property
    def _evaluations(self) -> tuple[Pair, ...]:
        """(key, value) as of each row's last evaluation, as of the evaluation before it, and so on."""
        return tuple(self.tensors[i : i + 2] for i in range(0, len(self.tensors), 2))

    def _empty(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        # Not `new_empty`: uninitialised rows may be NaN, and NaN times a weight of 0 is NaN.
        return like.new_zeros(shape)


def _nbytes(size: CacheSize) -> int:
    return 2 * size.plain_nbytes + 8 * size.tokens  # K/V of two evaluations; two float32 per token


FORMAT = KVFormat(
    name="forecast",
    rows=ForecastRows,
    nbytes=_nbytes,
    text="the K/V cache of {size} is kept on the device and extrapolated (kv_cache forecast)",
    transients=1,
    advances=True,
    allows_added_noise=False,
)
