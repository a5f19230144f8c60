"""Finds the evaluations in which a conditioning joins the run: in ComfyUI, a conditioning may apply only from
a noise level on (`start_percent`).

A conditioning that joins has no cached data, so its first call is dense. If ComfyUI calls the network several
times in this evaluation, the other calls must be dense too: guidance multiplies the difference between the
estimates of two prompts. If only one of them is dense, this difference contains, at cached tokens, how much
the estimates have changed since the last step. On a tiny Z-Image with random weights, a positive prompt that
joined in step 2 of 9 (kl_optimal, cfg 4, half of the tokens) then gave 0.47 as the relative distance to the
dense run, instead of 0.21.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Joining:
    """Finds the evaluations in which a conditioning joins the current pass of the sampler.

    Args:
        starts: the noise levels from which on conditionings apply.
    """

    def __init__(self, starts: Iterable[float] = ()):
        # ComfyUI compares these numbers with a tensor, in float32.
        self._starts = torch.tensor(list(starts), dtype=torch.float32).tolist()
        self._lowest: float | None = None

    def is_at(self, sigma: float) -> bool:
        """Whether a conditioning applies at the noise level `sigma`, but at no level before."""
        before = self._lowest
        return before is not None and any(sigma <= start < before for start in self._starts)

    def keep(self, sigma: float) -> None:
        """Remember that the network was called at the noise level `sigma`."""
        self._lowest = sigma if self._lowest is None else min(sigma, self._lowest)
