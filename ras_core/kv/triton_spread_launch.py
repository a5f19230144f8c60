"""Launches the Triton kernels that correct forecasts by the errors of the same step's fresh rows."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor

from ..rows import Pair, RowIndex
from .extrapolation import Extrapolation
from .triton_launch import RowKernels, addresses_of, by_pair, power_of_two

SCALES_BLOCK = 1024
"""`scale_rows` reads this many tokens at a time."""

PARTS = 32
"""`sum_rates` sums the active tokens in at most this many parts."""

TILE = (64, 64)
"""Rows and columns of the tiles that `sum_rates` adds up; a part has at least as many rows as a tile."""

WARPS = 4
"""Warps of programs that read up to nine rows; the other programs read at most four rows."""


class SpreadKernels(RowKernels):
    """As `RowKernels`, and spreads errors as kv/spread.py does."""

    def spread_rows(
        self, evaluations: tuple[Pair, ...], index: RowIndex, fresh: Pair, extrapolation: Extrapolation
    ) -> Pair:
        """As `extrapolate_rows`, and corrects the forecasts of cached rows by the errors of fresh rows.

        Args:
            evaluations, index, fresh: as in `extrapolate_rows`.
            extrapolation: the call's extrapolation, with its `weights` and with a `spread`.
        """
        last = evaluations[0]
        errors = tuple(index.scratch.empty(2 + i, t, t.dtype) for i, t in enumerate(last))
        floats = last[0].new_empty(3, 2, *last[0].shape[:2], dtype=torch.float32)
        sizes, scales = floats[0], floats[1:]
        whole = self._extrapolate(evaluations, index, fresh, extrapolation.weights, (errors, sizes))
        addresses = by_pair(errors, whole)
        form = self._form((whole[0].flatten(2),), reduce(or_, addresses))[1]
        form = {name: form[name] for name in ("TYPE", "UNIT", "DIM", "WIDTH")}
        with torch.cuda.device_of(whole[0]):
            self._scale(extrapolation, sizes, scales)
            means = self._mean_rates(extrapolation, index, errors, scales, form)
            gains = self._gains(extrapolation, index, errors, (scales, means), form)
            spread = extrapolation.spread
            self._kernels.correct_rows[(spread.around.numel(), 2)](
                *addresses, *addresses_of(scales, means, spread.around, gains),
                *sizes.shape[1:], extrapolation.prefix, *spread.extent, **form, num_warps=WARPS,
            )  # fmt: skip
        return whole

    def _scale(self, extrapolation: Extrapolation, sizes: Tensor, scales: Tensor) -> None:
        """Compute s and 1 / s of all image rows, `scales`, (2, 2, bb, rows), from the norms of the rows' last
        changes, `sizes`, (2, bb, rows).
        """
        _, images, rows = sizes.shape
        spread, weight = extrapolation.spread, extrapolation.row_weight
        self._kernels.scale_rows[(2 * images,)](
            *addresses_of(sizes, weight, spread.ages, scales),
            images, rows, extrapolation.prefix, spread.extent[0], BLOCK=SCALES_BLOCK,
        )  # fmt: skip

    def _mean_rates(
        self,
        extrapolation: Extrapolation,
        index: RowIndex,
        errors: Pair,
        scales: Tensor,
        form: dict[str, Any],
    ) -> Tensor:
        """mean(R) of keys and values, (2 * bb, d)."""
        images, active = extrapolation.spread.active_idx.shape
        rows, cols = TILE
        rows_in_part = rows * -(-active // (rows * PARTS))
        parts, blocks = -(-active // rows_in_part), -(-form["DIM"] // cols)
        sums = scales.new_empty(2 * images, parts, form["DIM"])
        means = scales.new_empty(2 * images, form["DIM"])
        self._kernels.sum_rates[(blocks, parts, 2 * images)](
            *by_pair(errors), *addresses_of(scales[1], index.flat, sums), index.flat.numel() // images,
            extrapolation.prefix, active, rows_in_part, index.total,
            TYPE=form["TYPE"], UNIT=form["UNIT"], DIM=form["DIM"], ROWS=rows, COLS=cols,
        )  # fmt: skip
        self._kernels.mean_rates[(blocks, 2 * images)](
            *addresses_of(sums, means), parts, active, DIM=form["DIM"], PARTS=PARTS, COLS=cols
        )
        return means

    def _gains(
        self,
        extrapolation: Extrapolation,
        index: RowIndex,
        errors: Pair,
        rates: tuple[Tensor, Tensor],
        form: dict[str, Any],
    ) -> Tensor:
        """The gains g and g2 of keys and values, (2 * bb, 2). `rates` are the scales and mean(R)."""
        scales, means = rates
        spread = extrapolation.spread
        images, active = spread.active_idx.shape
        samples = -(-active // spread.stride)
        sums, gains = scales.new_empty(2, images, samples, 5), scales.new_empty(2 * images, 2)
        self._kernels.compare_errors[(samples, images, 2)](
            *by_pair(errors), *addresses_of(scales, means, spread.around, index.flat, sums),
            index.flat.numel() // images, spread.stride, active, scales.shape[3],
            extrapolation.prefix, *spread.extent, **form, num_warps=WARPS,
        )  # fmt: skip
        self._kernels.fit_gains[(2 * images,)](
            *addresses_of(sums, gains), samples, SAMPLES=power_of_two(samples)
        )
        return gains
