"""Rows of the K/V cache in one pass over memory, by Triton's kernels where Triton works on the device.

What PyTorch does with these rows in five to twelve operations, each of which reads and writes them all, one
kernel does at once. Each function here has a twin in kv/storage.py or kv/forecast.py that takes its place
elsewhere. float8 rows come out the same to the last bit; forecasts, whose sums run in another order, to
rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..rows import Pair, Places

logger = logging.getLogger(__name__)

BLOCK = 1024
"""Weights that a program of `weigh` makes."""

DEVICE_TYPE = "cuda"
"""Of devices that have kernels; AMD's go by the same name."""

WARPS = 2
"""Of a program for a row: fastest for rows of 768 to 2432 numbers on an H100, by a little."""


class Fused:
    """The kernels of one module, for rows on its device.

    Args:
        kernels: the module `kernels`.
    """

    def __init__(self, kernels: ModuleType):
        self._kernels = kernels
        self._forms: dict[Hashable, tuple[list[int], dict[str, Any]]] = {}  # by layout of the fresh rows

    def encode_float8(self, rows: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Rows (bb, r, ...) as bytes of the same shape and scales (bb, r), both contiguous."""
        rows = _readable(rows)
        at, codes_at, scales_at = _addresses(rows, codes, scales)
        strides, form = self._form((rows,), at | codes_at)
        with torch.cuda.device_of(rows):
            self._kernels.encode_float8[(scales.numel(),)](
                at, codes_at, scales_at, rows.shape[1], *strides, **form
            )

    def update_float8(self, kept: tuple[Tensor, ...], places: Places, fresh: Pair) -> Pair:
        """Keep fresh rows, and give the whole K and V with them as they came.

        Args:
            kept: bytes of the key (bb, rows, ...), its scales (bb, rows), and the same of the value.
            places: where fresh rows stand.
            fresh: (bb, r_kept, ...) each.
        """
        key, value = _readable_pair(*fresh)
        whole = tuple(places.scratch.empty(i, codes, key.dtype) for i, codes in enumerate(kept[::2]))
        (key_at, value_at), (key_to, value_to) = _addresses(key, value), _addresses(*whole)
        codes, scales, value_codes, value_scales = _addresses(*kept)
        strides, form = self._form((key, value), key_at | value_at | key_to | value_to | codes | value_codes)
        with torch.cuda.device_of(key):
            self._kernels.update_float8[(kept[1].numel(), 2)](
                codes, scales, key_at, key_to, value_codes, value_scales, value_at, value_to,
                places.inverse.data_ptr(), key.shape[1], *strides, **form,
            )  # fmt: skip
        return whole

    def continue_rows(self, halves: tuple[Pair, Pair], places: Places, fresh: Pair, weights: Tensor) -> Pair:
        """Keep fresh rows and what was before, and give the whole K and V, cached rows continued.

        Args:
            halves: key and value of all rows as last evaluated, and as before that, (bb, rows, ...) each.
            places: where fresh rows stand.
            fresh: (bb, r_kept, ...) each.
            weights: (2, bb, rows) of keys and of values; those of fresh rows have to be 1.
        """
        new_key, new_value = _readable_pair(*fresh)
        whole = tuple(places.scratch.empty(i, t, t.dtype) for i, t in enumerate(halves[0]))
        (key_at, value_at), (key_to, value_to) = _addresses(new_key, new_value), _addresses(*whole)
        (key, value), (key_before, value_before) = (_addresses(*half) for half in halves)
        everything = key | value | key_before | value_before | key_at | value_at | key_to | value_to
        strides, form = self._form((new_key, new_value), everything)
        with torch.cuda.device_of(new_key):
            self._kernels.continue_rows[(weights[0].numel(), 2)](
                key, key_before, key_at, key_to, value, value_before, value_at, value_to,
                *_addresses(weights, places.inverse), new_key.shape[1], *strides, **form,
            )  # fmt: skip
        return whole

    def weigh(
        self,
        halves: tuple[Pair, Pair],
        places: Places,
        fresh: Pair,
        weight: Tensor,
        trial: Tensor,
        stride: int,
    ) -> Tensor:
        """Weights of all rows, (2, bb, rows), from what fresh ones say of their own forecasts.

        Args:
            halves, places, fresh: as above.
            weight: (bb, rows) float32 of the last change.
            trial: (bb, samples) float32, of every `stride`th fresh row before it was evaluated.
        """
        new_key, new_value = _readable_pair(*fresh)
        images, samples = trial.shape
        sums = trial.new_empty(2, images, samples, 2)
        weights = new_key.new_empty(2, *weight.shape)
        blocks = -(-weight.shape[1] // BLOCK)
        key_at, value_at = _addresses(new_key, new_value)
        (key, value), (key_before, value_before) = (_addresses(*half) for half in halves)
        everything = key | value | key_before | value_before | key_at | value_at
        strides, form = self._form((new_key, new_value), everything)
        with torch.cuda.device_of(new_key):
            self._kernels.compare[(samples, images, 2)](
                key, key_before, key_at, value, value_before, value_at,
                *_addresses(trial, sums, places.flat), new_key.shape[1], stride, *strides, **form,
            )  # fmt: skip
            self._kernels.weigh[(2 * images, blocks)](
                *_addresses(sums, weight, weights), samples, weight.shape[1],
                TYPE=self._type(weights), SAMPLES=_power(samples), BLOCK=BLOCK,
            )  # fmt: skip
        return weights

    def _form(self, fresh: tuple[Tensor, ...], addresses: int) -> tuple[list[int], dict[str, Any]]:
        """Strides of fresh rows and the constants that kernels are compiled for; computed once per layout.

        Args:
            fresh: a key and a value, or one of them, as `_readable_pair` returns them.
            addresses: bitwise OR of the addresses of these and of every tensor that is read or written.
        """
        layout = (addresses % 16, fresh[0].dtype, *((t.shape, t.stride()) for t in fresh))
        if (form := self._forms.get(layout)) is None:
            form = self._forms[layout] = self._form_of(fresh, bool(addresses % 16))
        return form

    def _form_of(self, fresh: tuple[Tensor, ...], is_odd: bool) -> tuple[list[int], dict[str, Any]]:
        """As `_form`. A key without a head axis is read by head if the value has one, as in SD3."""
        heads = max(t.shape[2] if t.ndim == 4 else 1 for t in fresh)
        dim = fresh[0].shape[2:].numel()
        size, unit = dim // heads, 16 // fresh[0].element_size()
        strides = [stride for t in fresh for stride in _strides(t, heads, size)]
        if is_odd or dim % 16 or any(stride % unit for stride in strides):
            unit = 1
        return [stride // unit for stride in strides], {
            "TYPE": self._type(fresh[0]), "UNIT": unit, "DIM": dim, "HEAD": size,
            "WIDTH": _power(dim), "num_warps": WARPS,
        }  # fmt: skip

    def _type(self, t: Tensor) -> Any:
        """Triton's name for the type of a tensor's numbers."""
        return getattr(self._kernels.tl, str(t.dtype).removeprefix("torch."))


def fused_for(key: Tensor, value: Tensor) -> Fused | None:
    """The kernels for keys and values, (bb, r, ...) each; None where PyTorch's operations have to do."""
    if key.device.type != DEVICE_TYPE or not are_fit(key, value) or torch.compiler.is_compiling():
        return None
    return _on(key.device, key.dtype)


def are_fit(key: Tensor, value: Tensor) -> bool:
    """Whether one kernel can take both: as many rows of the same length, in heads or in one piece."""
    return key.dtype == value.dtype and key.shape[:2] == value.shape[:2] and key.numel() == value.numel()


@cache
def _on(device: torch.device, dtype: torch.dtype) -> Fused | None:
    """Kernels that compile for numbers of a type on a device and are right there; the log says why there are
    none.
    """
    try:
        from . import triton_kernels as kernels

        fused = Fused(kernels)
        if gives_known_numbers(fused, device, dtype):
            return fused
        problem = "they give wrong numbers"
    except torch.cuda.OutOfMemoryError:
        raise  # it says nothing of the kernels, and the run knows what to do
    except ImportError:
        problem = "there is no Triton"
    except Exception as error:  # an old Triton, a compiler, a driver, a GPU that it does not know
        problem = _first_line(error)
    logger.info(
        "Multirate RAS: no kernels for %s on %s (%s); kv_cache = fp8 and forecast take longer.",
        dtype, device, problem,
    )  # fmt: skip
    return None


def gives_known_numbers(fused: Fused, device: torch.device, dtype: torch.dtype) -> bool:
    """A picture with one fresh row of two, in each kernel. Rows are long enough to be read in wide pieces."""
    at_start, at_end = (torch.tensor([row], device=device) for row in (0, 1))
    rows = [[-3.0, 0.5, 1.0] * 256, [2.0, 4.0, 6.0] * 256]
    expected = torch.tensor([rows], device=device, dtype=dtype)
    new, old = expected[:, 1:], expected.clone()
    old[:, 1] = 7.0
    codes, scales = torch.empty_like(old, dtype=torch.uint8), old.new_empty(1, 2)
    fused.encode_float8(old, codes, scales)
    kept = (codes, scales, codes.clone(), scales.clone())
    first = fused.update_float8(kept, Places(at_end, 2), (new, new))
    again = fused.update_float8(kept, Places(at_start, 2), (old[:, :1], old[:, :1]))
    halves = (old.clone(), old.clone()), (0.5 * old, 0.5 * old)
    weight = torch.tensor([[2.0, 0.0]], device=device)
    places = Places(at_end, 2)
    weights = fused.weigh(halves, places, (2 * old[:, 1:], old[:, 1:]), weight, weight[:, :1] / 2, 1)
    ahead = fused.continue_rows(halves, places, (new, new), weights)
    results = (*first, *again, ahead[1], halves[0][0])
    return (
        all(torch.equal(result, expected) for result in results)
        and weights.tolist() == [[[3.0, 1.0]], [[1.0, 1.0]]]
        and torch.equal(ahead[0][:, 0], 2 * old[:, 0])
        and torch.equal(halves[1][0][:, 1], old[:, 1])
    )


def _first_line(error: BaseException) -> str:
    """Of what it came from in the end: what wraps it quotes code."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _readable(rows: Tensor) -> Tensor:
    """(bb, r, d) or (bb, r, heads, e) with the last axis contiguous; copies only if necessary."""
    rows = rows.flatten(3) if rows.ndim > 4 else rows
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _readable_pair(key: Tensor, value: Tensor) -> Pair:
    """Both in layouts that can be read with the same heads."""
    key, value = _readable(key), _readable(value)
    if key.ndim == value.ndim == 4 and key.shape != value.shape:
        return key.contiguous(), value.contiguous()
    return key, value


def _strides(rows: Tensor, heads: int, size: int) -> tuple[int, int, int]:
    """Strides between images, rows and heads, for rows read as `heads` heads of this size."""
    has_these = rows.ndim == 4 and rows.shape[2] == heads
    return rows.stride(0), rows.stride(1), rows.stride(2) if has_these else size


def _addresses(*tensors: Tensor) -> list[int]:
    return [t.data_ptr() for t in tensors]


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
