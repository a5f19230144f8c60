"""The region metric: a score for each token, computed from the guided model output (paper, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Metric
from .grid import TokenGrid


def region_metric(noise: Tensor, metric: Metric, grid: TokenGrid, generator: torch.Generator) -> Tensor:
    """Score of every token by the region metric.

    "std" is equation 1's term: the standard deviation over channels at each latent pixel, averaged over the
    token's pixels. "l2norm" takes the norm over channels instead (paper, supplement). "random" is the
    baseline, with the same random scores for every image of a batch, so that an image is the same in a batch
    as in a run of its own.

    Args:
        noise: (b, c, *size), guided model output: the predicted direction from the image to the noise.
        metric: "std", "l2norm" or "random".
        grid: token grid of the latent.
        generator: random number generator for the metric "random", on the CPU.

    Returns:
        (b, n) float32.
    """
    if metric == "random":
        draw = torch.rand(1, grid.n, generator=generator)
        return draw.to(noise.device).expand(noise.shape[0], -1)
    noise = noise.float()
    return grid.pool({"std": noise.std, "l2norm": noise.norm}[metric](dim=1))
