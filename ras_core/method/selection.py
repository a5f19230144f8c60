"""Which tokens are active in the next regional step (paper, section 3.3 and equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import RASConfig
from .preferences import Preferences


def select_active(
    metric: Tensor,
    drop_count: Tensor,
    active_count: int,
    config: RASConfig,
    preferences: Preferences | None = None,
) -> Tensor:
    """Indices of the active tokens, sorted by position.

    Of the n - active_count cached tokens, the share `high_ratio` comes from the high end of the metric and
    the rest from its low end.

    The paper is of two minds about starvation: equation 1 multiplies the metric of a dropped token by
    exp(+k D), while its text caches the tokens with a HIGH metric, so that the factor would keep them cached
    for good (measured in the reference code: about half of the tokens never return at 50 %). "corrected"
    follows the
    stated aim: at either end, a token that was dropped often moves away from the end it was dropped from.
    "reference" is the reference code's formula.

    Args:
        metric: (b, n) float32.
        drop_count: (b, n) int, how often each token has been cached so far.
        active_count: tokens to keep, 1 to n.
        config: metric direction and starvation settings.
        preferences: favoured tokens leave either end, tokens that are thrown away are cached first. The
            reference formula, which exists to prove conformity, knows none.

    Returns:
        (b, active_count) int64.
    """
    if config.starvation == "reference":
        cached = _cached_reference(metric, drop_count, active_count, config)
    else:
        cached = _cached_corrected(metric, drop_count, active_count, config, preferences or Preferences())
    # A sort of the mask yields the active positions in order without waiting for the device.
    mask = torch.zeros_like(metric, dtype=torch.int8).scatter_(1, cached, 1)
    return mask.argsort(dim=1, stable=True)[:, :active_count]


def count_drops(drop_count: Tensor, active_idx: Tensor) -> Tensor:
    """Drop counts after a step with these active tokens: (b, n), (b, n_active) -> (b, n), a new tensor."""
    return (drop_count + 1).scatter(1, active_idx, drop_count.gather(1, active_idx))


def _cached_corrected(
    metric: Tensor, drop_count: Tensor, active_count: int, config: RASConfig, preferences: Preferences
) -> Tensor:
    n_cached = metric.shape[1] - active_count
    n_high = round(n_cached * config.high_ratio)
    # In logarithms: the product with exp(k D) can neither overflow nor vanish.
    score = metric.clamp_min(torch.finfo(torch.float32).tiny).log()
    relief = config.starvation_scale * drop_count + torch.as_tensor(preferences.weight).log()
    high_score = preferences.without_waste(score - relief, last=torch.inf)
    high = high_score.argsort(dim=1, descending=True, stable=True)[:, :n_high]
    low_score = preferences.without_waste(score + relief, last=-torch.inf).scatter(1, high, torch.inf)
    low = low_score.argsort(dim=1, stable=True)[:, : n_cached - n_high]
    return torch.cat([high, low], dim=1)


def _cached_reference(metric: Tensor, drop_count: Tensor, active_count: int, config: RASConfig) -> Tensor:
    n_cached = metric.shape[1] - active_count
    n_low = int(n_cached * (1 - config.high_ratio))
    order = (metric * torch.exp(config.starvation_scale * drop_count)).argsort(dim=1, stable=True)
    return torch.cat([order[:, :n_low], order[:, metric.shape[1] - (n_cached - n_low) :]], dim=1)
