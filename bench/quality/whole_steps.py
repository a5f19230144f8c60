"""Whole-step forecasts: skipped steps get a guided estimate extrapolated from the last computed ones.

The methods that users install forecast features inside the network from step to step. Here the same
polynomials act on the guided denoised estimate as a function of sigma, so that a skipped step costs nothing:

- taylor0, taylor1, taylor2: the polynomial through the last 1, 2, 3 estimates (TaylorSeer, arXiv 2503.06923);
- hermite2: its terms damped by scaled Hermite polynomials (HiCache, arXiv 2508.16984);
- chebyshev2, chebyshev4: least squares with a ridge through the last estimates (Spectrum, CVPR 2026).

All of them are linear in the computed estimates, so that each is a list of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...ras_core.errors import RASError

HERMITE_SCALE = 0.5
"""HiCache's sigma, in its published range."""
RIDGE = 0.1
"""Spectrum's lambda."""
KEPT = 8
"""Estimates that are kept, at most."""


def is_computed(step: int, first: int, every: int) -> bool:
    """Whether a step is computed: the first ones, then every so many."""
    return step < first or (step - first) % every == 0


def computed_steps(steps: int, first: int, every: int) -> int:
    """How many of the steps are computed."""
    return sum(is_computed(step, first, every) for step in range(steps))


def weights(form: str, known: Sequence[float], sigma: float) -> list[float]:
    """Weights of the computed estimates whose sum is the forecast; 0 for those that are not used.

    Args:
        form: a key of FORMS.
        known: sigmas of the computed estimates, the newest last; at least one.
        sigma: of the step to forecast.

    Raises:
        RASError: there is no such form.
    """
    if form not in FORMS:
        raise RASError(f"forecast {form!r}.", f"one of {', '.join(FORMS)}.", "correct --forms.")
    make, order = FORMS[form]
    return make(list(known), sigma, order)


def _taylor(known: list[float], sigma: float, order: int) -> list[float]:
    """Lagrange's form of the polynomial through the last order + 1 points."""
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
    """Taylor's sum with s^n H_n(s u) in place of u^n, u the distance in units of the last interval.

    Derivatives come from divided differences, as in TaylorSeer, but for uneven steps.
    """
    nodes = known[-(order + 1) :]
    found = [0.0] * (len(known) - 1) + [1.0]
    if len(nodes) < 2:
        return found
    length = nodes[-1] - nodes[-2]
    u, factorial = (sigma - nodes[-1]) / length, 1.0
    for n in range(1, len(nodes)):
        factorial *= n
        # The n-th difference f[last n + 1] n! length^n, over n!.
        for place, weight in zip(
            range(len(known) - n - 1, len(known)), _divided(nodes[-(n + 1) :]), strict=True
        ):
            found[place] += weight * length**n * _scaled_hermite(n, u)
    return found


def _divided(nodes: Sequence[float]) -> list[float]:
    """Weights of the divided difference over some nodes."""
    found = []
    for i, node in enumerate(nodes):
        weight = 1.0
        for j, other in enumerate(nodes):
            if j != i:
                weight /= node - other
        found.append(weight)
    return found


def _scaled_hermite(n: int, u: float) -> float:
    """s^n H_n(s u), with the physicists' H_n."""
    before, current, x = 0.0, 1.0, HERMITE_SCALE * u
    for k in range(n):
        before, current = current, 2 * x * current - 2 * k * before
    return HERMITE_SCALE**n * current


def _chebyshev(known: list[float], sigma: float, order: int) -> list[float]:
    """Ridge regression on Chebyshev polynomials of the change since the newest estimate.

    The span from the oldest kept sigma to 0 is mapped to -1..1. Fitting the change makes the ridge pull
    towards the newest estimate and not towards 0.
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
    """A sampler function of k-diffusion's form whose skipped steps are forecast.

    Args:
        function: one that evaluates once a step.
        form: a key of FORMS.
        first: steps computed at the start.
        every: of the others, every so many are computed.
    """

    def sample(model: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return function(_Forecast(model, form, first, every), *args, **kwargs)

    return sample


class _Forecast:
    """The model function of one run; other attributes are those of ComfyUI's own."""

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
