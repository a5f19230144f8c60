"""Rotary positions of Lumina-Next along two axes, scaled depending on image size and time."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10000.0


def rotary_table(
    grid: tuple[int, int], head_dim: int, linear_factor: Tensor, ntk_factor: Tensor, device: torch.device
) -> Tensor:
    """Rotation of each pair of channels at each token: (1, h * w, 1, head_dim / 2, 2, 2), float32.

    Channel pairs with an even index rotate by the token's row position, pairs with an odd index by its column
    position.

    Args:
        grid: (h, w), size of the token grid; tokens are ordered row by row.
        head_dim: channels of a head, divisible by 4.
        linear_factor: (1,), divides all frequencies, which has the effect of moving positions closer
            together.
        ntk_factor: (1,), multiplies the base of the frequencies, which lowers mainly the low frequencies.
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
    """The linear and the NTK factor for `rotary_table` at a time: (1,) each (Lumina-Next paper, section 2.3).

    Before the time `watershed`, while the layout of the image develops, all frequencies are scaled to the
    image size. After it, mainly the low frequencies are scaled, so that details keep the token spacing used
    in training.

    Args:
        time: (1,), 0 for noise, 1 for the image.
        watershed: the time at which the scaling changes; if it is 1, all frequencies are scaled in all steps.
        scale: square root of (area of the image / area of the training images).
    """
    is_early = time < watershed
    one = torch.ones_like(time)
    return torch.where(is_early, scale * one, one), torch.where(is_early, one, scale * one)
