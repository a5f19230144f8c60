"""Whether the Triton kernels work for given keys and values: they are tested once per device and dtype."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from ..rows import RowIndex
from .triton_launch import RowKernels

logger = logging.getLogger(__name__)

DEVICE_TYPE = "cuda"
"""The kernels run only on devices of this type; PyTorch uses the name "cuda" for AMD GPUs too."""


def kernels_for(key: Tensor, value: Tensor) -> RowKernels | None:
    """The kernels for keys and values, (bb, r, ...) each; None if PyTorch's operations must be used."""
    if key.device.type != DEVICE_TYPE or not are_fit(key, value) or torch.compiler.is_compiling():
        return None
    return _on(key.device, key.dtype)


def are_fit(key: Tensor, value: Tensor) -> bool:
    """Whether one kernel launch can process both key and value: they have the same number of rows, the same
    number of numbers in each row (either may have a head axis) and the same dtype.
    """
    return key.dtype == value.dtype and key.shape[:2] == value.shape[:2] and key.numel() == value.numel()


@cache
def _on(device: torch.device, dtype: torch.dtype) -> RowKernels | None:
    """The kernels, if they compile for this dtype on this device and give correct results; otherwise None,
    and the reason is logged.
    """
    try:
        from . import triton_kernels

        kernels = RowKernels(triton_kernels)
        if gives_known_numbers(kernels, device, dtype):
            return kernels
        problem = "they give wrong results"
    except torch.cuda.OutOfMemoryError:
        raise  # no fault of the kernels; the run handles the error and tries again with less memory
    except ImportError:
        problem = "Triton is not installed"
    except Exception as error:  # from an old Triton, a compiler, a driver, an unknown GPU
        problem = _first_line(error)
    logger.info(
        "Multirate RAS: no Triton kernels for %s on %s (%s); kv_cache = fp8 (float8) or forecast is slower.",
        dtype, device, problem,
    )  # fmt: skip
    return None


def gives_known_numbers(kernels: RowKernels, device: torch.device, dtype: torch.dtype) -> bool:
    """Test each kernel on one image of two rows, one of them fresh. Rows have 768 numbers, so that the
    kernels' path that reads 16 bytes at a time is tested.
    """
    rows = [[-3.0, 0.5, 1.0] * 256, [2.0, 4.0, 6.0] * 256]
    expected = torch.tensor([rows], device=device, dtype=dtype)
    old = expected.clone()
    old[:, 1] = 7.0
    return _float8_is_right(kernels, expected, old) and _extrapolation_is_right(kernels, expected, old)


def _float8_is_right(kernels: RowKernels, expected: Tensor, old: Tensor) -> bool:
    at_start, at_end = (torch.tensor([row], device=old.device) for row in (0, 1))
    new = expected[:, 1:]
    codes, scales = torch.empty_like(old, dtype=torch.uint8), old.new_empty(1, 2)
    kernels.encode_float8(old, codes, scales)
    kept = (codes, scales, codes.clone(), scales.clone())
    first = kernels.update_float8(kept, RowIndex(at_end, 2), (new, new))
    again = kernels.update_float8(kept, RowIndex(at_start, 2), (old[:, :1], old[:, :1]))
    return all(torch.equal(result, expected) for result in (*first, *again))


def _extrapolation_is_right(kernels: RowKernels, expected: Tensor, old: Tensor) -> bool:
    """Test extrapolation with a key that has changed by twice its forecast, which gives the largest gain, 1,
    and with a value that has not changed, which gives the gain 0.
    """
    new, index = expected[:, 1:], RowIndex(torch.tensor([1], device=old.device), 2)
    halves = (old.clone(), old.clone()), (0.5 * old, 0.5 * old)
    weight = torch.tensor([[2.0, 0.0]], device=old.device)
    weights = kernels.weigh(halves, index, (2 * old[:, 1:], old[:, 1:]), weight, weight[:, :1] / 2, 1)
    key, value = kernels.extrapolate_rows(halves, index, (new, new), weights)
    return (
        torch.equal(value, expected)
        and torch.equal(halves[0][0], expected)
        and weights.tolist() == [[[3.0, 1.0]], [[1.0, 1.0]]]
        and torch.equal(key[:, 0], 2 * old[:, 0])
        and torch.equal(halves[1][0][:, 1], old[:, 1])
    )


def _first_line(error: BaseException) -> str:
    """Class and first line of the error's root cause. Triton's own errors, raised from it, are not used,
    because their messages quote kernel code.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
