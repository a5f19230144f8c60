"""User preferences for token selection: image regions whose tokens are to be selected more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RASError, quoted
from .grid import TokenGrid

PRIORITY_WEIGHT = 3.0
"""Extra weight at priority 1. It is added to the usual factor of 1: the score is multiplied by 1 + 3 = 4."""

OVERSHOOT = 0.5
"""How far a mask may leave [0, 1]: resizing can overshoot a little, while other scales such as 0 to 255 are
refused. Values outside of [0, 1] count as 0 and 1."""


@dataclass(frozen=True)
class Preferences:
    """Preferences for each token.

    Attributes:
        priority: (b or 1, n) float in [0, 1], how strongly each token is favoured; None if none is favoured.
    """

    priority: Tensor | None = None

    @classmethod
    def of(cls, grid: TokenGrid, priority: Tensor | None) -> Preferences:
        """Preferences from a mask of the latent's size, (b or 1, *size) in [0, 1], or None."""
        return cls(None if priority is None else grid.pool(priority.float()).clamp(0, 1))

    @property
    def weight(self) -> Tensor | float:
        """Factor by which each token's selection score is multiplied. It rises linearly from 1 at priority 0
        to 4 at priority 1.
        """
        return 1.0 if self.priority is None else 1 + PRIORITY_WEIGHT * self.priority

    def in_order(self, order: Tensor) -> Preferences:
        """The preferences of the tokens in this order, (n,)."""
        return self if self.priority is None else Preferences(self.priority[:, order])


def as_priority(mask: Any) -> Tensor | None:
    """A user's mask of any size as (masks, height, width) float32, or None.

    Args:
        mask: (height, width), (masks, height, width) or (masks, 1, height, width), of any number type; or
            None.

    Raises:
        RASError: it is no such tensor, is empty, or has values outside of [0, 1] or that are no numbers.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.is_nested:
        raise _refused(f"a value of class {type(mask).__name__}")
    if mask.layout is not torch.strided or mask.is_complex():
        raise _refused(mask)
    is_stack = mask.ndim in (2, 3) or (mask.ndim == 4 and mask.shape[1] == 1)
    if not is_stack or not mask.numel():
        raise _refused(mask)
    planes = mask.float().reshape(-1, *mask.shape[-2:])
    low, high = (float(each) for each in planes.aminmax())  # both are NaN if one value is
    if not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
        raise _refused(f"a mask with values from {low:g} to {high:g}")
    return planes


def check_batch(priority: Tensor | None, batch: int) -> None:
    """Refuse masks that `batch` images cannot share evenly: ComfyUI would drop some, or repeat only some.

    Raises:
        RASError: the number of masks does not divide the number of images.
    """
    if priority is not None and batch % len(priority):
        raise RASError(
            f"priority has {len(priority)} masks for {batch} images.",
            "one mask for all images, or one for each.",
            "connect as many masks as the latent has images, or a single one.",
        )


def _refused(what: str | Tensor) -> RASError:
    if isinstance(what, Tensor):
        what = f"a {str(what.dtype).removeprefix('torch.')} tensor of shape {quoted(tuple(what.shape))}"
    return RASError(
        f"priority is {what}.",
        "a mask, (height, width) or (masks, height, width), with values from 0 to 1.",
        "connect a mask to priority, such as that of Load Image (as Mask), or disconnect it.",
    )
