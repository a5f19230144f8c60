"""Rotary positions of Lumina-Next: two axes, stretched with image size and time."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10000.0


def rotary_table(
    grid: tuple[int, int], head_dim: int, linear_factor: Tensor, ntk_factor: Tensor, device: torch.device
) -> Tensor:
    """Rotation of each pair of channels at each token: (1, h * w, 1, head_dim / 2, 2, 2), float32.

    Pairs alternate between the axes: even ones turn with the token's row, odd ones with its column.

    Args:
        grid: (h, w) tokens, row by row.
        head_dim: channels of a head, divisible by 4.
        linear_factor: (1,), divides every frequency, so positions move closer together.
        ntk_factor: (1,), multiplies the base, so only the slow frequencies become slower.
        device: where the table is used.
    """
    h, w = grid
    exponent = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device=device) / (head_dim // 2)
    frequency = 1.0 / (BASE * ntk_factor) ** exponent / linear_factor  # (head_dim / 4,)
    rows = torch.arange(h, device=device)[:, None] * frequency
    columns = torch.arange(w, device=device)[:, None] * frequency
    angle = torch.stack((rows[:, None].expand(-1, w, -1), columns[None].expand(h, -1, -1)), dim=-1)
    cos, sin = angle.cos(), angle.sin()  # (h, w, head_dim / 4, 2)
    return torch.stack((cos, -sin, sin, cos), dim=-1).reshape(1, h * w, 1, head_dim // 2, 2, 2)


def time_aware_factors(time: Tensor, watershed: float, scale: float) -> tuple[Tensor, Tensor]:
    """Linear and NTK factor at a time (Lumina-Next, section 2.3): (1,) each.

    Up to the watershed, which sets the layout of the image, every frequency is stretched to the image size.
    After it only the slow ones are, so that details keep the spacing that the model was trained on.

    Args:
        time: (1,), 0 for noise, 1 for the image.
        watershed: on the same scale as `time`; 1 stretches linearly throughout.
        scale: side of the image over that of the training images, from their areas.
    """
    is_early = time < watershed
    one = torch.ones_like(time)
    return torch.where(is_early, scale * one, one), torch.where(is_early, one, scale * one)
