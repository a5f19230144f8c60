"""Launches the Triton kernels, which process rows of the K/V cache in one pass over memory.

For the work of one kernel, PyTorch needs five to twelve operations, each of which reads and writes all rows.
If the kernels do not work (`triton_check`), kv/float8.py, kv/forecast.py and kv/quadratic.py use PyTorch's
operations. The kernels and PyTorch's operations give bit-identical float8 rows; their forecasts differ by
rounding: kernels round only what they store, and they accumulate sums in different orders.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import reduce
from operator import or_
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..rows import Pair, RowIndex

BLOCK = 1024
"""One program of the kernel `weigh` computes the weights of this many rows."""

WARPS = 2
"""Warps in each program, i.e. for each row; on an H100, 2 warps are slightly faster than any other count,
for rows of 768 to 2432 numbers."""


class RowKernels:
    """Launches the Triton kernels on the device that holds the given rows.

    Args:
        kernels: the module `triton_kernels`, which is imported only if Triton is installed.
    """

    def __init__(self, kernels: ModuleType):
        self._kernels = kernels
        self._forms: dict[Hashable, tuple[list[int], dict[str, Any]]] = {}  # keys: layouts

    def encode_float8(self, rows: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Encode rows as float8 into `codes`, (bb, r, ...), and `scales`, (bb, r), both contiguous."""
        rows = _readable(rows)
        at, codes_at, scales_at = addresses_of(rows, codes, scales)
        strides, form = self._form((rows,), at | codes_at)
        with torch.cuda.device_of(rows):
            self._kernels.encode_float8[(scales.numel(),)](
                at, codes_at, scales_at, rows.shape[1], *strides, **form
            )

    def update_float8(self, kept: tuple[Tensor, ...], index: RowIndex, fresh: Pair) -> Pair:
        """Write fresh rows to `kept`, and return K and V of all rows, in which fresh rows are unrounded.

        Args:
            kept: the key's float8 bytes, (bb, rows, ...), its scales, (bb, rows), the value's bytes and its
                scales.
            index: which rows are fresh.
            fresh: (bb, r_kept, ...) each.
        """
        key, value = _readable_pair(*fresh)
        whole = tuple(index.scratch.empty(i, codes, key.dtype) for i, codes in enumerate(kept[::2]))
        (key_at, value_at), (key_to, value_to) = addresses_of(key, value), addresses_of(*whole)
        codes, scales, value_codes, value_scales = addresses_of(*kept)
        strides, form = self._form((key, value), key_at | value_at | key_to | value_to | codes | value_codes)
        with torch.cuda.device_of(key):
            self._kernels.update_float8[(kept[1].numel(), 2)](
                codes, scales, key_at, key_to, value_codes, value_scales, value_at, value_to,
                index.inverse.data_ptr(), key.shape[1], *strides, **form,
            )  # fmt: skip
        return whole

    def extrapolate_rows(
        self, evaluations: tuple[Pair, ...], index: RowIndex, fresh: Pair, weights: Tensor
    ) -> Pair:
        """Write fresh rows to `evaluations[0]`, save the rows that they replace in `evaluations[1]`, save
        those that these replace in `evaluations[2]`, if it exists, and return K and V of all rows, in which
        cached rows are extrapolated.

        Args:
            evaluations: two or three pairs (key, value) of all rows, (bb, rows, ...) each: as of each row's
                last evaluation, as of the evaluation before it, and so on.
            index: which rows are fresh.
            fresh: (bb, r_kept, ...) each.
            weights: as in `Extrapolation` or, for three evaluations, in `QuadraticExtrapolation`.
        """
        return self._extrapolate(evaluations, index, fresh, weights)

    def _extrapolate(
        self,
        evaluations: tuple[Pair, ...],
        index: RowIndex,
        fresh: Pair,
        weights: Tensor,
        extra: tuple[Pair, Tensor] | None = None,
    ) -> Pair:
        """As `extrapolate_rows`; also writes to `extra`: the errors and sizes that `SpreadKernels` needs."""
        fresh = _readable_pair(*fresh)
        whole = tuple(index.scratch.empty(i, t, t.dtype) for i, t in enumerate(evaluations[0]))
        errors, sizes = extra or (whole, weights)
        addresses = by_pair(*evaluations[:2], evaluations[-1], fresh, whole, errors)
        strides, form = self._form(fresh, reduce(or_, addresses))
        with torch.cuda.device_of(fresh[0]):
            self._kernels.extrapolate_rows[(index.total, 2)](
                *addresses, *addresses_of(weights, sizes, index.inverse), fresh[0].shape[1], *strides, **form,
                EVALUATIONS=len(evaluations), SPREAD=extra is not None,
            )  # fmt: skip
        return whole

    def weigh(
        self,
        evaluations: tuple[Pair, ...],
        index: RowIndex,
        fresh: Pair,
        forecast: tuple[Tensor, Tensor],
        stride: int,
        ridge: float = 0.0,
    ) -> Tensor:
        """Compare forecasts with fresh rows; returns the weights of all rows for `Extrapolation`, (2, bb,
        rows), or for `QuadraticExtrapolation`, (2, 2, bb, rows).

        Args:
            evaluations, index, fresh: as in `extrapolate_rows`.
            forecast: two contiguous float32 tensors of forecast changes, in multiples of a row's last change:
                (bb, rows), for each row, and (bb, samples), for every `stride`th fresh row if the row were
                not fresh. For three evaluations, (3, bb, rows) and (3, bb, samples): w, q and q_1 of the
                formula in kv/quadratic.py.
            ridge: as in kv/gains.py; used for three evaluations only.
        """
        fresh, (weight, trial) = _readable_pair(*fresh), forecast
        (images, samples), rows = trial.shape[-2:], weight.shape[-1]
        is_curved, blocks = len(evaluations) == 3, -(-rows // BLOCK)
        sums = trial.new_empty(2, images, samples, 5 if is_curved else 2)
        weights = fresh[0].new_empty(2, *(2,) * is_curved, images, rows)
        addresses = by_pair(*evaluations[:2], evaluations[-1], fresh)
        strides, form = self._form(fresh, reduce(or_, addresses))
        weigh, more = self._kernels.weigh, {}
        if is_curved:
            weigh, more = self._kernels.weigh_both, {"RIDGE": ridge}
        with torch.cuda.device_of(trial):
            self._kernels.compare[(samples, images, 2)](
                *addresses, *addresses_of(trial, sums, index.flat), fresh[0].shape[1], stride, *strides,
                **form, EVALUATIONS=len(evaluations),
            )  # fmt: skip
            weigh[(2 * images, blocks)](
                *addresses_of(sums, weight, weights), samples, rows,
                TYPE=self._type(weights), SAMPLES=power_of_two(samples), BLOCK=BLOCK, **more,
            )  # fmt: skip
        return weights

    def _form(self, fresh: tuple[Tensor, ...], addresses: int) -> tuple[list[int], dict[str, Any]]:
        """Strides of fresh rows and the constants that kernels are compiled with; computed once per layout.

        Args:
            fresh: a key and a value, or one of them, as returned by `_readable_pair`.
            addresses: bitwise OR of the addresses of `fresh` and of all other tensors that the kernel reads
                or writes.
        """
        layout = (addresses % 16, fresh[0].dtype, *((t.shape, t.stride()) for t in fresh))
        if (form := self._forms.get(layout)) is None:
            form = self._forms[layout] = self._form_of(fresh, bool(addresses % 16))
        return form

    def _form_of(self, fresh: tuple[Tensor, ...], is_odd: bool) -> tuple[list[int], dict[str, Any]]:
        """Computes what `_form` returns. If only one of key and value has a head axis, as in SD3, the rows of
        both are read as rows of heads. `is_odd`: whether an address in `_form`'s `addresses` is not a
        multiple of 16 bytes.
        """
        heads = max(t.shape[2] if t.ndim == 4 else 1 for t in fresh)
        dim = fresh[0].shape[2:].numel()
        size, unit = dim // heads, 16 // fresh[0].element_size()
        strides = [stride for t in fresh for stride in _strides(t, heads, size)]
        if is_odd or dim % 16 or any(stride % unit for stride in strides):
            unit = 1
        return [stride // unit for stride in strides], {
            "TYPE": self._type(fresh[0]), "UNIT": unit, "DIM": dim, "HEAD": size,
            "WIDTH": power_of_two(dim), "num_warps": WARPS,
        }  # fmt: skip

    def _type(self, t: Tensor) -> Any:
        """Triton's name for the type of a tensor's numbers."""
        return getattr(self._kernels.tl, str(t.dtype).removeprefix("torch."))


def _readable(rows: Tensor) -> Tensor:
    """Rows as (bb, r, d) or (bb, r, heads, e) with the last axis contiguous; copied only if necessary."""
    rows = rows.flatten(3) if rows.ndim > 4 else rows
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _readable_pair(key: Tensor, value: Tensor) -> Pair:
    """As `_readable`, for a key and a value; if they have different numbers of heads, both are made
    contiguous.
    """
    key, value = _readable(key), _readable(value)
    if key.ndim == value.ndim == 4 and key.shape != value.shape:
        return key.contiguous(), value.contiguous()
    return key, value


def _strides(rows: Tensor, heads: int, size: int) -> tuple[int, int, int]:
    """Strides from image to image, row to row and head to head, if rows are read as `heads` heads of `size`
    numbers.
    """
    has_these = rows.ndim == 4 and rows.shape[2] == heads
    return rows.stride(0), rows.stride(1), rows.stride(2) if has_these else size


def addresses_of(*tensors: Tensor) -> list[int]:
    return [t.data_ptr() for t in tensors]


def by_pair(*pairs: Pair) -> list[int]:
    """The addresses of all keys, then those of all values, as the kernels expect them."""
    return addresses_of(*(key for key, _ in pairs), *(value for _, value in pairs))


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
