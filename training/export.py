"""Pack trained weights: large matrices as int8 with one fp16 scale per row, the rest as fp16."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..demo.loader import SCALE_SUFFIX

SMALLEST_INT8 = 32768
CLIP_CANDIDATES = 24


def quantise_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a matrix to int8 (out, in) with an fp16 scale per row (out,).

    For each row, `CLIP_CANDIDATES` scales are tried, and the scale with the smallest squared error is used.
    All scales except the largest clip the largest values of the row.
    """
    peak = matrix.abs().amax(dim=1).clamp(min=1e-8)
    best_error = torch.full_like(peak, float("inf"))
    best_scale = peak / 127
    for share in torch.linspace(0.6, 1.0, CLIP_CANDIDATES).tolist():
        scale = (peak * share / 127).half().float().clamp(min=1e-7)
        error = (_round(matrix, scale) * scale[:, None] - matrix).square().sum(dim=1)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    best_scale = best_scale.half()
    return _round(matrix, best_scale.float()).to(torch.int8), best_scale


def _round(matrix: Tensor, scale: Tensor) -> Tensor:
    return (matrix / scale[:, None]).round().clamp(-127, 127)


def pack_int8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `loader.unpack_int8`. Leaves out the position table, which the loader computes."""
    packed = {}
    for name, tensor in state.items():
        tensor = tensor.detach().float()
        if name == "pos_embed":
            continue
        if tensor.ndim == 2 and tensor.numel() >= SMALLEST_INT8:
            packed[name], packed[name + SCALE_SUFFIX] = quantise_rows(tensor)
        else:
            packed[name] = tensor.half()
    return {name: tensor.contiguous().cpu() for name, tensor in packed.items()}


def save_packed(state: dict[str, Tensor], path: Path) -> None:
    """Pack the weights with `pack_int8` and write them to a file atomically."""
    partial = path.with_suffix(".part")
    save_file(pack_int8(state), partial, metadata={"format": "pt"})
    partial.rename(path)
