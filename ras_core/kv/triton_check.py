"""Tests whether the Triton kernels work for given keys and values. The kernels form three groups; each group
is tested when it is first needed, once per device and dtype.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from ..rows import RowIndex, scatter_into
from .extrapolation import Extrapolation
from .spread import Spread
from .triton_launch import RowKernels
from .triton_spread_launch import SpreadKernels

logger = logging.getLogger(__name__)

DEVICE_TYPE = "cuda"
"""The kernels run only on devices of this type; PyTorch uses the name "cuda" for AMD GPUs too."""

BASIC, FORECAST2, SPREAD = "basic", "forecast2", "spread"
"""The groups of kernels: those for float8 rows and for forecasts along one change, those for forecasts along
two changes, and those that spread forecast errors."""

SLOWER = {
    BASIC: "kv_cache = fp8 (float8) or forecast is slower",
    FORECAST2: "kv_cache = forecast2 is slower",
    SPREAD: "spreading the errors of forecasts is slower",
}
"""What the log says if a group of kernels is not used."""


def kernels_for(key: Tensor, value: Tensor, group: str = BASIC) -> SpreadKernels | None:
    """The kernels for this key and value, (bb, r, ...) each, after a test of those in `group`; None if
    PyTorch's operations must be used.
    """
    if key.device.type != DEVICE_TYPE or not are_fit(key, value) or torch.compiler.is_compiling():
        return None
    if group != BASIC and _on(key.device, key.dtype) is None:
        return None  # the log has the reason already
    return _on(key.device, key.dtype, group)


def are_fit(key: Tensor, value: Tensor) -> bool:
    """Whether one kernel launch can process both key and value: they have the same number of rows, the same
    number of numbers in each row (either may have a head axis) and the same dtype.
    """
    return key.dtype == value.dtype and key.shape[:2] == value.shape[:2] and key.numel() == value.numel()


@cache
def _on(device: torch.device, dtype: torch.dtype, group: str = BASIC) -> SpreadKernels | None:
    """The kernels, if those of `group` compile for this dtype on this device and give correct results;
    otherwise None, and the reason is logged.
    """
    try:
        from . import triton_kernels

        kernels = SpreadKernels(triton_kernels)
        if _are_right(group, kernels, device, dtype):
            return kernels
        problem = "they give wrong results"
    except torch.cuda.OutOfMemoryError:
        raise  # no fault of the kernels; the run handles the error and tries again with less memory
    except ImportError:
        problem = "Triton is not installed"
    except Exception as error:  # from an old Triton, a compiler, a driver, an unknown GPU
        problem = _first_line(error)
    logger.info(
        "Multirate RAS: no Triton kernels for %s on %s (%s); %s.", dtype, device, problem, SLOWER[group]
    )
    return None


def _are_right(group: str, kernels: SpreadKernels, device: torch.device, dtype: torch.dtype) -> bool:
    if group == FORECAST2:
        return forecast2_gives_known_numbers(kernels, device, dtype)
    if group == SPREAD:
        return spread_agrees_with_torch(kernels, device, dtype)
    return gives_known_numbers(kernels, device, dtype)


def gives_known_numbers(kernels: RowKernels, device: torch.device, dtype: torch.dtype) -> bool:
    """Test each kernel of the group BASIC on one image of two rows, one of them fresh. Rows have 768 numbers,
    so that the kernels' path that reads 16 bytes at a time is tested.
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
    forecast = weight, weight[:, :1] / 2
    weights = kernels.weigh(halves, index, (2 * old[:, 1:], old[:, 1:]), forecast, 1)
    key, value = kernels.extrapolate_rows(halves, index, (new, new), weights)
    return (
        torch.equal(value, expected)
        and torch.equal(halves[0][0], expected)
        and weights.tolist() == [[[3.0, 1.0]], [[1.0, 1.0]]]
        and torch.equal(key[:, 0], 2 * old[:, 0])
        and torch.equal(halves[1][0][:, 1], old[:, 1])
    )


