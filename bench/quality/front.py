"""Pareto fronts of quality over cost reduction, and the gain of one over another. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log

Point = tuple[float, float]
"""(cost reduction, quality); higher is better for both."""


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points that no other point beats in both values, cheapest last; duplicates are dropped."""
    front: list[Point] = []
    for cost, quality in sorted(set(points), reverse=True):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front[::-1]


def at_cost(front: Sequence[Point], cost: float) -> float | None:
    """Quality of the front at a cost reduction, interpolated linearly; None beyond its last point.

    At cost reductions below its first point, a front has that point's quality: a cheaper run also qualifies.
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
    """The best of several fronts at a cost reduction, with its name."""
    found = {name: quality for name, front in fronts.items() if (quality := at_cost(front, cost)) is not None}
    if not found:
        return None
    name = max(found, key=found.__getitem__)
    return name, found[name]


@dataclass(frozen=True)
class Ratio:
    """How many times faster one front reaches a quality than another.

    Attributes:
        value: the ratio of their cost reductions.
        bound: "" for the value itself, ">=" or "<=" where the other front ends first.
    """

    value: float
    bound: str = ""


def at_log_cost(front: Sequence[Point], cost: float) -> float | None:
    """As `at_cost`, but straight over the logarithm of cost."""
    return at_cost([(log(x), y) for x, y in front], log(cost))


def time_to_equal_quality(front: Sequence[Point], other: Sequence[Point], cost: float) -> Ratio | None:
    """At a front's quality for a cost reduction: this over the other front's cost reduction there.

    Above 1 the front is faster. Both are `pareto` fronts; straight over the logarithm of cost. None where
    the front ends before.
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
