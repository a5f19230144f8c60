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

import torch
from torch import Tensor

from .tokens import Places

logger = logging.getLogger(__name__)

Pair = tuple[Tensor, Tensor]

BLOCK = 1024
"""Weights that a program of `weigh` makes."""

DEVICES = "cuda"
"""Type of the devices that have kernels; AMD's go by the same name."""

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
        with torch.cuda.device_of(rows):
            self._kernels.encode_float8[(scales.numel(),)](
                rows, codes, scales, rows.shape[1], *rows.stride()[:3], **_form(rows)
            )

    def update_float8(self, kept: tuple[Tensor, ...], places: Places, fresh: Pair) -> Pair:
        """Keep fresh rows, and give the whole K and V with them as they came.

        Args:
            kept: bytes of the key (bb, rows, ...), its scales (bb, rows), and the same of the value.
            places: where fresh rows stand.
            fresh: (bb, r_kept, ...) each.
        """
        key, value = _alike(*fresh)
        whole = tuple(codes.new_empty(codes.shape, dtype=key.dtype) for codes in kept[::2])
        with torch.cuda.device_of(key):
            self._kernels.update_float8[(kept[1].numel(), 2)](
                kept[0], kept[1], key, whole[0], kept[2], kept[3], value, whole[1], places.inverse,
                key.shape[1], *key.stride()[:3], *value.stride()[:3], **_form(key),
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
        whole = torch.empty_like(key), torch.empty_like(value)
        with torch.cuda.device_of(key):
            self._kernels.continue_rows[(weights[0].numel(), 2)](
                key, key_before, new_key, whole[0], value, value_before, new_value, whole[1], weights,
                places.inverse, new_key.shape[1], *new_key.stride()[:3], *new_value.stride()[:3],
                **_form(new_key),
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
        with torch.cuda.device_of(key):
            self._kernels.compare[(samples, pictures, 2)](
                key, key_before, new_key, value, value_before, new_value, trial, sums, places.flat,
                new_key.shape[1], stride, *new_key.stride()[:3], *new_value.stride()[:3], **_form(new_key),
            )  # fmt: skip
            self._kernels.weigh[(2 * pictures, blocks)](
                sums, weight, weights, samples, weight.shape[1], SAMPLES=_power(samples), BLOCK=BLOCK
            )
        return weights


def fused_for(key: Tensor, value: Tensor) -> Fused | None:
    """The kernels for keys and values, (bb, r, ...) each; None where PyTorch's operations have to do."""
    if key.device.type != DEVICES or not are_fit(key, value) or torch.compiler.is_compiling():
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
    """A picture with one fresh row of two, in each kernel."""
    places = Places(torch.tensor([1], device=device), 2)
    old = torch.tensor([[[-3.0, 0.5, 1.0], [7.0, 7.0, 7.0]]], device=device, dtype=dtype)
    new = torch.tensor([[[2.0, 4.0, 6.0]]], device=device, dtype=dtype)
    expected = torch.tensor([[[-3.0, 0.5, 1.0], [2.0, 4.0, 6.0]]], device=device, dtype=dtype)
    codes, scales = torch.empty_like(old, dtype=torch.uint8), old.new_empty(1, 2)
    fused.encode_float8(old, codes, scales)
    kept = (codes, scales, codes.clone(), scales.clone())
    first = fused.update_float8(kept, places, (new, new))
    again = fused.update_float8(kept, Places(torch.tensor([0], device=device), 2), (old[:, :1], old[:, :1]))
    halves = (old.clone(), old.clone()), (0.5 * old, 0.5 * old)
    weight = torch.tensor([[2.0, 0.0]], device=device)
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


def _form(rows: Tensor) -> dict[str, int]:
    """What kernels are compiled for: (bb, r, heads, e)."""
    heads, size = rows.shape[2:]
    return {"DIM": heads * size, "HEAD": size, "WIDTH": _power(heads * size), "num_warps": WARPS}


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()
