"""Rows of the K/V cache in one pass over memory, by Triton's kernels where Triton works on the device.

What PyTorch does with these rows in five to twelve operations, each of which reads and writes them all, one
kernel does at once. Each function here has a twin in kv_storage.py or kv_forecast.py that takes its place
elsewhere. float8 rows come out the same to the last bit; forecasts, whose sums run in another order, to
rounding.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .tokens import Pair, Places

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

    def encode_float8(self, rows: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Rows (bb, r, ...) as bytes of the same shape and scales (bb, r), both contiguous."""
        rows = _headed(rows)
        strides, form = self._form((rows,), codes)
        with torch.cuda.device_of(rows):
            self._kernels.encode_float8[(scales.numel(),)](
                *_addresses(rows, codes, scales), rows.shape[1], *strides, **form
            )

    def update_float8(self, kept: tuple[Tensor, ...], places: Places, fresh: Pair) -> Pair:
        """Keep fresh rows, and give the whole K and V with them as they came.

        Args:
            kept: bytes of the key (bb, rows, ...), its scales (bb, rows), and the same of the value.
            places: where fresh rows stand.
            fresh: (bb, r_kept, ...) each.
        """
        key, value = _alike(*fresh)
        whole = tuple(places.scratch.empty(i, codes, key.dtype) for i, codes in enumerate(kept[::2]))
        strides, form = self._form((key, value), *whole, kept[0], kept[2])
        with torch.cuda.device_of(key):
            self._kernels.update_float8[(kept[1].numel(), 2)](
                *_addresses(*kept[:2], key, whole[0], *kept[2:], value, whole[1], places.inverse),
                key.shape[1], *strides, **form,
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
        (key, value), (key_before, value_before) = halves
        new_key, new_value = _alike(*fresh)
        whole = tuple(places.scratch.empty(i, t, t.dtype) for i, t in enumerate(halves[0]))
        strides, form = self._form((new_key, new_value), *whole, *halves[0], *halves[1])
        with torch.cuda.device_of(key):
            self._kernels.continue_rows[(weights[0].numel(), 2)](
                *_addresses(key, key_before, new_key, whole[0], value, value_before, new_value, whole[1]),
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
        (key, value), (key_before, value_before) = halves
        new_key, new_value = _alike(*fresh)
        pictures, samples = trial.shape
        sums = trial.new_empty(2, pictures, samples, 2)
        weights = new_key.new_empty(2, *weight.shape)
        blocks = -(-weight.shape[1] // BLOCK)
        strides, form = self._form((new_key, new_value), *halves[0], *halves[1])
        with torch.cuda.device_of(key):
            self._kernels.compare[(samples, pictures, 2)](
                *_addresses(key, key_before, new_key, value, value_before, new_value),
                *_addresses(trial, sums, places.flat), new_key.shape[1], stride, *strides, **form,
            )  # fmt: skip
            self._kernels.weigh[(2 * pictures, blocks)](
                *_addresses(sums, weight, weights), samples, weight.shape[1],
                TYPE=self._type(weights), SAMPLES=_power(samples), BLOCK=BLOCK,
            )  # fmt: skip
        return weights

    def _form(self, fresh: tuple[Tensor, ...], *whole: Tensor) -> tuple[list[int], dict[str, Any]]:
        """Strides of fresh rows, (bb, r, heads, e) each, and what kernels are compiled for.

        Args:
            fresh: a key and a value, or one of them.
            whole: contiguous tensors whose rows are read or written beside them.
        """
        heads, size = fresh[0].shape[2:]
        unit = 16 // fresh[0].element_size()
        strides = [stride for rows in fresh for stride in rows.stride()[:3]]
        is_odd = heads * size % 16 or any(t.data_ptr() % 16 for t in (*fresh, *whole))
        if is_odd or any(stride % unit for stride in strides):
            unit = 1
        return [stride // unit for stride in strides], {
            "TYPE": self._type(fresh[0]), "UNIT": unit, "DIM": heads * size, "HEAD": size,
            "WIDTH": _power(heads * size), "num_warps": WARPS,
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
        from . import kernels

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


def _alike(key: Tensor, value: Tensor) -> Pair:
    """Both with the same heads: SD3's code has values in heads, and keys in one piece."""
    key, value = _headed(key), _headed(value)
    if key.shape == value.shape:
        return key, value
    heads = max(key.shape[2:], value.shape[2:])
    return key.flatten(2).unflatten(2, heads), value.flatten(2).unflatten(2, heads)


def _headed(rows: Tensor) -> Tensor:
    """(bb, r, ...) -> (bb, r, heads, e), numbers of a head next to each other; a copy only where need be."""
    rows = rows[:, :, None] if rows.ndim == 3 else rows
    rows = rows.flatten(3) if rows.ndim > 4 else rows
    return rows if rows.stride(3) == 1 else rows.contiguous()


def _addresses(*tensors: Tensor) -> list[int]:
    return [t.data_ptr() for t in tensors]


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
