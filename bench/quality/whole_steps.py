"""Whole-step forecasts: at skipped steps, the denoised estimate is extrapolated from computed steps.

The original methods (TaylorSeer, HiCache, Spectrum) forecast features inside the network. They fit a
polynomial to the features of computed steps and evaluate it at the skipped step. This module does the same
with the denoised estimate after guidance, as a function of the noise level sigma. So a skipped step does not
run the network at all, and its cost counts as zero. The kinds of forecast are:

- taylor0, taylor1, taylor2: the polynomial through the last 1, 2 or 3 estimates, as in TaylorSeer (arXiv
  2503.06923);
- hermite2: as taylor2, but each power is replaced by a scaled Hermite polynomial of the same degree, as in
  HiCache (arXiv 2508.16984);
- chebyshev2, chebyshev4: ridge regression with Chebyshev polynomials on the last estimates (at most 8), as in
  Spectrum (CVPR 2026).

Each forecast is a weighted sum of the computed estimates, so each method only has to compute the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...ras_core.errors import RASError

HERMITE_SCALE = 0.5
"""The scaling factor of HiCache's polynomials, in the range that its paper gives.

It is s in `_hermite`. The paper calls it sigma, but it is not a noise level.
"""
RIDGE = 0.1
"""Strength of the ridge penalty: lambda in the Spectrum paper."""
KEPT = 8
"""Largest number of computed estimates that are kept for forecasts."""


def is_computed(step: int, first: int, every: int) -> bool:
    """True for the steps before `first`, for `first` itself, and for every `every`-th step after `first`."""
    return step < first or (step - first) % every == 0


def computed_steps(steps: int, first: int, every: int) -> int:
    """Number of computed steps in a run of `steps` steps; the others are forecast."""
    return sum(is_computed(step, first, every) for step in range(steps))


def weights(form: str, known: Sequence[float], sigma: float) -> list[float]:
    """One weight for each computed estimate; the weighted sum of the estimates is the forecast.

    An estimate that the forecast does not use has the weight 0.

    Args:
        form: name of the kind of forecast, a key of FORMS.
        known: noise levels of the computed estimates, at least one, the newest last.
        sigma: noise level of the step to forecast.

    Raises:
        RASError: FORMS has no such key.
    """
    if form not in FORMS:
        raise RASError(f"forecast {form!r}.", f"one of {', '.join(FORMS)}.", "correct --forms.")
    make, order = FORMS[form]
    return make(list(known), sigma, order)


def _taylor(known: list[float], sigma: float, order: int) -> list[float]:
    """Weights of the Lagrange polynomial through the last `order` + 1 estimates, evaluated at `sigma`."""
    nodes = known[-(order + 1) :]
    found = []
    for i, node in enumerate(nodes):
        weight = 1.0
        for j, other in enumerate(nodes):
            if j != i:
                weight *= (sigma - other) / (node - other)
        found.append(weight)
    return [0.0] * (len(known) - len(nodes)) + found


def _hermite(known: list[float], sigma: float, order: int) -> list[float]:
    """Weights of a Taylor sum whose powers u^n are replaced by s^n H_n(s u), as in HiCache.

    u is the distance from the newest estimate to `sigma`, divided by the distance of the last two estimates;
    s is HERMITE_SCALE and H_n a Hermite polynomial. As in TaylorSeer, differences of estimates approximate
    the derivatives. They are divided differences here, which also work for steps of different sizes.
    """
    nodes = known[-(order + 1) :]
    found = [0.0] * (len(known) - 1) + [1.0]
    if len(nodes) < 2:
        return found
    length = nodes[-1] - nodes[-2]
    u, factorial = (sigma - nodes[-1]) / length, 1.0
    for n in range(1, len(nodes)):
        factorial *= n
        # The n-th derivative is about n! f[last n + 1 nodes]. The n! cancels with that of the Taylor sum.
        for place, weight in zip(
            range(len(known) - n - 1, len(known)), _divided(nodes[-(n + 1) :]), strict=True
        ):
            found[place] += weight * length**n * _scaled_hermite(n, u)
    return found


def _divided(nodes: Sequence[float]) -> list[float]:
    """Weights of a sum of values, one weight per node. The sum is the divided difference of the values."""
    found = []
    for i, node in enumerate(nodes):
        weight = 1.0
        for j, other in enumerate(nodes):
            if j != i:
                weight /= node - other
        found.append(weight)
    return found


def _scaled_hermite(n: int, u: float) -> float:
    """s^n H_n(s u), where s is HERMITE_SCALE and H_n the physicists' Hermite polynomial."""
    before, current, x = 0.0, 1.0, HERMITE_SCALE * u
    for k in range(n):
        before, current = current, 2 * x * current - 2 * k * before
    return HERMITE_SCALE**n * current


def _chebyshev(known: list[float], sigma: float, order: int) -> list[float]:
    """Weights of a ridge regression with Chebyshev polynomials, evaluated at `sigma`.

    The noise levels from the oldest kept estimate down to 0 are mapped to the range from 1 to -1. The
    regression is not fitted to the kept estimates, but to their differences from the newest estimate. So the
    ridge penalty, which pulls what is fitted towards 0, pulls the forecast towards the newest estimate.
    """
    degree = min(order, len(known) - 1)
    if degree < 1:
        return [0.0] * (len(known) - 1) + [1.0]
    span = known[0]
    points = torch.tensor([1 - 2 * (span - each) / span for each in (*known, sigma)], dtype=torch.float64)
    basis = torch.stack([torch.cos(n * torch.acos(points.clamp(-1, 1))) for n in range(degree + 1)], dim=1)
    rows, wanted = basis[:-1], basis[-1]
    normal = rows.T @ rows + RIDGE * torch.eye(degree + 1, dtype=torch.float64)
    found = (rows @ torch.linalg.solve(normal, wanted)).tolist()
    found[-1] += 1.0 - sum(found)
    return found


FORMS: dict[str, tuple[Callable[[list[float], float, int], list[float]], int]] = {
    "taylor0": (_taylor, 0),
    "taylor1": (_taylor, 1),
    "taylor2": (_taylor, 2),
    "hermite2": (_hermite, 2),
    "chebyshev2": (_chebyshev, 2),
    "chebyshev4": (_chebyshev, 4),
}


def forecasting(function: Callable[..., Tensor], form: str, first: int, every: int) -> Callable[..., Tensor]:
    """Wrap a k-diffusion sampler function, so that the estimates of skipped steps are forecast.

    Args:
        function: a sampler function that evaluates the model once per step.
        form: name of the kind of forecast, a key of FORMS.
        first: number of steps at the start that are computed.
        every: interval of the computed steps from step `first` on, in steps.
    """

    def sample(model: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return function(_Forecast(model, form, first, every), *args, **kwargs)

    return sample


class _Forecast:
    """Replaces ComfyUI's model function in one sampling run: at skipped steps it returns a forecast.

    Attributes that this class does not define are those of ComfyUI's model function.
    """

    def __init__(self, model: Callable[..., Tensor], form: str, first: int, every: int):
        self._model, self._form, self._first, self._every = model, form, first, every
        self._step = -1
        self._known: list[tuple[float, Tensor]] = []

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        self._step += 1
        level = float(sigma.flatten()[0])
        if not self._known or is_computed(self._step, self._first, self._every):
            estimate = self._model(x, sigma, **kwargs)
            self._known = [*self._known, (level, estimate)][-KEPT:]
            return estimate
        found = weights(self._form, [each for each, _ in self._known], level)
        return sum(
            weight * estimate for weight, (_, estimate) in zip(found, self._known, strict=True) if weight
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)
