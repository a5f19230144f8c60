"""An experiment with regional steps in inpainting. (The pack itself runs inpainting dense.)

Outside the mask, the latent is known at every noise level, so the tokens there need not be computed to find
the latent. But the tokens inside the mask attend to the keys and values of the tokens outside. In this
experiment, every regional step computes all tokens inside the mask, and in addition as many tokens outside
the mask as the step's share of the tokens allows. Of the tokens outside, those are chosen that have stayed
cached longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...ras_core.host import outer_sample, patch
from ...ras_core.method.grid import TokenGrid
from ...ras_core.method.preferences import Preferences
from ...ras_core.method.selector import Selector
from ...ras_core.run.state import RunState

PARTS = {"half": 1 / 2, "quarter": 1 / 4, "sixteenth": 1 / 16}
"""For each mask, by name, the share of the image's area that is inside the mask."""


def mask_of(part: str, height: int, width: int) -> Tensor:
    """The mask named `part`, (1, 1, height, width), which is 1 inside: the left half of the image, or a
    rectangle in the middle.
    """
    mask = torch.zeros(1, 1, height, width)
    if part == "half":
        mask[..., : width // 2] = 1
        return mask
    side = {"quarter": 2, "sixteenth": 4}[part]
    top, left = (height - height // side) // 2, (width - width // side) // 2
    mask[..., top : top + height // side, left : left + width // side] = 1
    return mask


class InsideFirst(Selector):
    """Selects all tokens inside the mask first, then the tokens outside that have stayed cached longest. How
    long a token has stayed cached is measured by the decrease of the noise level since its last evaluation.

    Args:
        grid: the token grid.
        inside: which tokens are inside the mask, (1, n) bool.
    """

    def __init__(self, grid: TokenGrid, inside: Tensor):
        super().__init__(grid, Preferences())
        self._inside, self._last = inside, None
        # Tokens that have stayed cached equally long are selected in a random order. So those that one step
        # selects are spread over the image.
        order = torch.randperm(grid.n, generator=torch.Generator().manual_seed(0))
        self._turn = (order / grid.n * 1e-3).to(inside.device)

    def _update(self, x: Tensor, denoised: Tensor, sigma: float, active_idx: Tensor | None) -> None:
        if self._last is None:
            self._last = torch.full((x.shape[0], self._grid.n), sigma, device=x.device)
        is_fresh = True if active_idx is None else self._grid.active_mask(active_idx)
        self._last = torch.where(torch.as_tensor(is_fresh, device=x.device), sigma, self._last)
        self.score = self._last

    def _choose(self, active_count: int, sigma: float, order: Tensor) -> Tensor:
        device = order.device
        need = (self._last - sigma).to(device) + self._turn.to(device) + 1e3 * self._inside.to(device)
        first = need.argsort(dim=1, descending=True, stable=True)
        return first[:, :active_count].sort(dim=1).values


@contextmanager
def regional_inpainting(mask: Tensor) -> Iterator[None]:
    """Inpainting runs in the body of the `with` take regional steps, and `InsideFirst` selects their tokens.

    Args:
        mask: the inpainting mask, (1, 1, H, W); 1 where the image is inpainted.
    """

    def begin_run(*args: object) -> RunState:
        run = outer_sample.begin_run(*args)
        run.selector = InsideFirst(run.grid, run.grid.pool(mask[:, 0]) > 0)
        return run

    begin, asks = patch.begin_run, patch.is_inpainting
    patch.begin_run, patch.is_inpainting = begin_run, lambda *_: False
    try:
        yield
    finally:
        patch.begin_run, patch.is_inpainting = begin, asks
