"""Places the steps of a run: computes a density of steps from measured errors, and noise levels from a
density.

A position is a point in a fine schedule, from 0 at the schedule's first noise level to 1 at its last, and
grows by the same amount in each step of the schedule. A density divides the positions into K blocks of equal
length and gives, for each block, the share of a run's steps in the block.

Let a solver's error in one step be proportional to (length)^q, and let one step over a block have error c.
Each of n equal steps over that block then has error c / n^q, and all n together have error c n^(1 - q). For
a fixed total number of steps, the sum of the blocks' errors is smallest if n is proportional to c^(1/q) in
each block.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from ..errors import RASError

Levels = Sequence[float]

COST_ORDER = 2.0
"""The power q for the Euler method: the error of one Euler step is proportional to (step length)^q."""

EVEN_PART = 0.5
"""Share of an even density (the same in each block) in the density for a multistep sampler."""


def density_of(costs: Sequence[float], order: float = 2.0, even: float = 0.0) -> tuple[float, ...]:
    """The share of steps that each block should get.

    Args:
        costs: for each block, the error of the final latent if one step crosses the block. The unit of the
            errors is arbitrary, but the same for all blocks.
        order: q; the error of a step grows with its length to the power q, which is 2 for Euler.
        even: the result is (1 - even) times the computed density plus `even` times an even density, i.e. one
            with the same share in each block. 0.5 is often better than 0, for two reasons: a step of a real
            run extends over several blocks, and costs are noisy.

    Returns:
        One number for each block; their sum is 1.

    Raises:
        RASError: there are no costs, a cost is negative or not finite, or `order` or `even` is out of range.
    """
    if not costs or not all(math.isfinite(cost) and cost >= 0 for cost in costs):
        raise RASError(
            f"costs of blocks of the schedule = {list(costs)}.",
            "a non-empty list of finite costs, none of them negative.",
            "measure the blocks again.",
        )
    if order <= 0 or not 0 <= even <= 1:
        raise RASError(
            f"order = {order}, even = {even}.", "order above 0, even from 0 to 1.", "correct the arguments."
        )
    weights = normalised([cost ** (1 / order) for cost in costs])
    return tuple((1 - even) * weight + even / len(costs) for weight in weights)


def step_density(costs: Sequence[float], multistep: bool) -> tuple[float, ...]:
    """The density that plans have by default, from the costs of the blocks.

    Args:
        costs: errors of the blocks as in `density_of`, measured with Euler even for multistep samplers. This
            is because a measurement takes one long step among short ones. A multistep sampler extrapolates
            far when the step length changes so much, and the error of this extrapolation does not show where
            steps are needed.
        multistep: whether the density is for a multistep sampler such as dpmpp_2m, which works best if step
            lengths change gradually.
    """
    return density_of(costs, COST_ORDER, EVEN_PART if multistep else 0.0)


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights scaled so that their sum is 1; equal weights if all are 0. If the sum is 1 already, the weights
    are returned unchanged.
    """
    total = sum(weights)
    if abs(total - 1) < 1e-12:
        return tuple(weights)
    return tuple(weight / total if total > 0 else 1 / len(weights) for weight in weights)


def even_density(blocks: int = 1) -> tuple[float, ...]:
    """The density that gives a grid the spacing of the fine schedule: the same share in each block."""
    return (1 / blocks,) * blocks


def positions(
    density: Sequence[float], steps: int, start: float = 0.0, end: float = 1.0
) -> tuple[float, ...]:
    """Positions of the `steps` + 1 levels of a grid from `start` to `end`. The steps divide the mass of the
    density between `start` and `end` equally.

    Args:
        density: the mass of each block, i.e. the relative number of steps in the block; a block without mass
            is crossed in one step.
        steps: at least 1.
        start, end: positions of the first and the last level. Steps are distributed by the part of the
            density between `start` and `end`.

    Raises:
        RASError: `steps` is below 1, or `start` and `end` do not satisfy 0 <= start < end <= 1.
    """
    if steps < 1 or not 0 <= start < end <= 1:
        raise RASError(
            f"{steps} steps from position {start} to {end} of the schedule.",
            "at least one step, and 0 <= start < end <= 1.",
            "ask for at least one step, and a part of the schedule that is not empty.",
        )
    mass = (0.0, *accumulate(normalised(density)))
    low, high = _mass_at(mass, start), _mass_at(mass, end)
    if high - low < 1e-9:  # the density is 0 between start and end
        return tuple(start + (end - start) * i / steps for i in range(steps + 1))
    inner = (_position_of_mass(mass, low + (high - low) * i / steps) for i in range(1, steps))
    return (start, *inner, end)


