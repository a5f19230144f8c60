"""Selects the active tokens of the next regional step by the paper's rule (section 3.3 and equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import PaperSettings
from .preferences import Preferences


def select_active(
    metric: Tensor,
    drop_count: Tensor,
    active_count: int,
    settings: PaperSettings,
    preferences: Preferences | None = None,
) -> Tensor:
    """Indices of the active tokens, sorted by position.

    Tokens are ranked by their region metric (method/metric.py). The n - active_count cached tokens are those
    at both ends of the ranking: a share `high_ratio` of them at the high end, the rest at the low end.

    The paper contradicts itself about starvation, i.e. tokens that are never computed. Equation 1 multiplies
    the metric of a token that has been cached D times by exp(+k D), where k is `starvation_scale`. But
    according to the paper's text, the tokens with a HIGH metric are cached. So the factor keeps cached tokens
    cached forever: with the authors' reference code at a sample ratio of 50 %, about half of the tokens are
    never computed again. With `starvation` = "corrected", a token that was cached often moves away from the
    ends of the ranking, as the text intends. With `starvation` = "reference", the formula of the reference
    code is used.

    Args:
        metric: (b, n) float32.
        drop_count: (b, n) int, how often each token has been cached so far.
        active_count: number of active tokens, 1 to n.
        settings: the paper's settings, of which `high_ratio`, `starvation` and `starvation_scale` are used
            here.
        preferences: the user's preferences, which move favoured tokens away from both ends of the ranking.
            The "reference" formula ignores `preferences`, because its only purpose is to give the same
            results as the reference code.

    Returns:
        (b, active_count) int64.
    """
    if settings.starvation == "reference":
        cached = _cached_reference(metric, drop_count, active_count, settings)
    else:
        cached = _cached_corrected(metric, drop_count, active_count, settings, preferences or Preferences())
    # Sorting the mask yields the active indices in order; `nonzero` would synchronize.
    mask = torch.zeros_like(metric, dtype=torch.int8).scatter_(1, cached, 1)
    return mask.argsort(dim=1, stable=True)[:, :active_count]


def count_drops(drop_count: Tensor, active_idx: Tensor) -> Tensor:
    """The drop count after a step, as a new tensor (b, n): `drop_count` (b, n), increased by 1 for each token
    that the step does not compute, i.e. that is not in `active_idx` (b, n_active).
    """
    return (drop_count + 1).scatter(1, active_idx, drop_count.gather(1, active_idx))


def _cached_corrected(
    metric: Tensor, drop_count: Tensor, active_count: int, settings: PaperSettings, preferences: Preferences
) -> Tensor:
    n_cached = metric.shape[1] - active_count
    n_high = round(n_cached * settings.high_ratio)
    # In log space the product with exp(k D) can neither overflow nor underflow.
    score = metric.clamp_min(torch.finfo(torch.float32).tiny).log()
    relief = settings.starvation_scale * drop_count + torch.as_tensor(preferences.weight).log()
    high = (score - relief).argsort(dim=1, descending=True, stable=True)[:, :n_high]
    low_score = (score + relief).scatter(1, high, torch.inf)
    low = low_score.argsort(dim=1, stable=True)[:, : n_cached - n_high]
    return torch.cat([high, low], dim=1)


def _cached_reference(
    metric: Tensor, drop_count: Tensor, active_count: int, settings: PaperSettings
) -> Tensor:
    n_cached = metric.shape[1] - active_count
    n_low = int(n_cached * (1 - settings.high_ratio))
    order = (metric * torch.exp(settings.starvation_scale * drop_count)).argsort(dim=1, stable=True)
    return torch.cat([order[:, :n_low], order[:, metric.shape[1] - (n_cached - n_low) :]], dim=1)
