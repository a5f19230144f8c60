"""The token grid: which latent pixels belong to which token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

POOLING = {2: F.avg_pool2d, 3: F.avg_pool3d}
"""For each number of axes of a grid, the function that averages over a token's latent pixels."""


@dataclass(frozen=True)
class TokenGrid:
    """The grid of tokens of a latent. The network cuts the latent into patches along (h, w) or (t, h, w);
    each patch is one token.

    If the latent's size along an axis is not a multiple of the patch size, the last tokens along that axis
    are partly padding, as in ComfyUI. A token's neighbours are tokens of the same latent frame, along h and
    w: a latent frame holds several video frames, so the token at the same h and w in the next latent frame
    may show something else.

    Attributes:
        size: number of latent pixels along each axis of the latent, (H, W) or (T, H, W).
        patch: number of latent pixels along each axis of one token.
    """

    size: tuple[int, ...]
    patch: tuple[int, ...]

    @classmethod
    def of(cls, size: Sequence[int], patch: Sequence[int]) -> TokenGrid:
        """The grid of a latent of this size. `patch` may have fewer axes than `size`, then a token has one
        latent frame; or more, for a network that also takes latents over time.
        """
        missing = (1,) * (len(size) - len(patch))
        return cls(tuple(size), (*missing, *patch)[-len(size) :])

    @property
    def shape(self) -> tuple[int, ...]:
        """Tokens along each axis."""
        return tuple(-(-size // patch) for size, patch in zip(self.size, self.patch, strict=True))

    @property
    def n(self) -> int:
        return math.prod(self.shape)

    def pool(self, pixels: Tensor) -> Tensor:
        """Mean over each token's latent pixels, without padding: (b, *size) -> (b, n)."""
        mean = POOLING[len(self.size)]
        # avg_pool3d raises an error for windows larger than the latent.
        kernel = tuple(map(min, self.size, self.patch))
        pooled = mean(pixels[:, None], kernel, ceil_mode=True, count_include_pad=False)
        return pooled.flatten(1)

    def active_pixels(self, active_idx: Tensor) -> Tensor:
        """Mask of the latent pixels of the active tokens: (b, n_active) int64 -> (b, 1, *size) bool."""
        shape, patch = self.shape, self.patch
        mask = self.active_mask(active_idx).view(-1, 1, *[side for tokens in shape for side in (tokens, 1)])
        pairs = [side for pair in zip(shape, patch, strict=True) for side in pair]
        padded = [tokens * side for tokens, side in zip(shape, patch, strict=True)]
        pixels = mask.expand(-1, -1, *pairs).reshape(-1, 1, *padded)
        return pixels[(..., *[slice(side) for side in self.size])]

    def active_mask(self, active_idx: Tensor) -> Tensor:
        """Mask of the active tokens: (b, n_active) int64 -> (b, n) bool."""
        mask = torch.zeros(active_idx.shape[0], self.n, dtype=torch.bool, device=active_idx.device)
        return mask.scatter_(1, active_idx, True)

    def smooth(self, values: Tensor) -> Tensor:
        """Mean over each token's 3 x 3 neighbourhood along h and w: (b, n) -> (b, n).

        For tokens at the border of the image, the mean is over the neighbours that exist.
        """
        near = F.avg_pool2d(self._planes(values), 3, stride=1, padding=1, count_include_pad=False)
        return near.view(-1, self.n)

    def _planes(self, values: Tensor) -> Tensor:
        """One plane of tokens per latent frame: (b, n) -> (b * t, 1, h, w); t = 1 for a grid over (h, w)."""
        return values.view(-1, 1, *self.shape[-2:])