def mass_between(density: Sequence[float], start: float, end: float) -> float:
    """The share of a grid's steps between two positions."""
    mass = (0.0, *accumulate(normalised(density)))
    return _mass_at(mass, end) - _mass_at(mass, start)


def _mass_at(mass: Sequence[float], position: float) -> float:
    return level_at(mass, position)


def _position_of_mass(mass: Sequence[float], wanted: float) -> float:
    blocks = len(mass) - 1
    block = min(bisect_right(mass, wanted) - 1, blocks - 1)
    width = mass[block + 1] - mass[block]
    return (block + ((wanted - mass[block]) / width if width > 0 else 0.0)) / blocks


def level_at(levels: Levels, position: float) -> float:
    """The noise level at a position of a fine schedule, interpolated linearly between its levels."""
    place = position * (len(levels) - 1)
    low = min(int(place), len(levels) - 2)
    return levels[low] + (levels[low + 1] - levels[low]) * (place - low)


def position_at(levels: Levels, level: float) -> float:
    """The position of a noise level in a fine schedule (the inverse of `level_at`), clamped to [0, 1]."""
    steps = len(levels) - 1
    for i in range(steps):
        if level >= levels[i + 1]:
            inside = (levels[i] - level) / (levels[i] - levels[i + 1])
            return (i + min(max(inside, 0.0), 1.0)) / steps
    return 1.0


def grid(levels: Levels, places: Sequence[float]) -> tuple[float, ...]:
    """The noise levels of a fine schedule, `levels`, at the positions `places`."""
    check_schedule(levels)
    return tuple(level_at(levels, place) for place in places)


def check_schedule(levels: Levels) -> None:
    """Raise an error if a schedule is not strictly decreasing.

    Raises:
        RASError: fewer than two levels, or a level that is not below the one before it.
    """
    if len(levels) >= 2 and all(a > b for a, b in zip(levels, levels[1:], strict=False)):
        return
    raise RASError(
        f"a schedule of {len(levels)} noise levels that is not strictly decreasing.",
        "at least two levels, each below the one before it.",
        "use the model's own `simple` schedule, with no more steps than the model has noise levels.",
    )


def front_loaded(levels: Levels, first: int, every: int) -> tuple[float, ...]:
    """A grid that keeps the first `first` steps of a schedule, and after them only every `every`-th level.
    The last level is always kept. This family of grids is called "first a of n, then every k".

    Args:
        levels: the schedule of n steps, n + 1 levels.
        first: the number a in the family's name, at least 0.
        every: the number k in the family's name, at least 1.
    """
    check_schedule(levels)
    return (*levels[:-1][:first], *levels[first:-1:every], levels[-1])


def front_loaded_density(steps: int, first: int, every: int) -> tuple[float, ...]:
    """The density of the grid that `front_loaded` makes of a schedule of `steps` steps with the same `first`
    and `every`. Another grid with this density may have any number of steps.
    """
    return normalised((1.0,) * first + (1 / every,) * (steps - first))


def part_of(levels: Levels, density: Sequence[float], steps: int, given: Levels) -> tuple[float, ...]:
    """A grid of `steps` steps for a part of the schedule: from the first level in `given` to the last one.
    These two levels are kept unchanged.

    A run covers only a part of the schedule if KSamplerAdvanced has start and end steps, or if denoise is
    below 1. The first and the last level are kept for two reasons. If two samplers share a schedule, the
    second must start at the level at which the first ends. And denoise must have its usual effect.

    Args:
        levels: the model's fine schedule.
        density: density over the whole fine schedule.
        steps: number of steps of the new grid.
        given: the sampler's own noise levels, at least two.
    """
    check_schedule(given)
    start, end = position_at(levels, given[0]), position_at(levels, given[-1])
    if end <= start:  # outside the range of the model's own levels, for which the density is not defined
        return tuple(level_at(given, i / steps) for i in range(steps + 1))
    inner = grid(levels, positions(density, steps, start, end))[1:-1]
    return (given[0], *inner, given[-1])