def forecast2_gives_known_numbers(kernels: RowKernels, device: torch.device, dtype: torch.dtype) -> bool:
    """Test the kernels for three evaluations on two rows, `a` and `b`, of which the second is fresh. The last
    change of both is `a`, and the change before it is `b`. The fresh key has changed by twice the sum of both
    forecasts, which gives the largest gains, 1. The value has changed in the opposite direction, which gives
    the gains 0.
    """
    a, b = (torch.tensor(row * 256, device=device, dtype=dtype) for row in ([1.0, 2, 3], [3.0, 0, -1]))
    last, index = torch.stack([a, b])[None], RowIndex(torch.tensor([1], device=device), 2)
    evaluations = tuple((rows.clone(), rows.clone()) for rows in (last, last - a, last - a - b))
    weight = torch.tensor([[[0.5, 0.0]], [[0.25, 0.0]], [[0.5, 0.0]]], device=device)
    moved, trial = 4 * a - 2 * b, torch.ones(3, 1, 1, device=device)
    fresh = last[:, 1:] + moved, last[:, 1:] - moved
    weights = kernels.weigh(evaluations, index, fresh, (weight, trial), 1, 1e-3)
    whole = kernels.extrapolate_rows(evaluations, index, fresh, weights)
    expected = torch.stack([1.75 * a - 0.5 * b, b + moved]), torch.stack([a, b - moved])
    return (
        weights.tolist() == [[[[0.75, 0.0]], [[-0.5, 0.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]]
        and all(torch.equal(rows[0], right) for rows, right in zip(whole, expected, strict=True))
        and all(torch.equal(evaluations[0][i], torch.stack([a, whole[i][0, 1]])[None]) for i in (0, 1))
        and all(torch.equal(rows[0], torch.stack([a - a, b])) for rows in evaluations[1])
        and all(torch.equal(rows[0], torch.stack([-b, b - a])) for rows in evaluations[2])
    )


def spread_agrees_with_torch(kernels: SpreadKernels, device: torch.device, dtype: torch.dtype) -> bool:
    """Test the kernels that spread errors against PyTorch's operations, on one image of 2 x 4 tokens after a
    text row: with two evaluations, and with three that give the same forecasts.
    """
    numbers = torch.arange(2 * 9 * 768, device=device).view(2, 1, 9, 768)
    key, value = (1.5 * torch.sin(0.37 * numbers)).to(dtype)
    active = torch.tensor([[0, 1, 4, 5]], device=device)
    index = RowIndex.of(active, 8, 1, 0)
    ages, change = (torch.linspace(first, 0.5, 8, device=device)[None] for first in (0.1, 1.0))
    extrapolation = Extrapolation(change, change.gather(1, active), 1, 0, Spread((2, 4), active, ages))
    evaluations = (key, value), (0.75 * key, 0.5 * value), (key, value)
    fresh = tuple((1.25 * rows + 0.125)[:, index.flat] for rows in (key, value))
    weights = (1 + extrapolation.row_weight).expand(2, -1, -1).to(dtype).contiguous()
    expected = []
    for rows, before, new, weight in zip(*evaluations[:2], fresh, weights, strict=True):
        whole = torch.lerp(before, rows, weight[..., None])
        extrapolation.correct(whole, new, rows, before)
        scatter_into(whole, index.flat, new)
        expected.append(whole)
    for count, factors in ((2, weights), (3, torch.stack([weights - 1, 0 * weights], dim=1))):
        kept = tuple((key.clone(), value.clone()) for key, value in evaluations[:count])
        extrapolation.weights = factors
        whole = kernels.spread_rows(kept, index, fresh, extrapolation)
        if not all(_agree(*pair) for pair in zip(whole, expected, strict=True)):
            return False
        kept_rows = (rows[:, index.flat] for pair in kept[:2] for rows in pair)
        right_rows = (*fresh, key[:, index.flat], value[:, index.flat])
        if not all(torch.equal(*pair) for pair in zip(kept_rows, right_rows, strict=True)):
            return False
    return True


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by rounding only."""
    tolerance = 4 * max(torch.finfo(found.dtype).eps, 1e-5)
    return torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


def _first_line(error: BaseException) -> str:
    """Class and first line of the error's root cause. Triton's own errors, raised from it, are not used,
    because their messages quote kernel code.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
