"""Pareto fronts of quality against cost reduction, and how much one front gains over another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log

Point = tuple[float, float]
"""One measured cell as (cost reduction, quality). Higher is better for both numbers."""


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points on the Pareto front, each once, sorted by rising cost reduction.

    A point is on the front if no other point is at least as good in both cost reduction and quality.
    """
    front: list[Point] = []
    for cost, quality in sorted(set(points), reverse=True):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front[::-1]


def at_cost(front: Sequence[Point], cost: float) -> float | None:
    """Quality of a front at a cost reduction, interpolated linearly; None beyond the front's last point.

    Below the cost reduction of the front's first point, the result is the quality of the first point: its run
    costs less than this cost reduction allows.
    """
    if not front or cost > front[-1][0]:
        return None
    if cost <= front[0][0]:
        return front[0][1]
    for (x0, y0), (x1, y1) in zip(front, front[1:], strict=False):
        if x0 <= cost <= x1:
            return y0 + (y1 - y0) * (cost - x0) / (x1 - x0)
    return None


def best_at_cost(fronts: dict[str, Sequence[Point]], cost: float) -> tuple[str, float] | None:
    """Name and quality of the best front at a cost reduction; None if every front ends before it."""
    found = {name: quality for name, front in fronts.items() if (quality := at_cost(front, cost)) is not None}
    if not found:
        return None
    name = max(found, key=found.__getitem__)
    return name, found[name]


@dataclass(frozen=True)
class Ratio:
    """How many times faster one front reaches a quality than another front.

    Attributes:
        value: cost reduction of the first front at this quality, divided by that of the other front.
        bound: how the ratio compares with `value`. "": they are equal. ">=": the ratio is at least `value`,
            because the quality is above all points of the other front. "<=": the ratio is at most `value`,
            because the quality is below all points of the other front.
    """

    value: float
    bound: str = ""


def at_log_cost(front: Sequence[Point], cost: float) -> float | None:
    """As `at_cost`, but interpolated linearly in the logarithm of the cost reduction."""
    return at_cost([(log(x), y) for x, y in front], log(cost))


def time_to_equal_quality(front: Sequence[Point], other: Sequence[Point], cost: float) -> Ratio | None:
    """The `Ratio` of two fronts at equal quality: how many times faster `front` is than `other`.

    The quality is that of `front` at the cost reduction `cost`. The value of the ratio is `cost` divided by
    the cost reduction at which `other` has the same quality; above 1, `front` is faster. `front` and `other`
    are results of `pareto`, and are interpolated linearly in the logarithm of the cost reduction. The result
    is a bound if `other` does not reach the quality or is better everywhere. It is None if `front` ends
    before `cost`, or if `other` is empty.
    """
    quality = at_log_cost(front, cost)
    if quality is None or not other:
        return None
    (first, best), (last, worst) = other[0], other[-1]
    if quality > best:
        return Ratio(cost / first, ">=")
    if quality <= worst:
        return Ratio(cost / last, "" if quality == worst else "<=")
    for (x0, y0), (x1, y1) in zip(other, other[1:], strict=False):
        if y1 <= quality <= y0:
            share = (y0 - quality) / (y0 - y1)
            return Ratio(cost / exp(log(x0) + (log(x1) - log(x0)) * share))
    return None
