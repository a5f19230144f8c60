"""Fits two factors, one on each of two forecasts, so that the sum of the scaled forecasts best matches known
values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fitted_gains(first: Tensor, second: Tensor, target: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The factors, 0 to 1, with which the sum of two forecasts, `first` and `second`, best fits `target`:
    (bb, s, d) each -> (bb,) each.

    If the best factor on one forecast is not positive, that factor is set to 0 and the other is fitted alone.
    Each number on the diagonal of the least-squares matrix is increased by `ridge` times itself.
    """

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(1, 2))

    own, other = (product(each, each) * (1 + ridge) + 1e-9 for each in (first, second))
    both, of_first, of_second = product(first, second), product(first, target), product(second, target)
    determinant = own * other - both * both
    gain = (other * of_first - both * of_second) / determinant
    gain2 = (own * of_second - both * of_first) / determinant
    alone, alone2 = of_first / own, of_second / other
    fitted = torch.where(gain2 > 0, gain, alone)
    fitted2 = torch.where(gain > 0, gain2, alone2) * (gain2 > 0)
    return fitted.clamp(0, 1), fitted2.clamp(0, 1)
