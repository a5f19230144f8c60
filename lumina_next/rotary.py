"""Rotary positions of Lumina-Next along two axes, scaled by image size and time."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10000.0


def rotary_table(
    grid: tuple[int, int], head_dim: int, linear_factor: Tensor, ntk_factor: Tensor, device: torch.device
) -> Tensor:
    """Rotation of each pair of channels at each token: (1, h * w, 1, head_dim / 2, 2, 2), float32.

    Pairs alternate between the axes: even pairs rotate by the token's row, odd pairs by its column.

    Args:
        grid: (h, w) tokens, row by row.
        head_dim: channels of a head, divisible by 4.
        linear_factor: (1,), divides all frequencies, so positions move closer together.
        ntk_factor: (1,), multiplies the base, which lowers mainly the low frequencies.
        device: the device of the table.
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

    Until the watershed, while the layout of the image develops, all frequencies are scaled to the image size.
    Afterwards only low frequencies are, so that details keep the spacing that the model was trained on.

    Args:
        time: (1,), 0 for noise, 1 for the image.
        watershed: a time, as above; with 1, all frequencies are scaled in the whole run.
        scale: square root of the image's area over that of the training images.
    """
    is_early = time < watershed
    one = torch.ones_like(time)
    return torch.where(is_early, scale * one, one), torch.where(is_early, one, scale * one)
