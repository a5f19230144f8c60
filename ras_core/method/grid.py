"""The token grid: which latent pixels belong to which token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """The grid of patches that the network cuts a latent of `height` x `width` latent pixels into.

    A latent whose size the patch does not divide has a last row or column of partly padded tokens, as in the
    host.
    """

    height: int
    width: int
    patch: int

    @property
    def h(self) -> int:
        return -(-self.height // self.patch)

    @property
    def w(self) -> int:
        return -(-self.width // self.patch)

    @property
    def n(self) -> int:
        return self.h * self.w

    @property
    def size(self) -> tuple[int, int]:
        return (self.height, self.width)

    def pool(self, pixels: Tensor) -> Tensor:
        """Mean over each token's latent pixels, padding left out: (b, H, W) -> (b, n)."""
        pooled = F.avg_pool2d(pixels[:, None], self.patch, ceil_mode=True, count_include_pad=False)
        return pooled.flatten(1)

    def active_pixels(self, active_idx: Tensor) -> Tensor:
        """Latent pixels of the active tokens: (b, n_active) int64 -> (b, 1, H, W) bool."""
        mask = self.active_mask(active_idx).view(-1, 1, self.h, 1, self.w, 1)
        pixels = mask.expand(*mask.shape[:3], self.patch, self.w, self.patch)
        return pixels.reshape(-1, 1, self.h * self.patch, self.w * self.patch)[
            :, :, : self.height, : self.width
        ]

    def active_mask(self, active_idx: Tensor) -> Tensor:
        """(b, n_active) int64 -> (b, n) bool."""
        mask = torch.zeros(active_idx.shape[0], self.n, dtype=torch.bool, device=active_idx.device)
        return mask.scatter_(1, active_idx, True)
