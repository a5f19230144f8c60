"""Faster casts of float8 weights in captured calls.

A network whose weights are kept as float8 casts each of them at every use. PyTorch's cast kernel is
compute-bound: on an H100 all casts of one step of SD3-medium take 6.7 ms, which is half of the time of a
captured regional step that processes 12.5 % of the tokens. Casting float8 to a wider type is exact, so this
package's kernel, which is memory-bound, gives the same numbers.

Only captured calls use this kernel. To find the casts, `QuickCasts` intercepts every operation of a call. A
captured call pays for this only once, during the capture. In eager calls, interception would cost more time
than the kernel saves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

logger = logging.getLogger(__name__)

BLOCK = 4096
"""How many numbers one program (thread block) of the Triton kernel casts."""

WARPS = 8

ALIGNMENT = 16
"""The kernel reads only tensors whose addresses are multiples of this many bytes."""

TARGETS = (torch.float16, torch.bfloat16, torch.float32)
DEVICE_TYPE = "cuda"
FLOAT8 = getattr(torch, "float8_e4m3fn", None)


def quick_casts(network: nn.Module, device: torch.device) -> AbstractContextManager[Any]:
    """A context manager for the capture of a network's call, in which the kernel casts the float8 weights. It
    does nothing if no weight is float8, or the kernel does not work on `device`.
    """
    if FLOAT8 is None or device.type != DEVICE_TYPE or not any(map(_is_float8, network.parameters())):
        return nullcontext()
    # The kernel is compiled and checked here, in the eager run before the capture, not at its first cast.
    return nullcontext() if _kernel_on(device) is None else QuickCasts()


class QuickCasts(TorchDispatchMode):
    """Casts float8_e4m3fn tensors with the kernel; all other operations run unchanged."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        dtype = _cast_to(func, args, kwargs)
        if dtype in TARGETS and _is_readable(args[0]):
            kernel = _kernel_on(args[0].device)
            if kernel is not None:
                return cast_by(kernel, args[0], dtype)
        return func(*args, **kwargs)


def _is_float8(weight: Tensor) -> bool:
    """Whether the network uses this weight as float8. Under dynamic VRAM (ComfyUI's mode in which weights may
    be evicted from device memory), a parameter has the dtype of the file, and ComfyUI sets the parameter's
    attribute `_model_dtype` to the dtype that the network uses.
    """
    return FLOAT8 in (weight.dtype, getattr(weight, "_model_dtype", None))


def cast_by(kernel: ModuleType, codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a contiguous float8_e4m3fn tensor of any shape to `dtype`, with `cast` of the module `kernel`."""
    numbers = torch.empty_like(codes, dtype=dtype)
    count = codes.numel()
    if count:
        with torch.cuda.device_of(codes):
            kernel.cast[(-(-count // BLOCK),)](
                codes.data_ptr(), numbers.data_ptr(), count,
                TYPE=getattr(kernel.tl, str(dtype).removeprefix("torch.")), BLOCK=BLOCK, num_warps=WARPS,
            )  # fmt: skip
    return numbers


def gives_known_numbers(kernel: ModuleType, device: torch.device) -> bool:
    """Whether the kernel casts each of the 256 float8 codes to the same number as PyTorch does."""
    codes = torch.arange(256, dtype=torch.uint8, device=device).view(FLOAT8)
    return all(_same_numbers(cast_by(kernel, codes, dtype), codes.to(dtype)) for dtype in TARGETS)


def _same_numbers(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found.nan_to_num(nan=500.0), expected.nan_to_num(nan=500.0))


def _cast_to(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype that an operation casts its input to; None if the operation does anything but cast."""
    if func is torch.ops.aten._to_copy.default:
        changed = {name for name, value in kwargs.items() if value}
        return kwargs.get("dtype") if changed <= {"dtype", "non_blocking"} else None
    # In inference mode, PyTorch dispatches `Tensor.to` as one operation, with the arguments tensor, dtype,
    # non_blocking, copy and memory_format.
    is_plain = func is torch.ops.aten.to.dtype and 2 <= len(args) <= 4 and not kwargs.get("memory_format")
    return args[1] if is_plain else None


def _is_readable(source: Tensor) -> bool:
    """Whether the kernel can cast this tensor: float8, contiguous, aligned, and on a GPU."""
    return (
        type(source) in (Tensor, nn.Parameter)
        and source.dtype == FLOAT8
        and source.device.type == DEVICE_TYPE
        and source.is_contiguous()
        and source.data_ptr() % ALIGNMENT == 0
    )


@cache
def _kernel_on(device: torch.device) -> ModuleType | None:
    """The module `cast_kernel` if its kernel compiles for the device and casts correctly; None otherwise."""
    try:
        from . import cast_kernel

        if gives_known_numbers(cast_kernel, device):
            return cast_kernel
        problem = "the kernel returned wrong results"
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # Triton is missing or old, or fails with this compiler, driver or GPU
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    logger.info(
        "Multirate RAS: the Triton kernel for float8 weights is not used on %s (%s); PyTorch casts them"
        " instead.",
        device, problem,
    )  # fmt: skip
    return None
