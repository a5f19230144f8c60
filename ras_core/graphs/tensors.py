"""Finds the tensors of a module, and compares lists of tensors byte by byte."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SMALL = 2**16
"""Tensors of up to this many bytes are concatenated, so that all of them are compared in one operation."""


def same_contents(known: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors on one device hold the same bytes; synchronizes with the device once."""
    if [_layout(t) for t in known] != [_layout(t) for t in given]:
        return False
    pairs = [(a, b) for a, b in zip(known, given, strict=True) if a.data_ptr() != b.data_ptr()]
    small = [pair for pair in pairs if pair[0].nbytes <= SMALL]
    large = [pair for pair in pairs if pair[0].nbytes > SMALL]
    differences = [(_bytes(a) != _bytes(b)).any() for a, b in large]
    if small:
        mine, theirs = (torch.cat([_bytes(pair[side]) for pair in small]) for side in (0, 1))
        differences.append((mine != theirs).any())
    return not differences or not bool(torch.stack(differences).any())


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """A module's own weights and buffers; instead of a quantised weight, the tensors that it consists of."""
    for each in (*module._parameters.values(), *module._buffers.values()):
        yield from parts_of(each)


def parts_of(weight: Any) -> Iterator[Tensor]:
    """The weight itself or, if the weight is quantised, the tensors that it consists of."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    if isinstance(weight, Tensor) and flatten is not None:
        for name in flatten()[0]:
            yield getattr(weight, name)
    elif isinstance(weight, Tensor):
        yield weight


def address_of(tensor: Tensor) -> tuple[Hashable, ...]:
    """The address at which a graph reads this tensor, and its layout."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _layout(t: Tensor) -> tuple:
    return t.shape, t.dtype, t.device, t.stride()


def _bytes(t: Tensor) -> Tensor:
    return t.detach().contiguous().view(-1).view(torch.uint8)
