"""Places the steps of a run: computes their density from measured errors, and noise levels from the density.

A position is a point in a fine schedule: 0 at its first noise level, 1 at its last, linear in its steps. A
density is the share of the steps in each of K blocks of equal length in position.

If a solver's error in one step is proportional to (length)^q, and one step over a block has error c, then n
steps in that block have error c n^(1 - q). For a fixed number of steps, the sum over all blocks is smallest
if n ~ c^(1/q).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from ..errors import RASError

Levels = Sequence[float]

COST_ORDER = 2.0
"""The power q with which the error of the Euler method grows with the length of a step."""

EVEN_PART = 0.5
"""Share of an even density that is mixed in for a multistep sampler."""


def density_of(costs: Sequence[float], order: float = 2.0, even: float = 0.0) -> tuple[float, ...]:
    """The share of steps that each block should get.

    Args:
        costs: for each block, error in the final latent if the block is done in one step; any unit.
        order: q, the power of a step's length with which its error grows; 2 for Euler.
        even: share of an even density to mix in, 0 to 1. Steps of a real run extend over several blocks, and
            costs are noisy, so 0.5 is often better than 0.

    Returns:
        As many numbers as blocks, with sum 1.

    Raises:
        RASError: no costs, or one that is negative or not finite; order or even out of range.
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
    """The default density of a plan.

    Args:
        costs: measured with Euler, even for multistep samplers: these extrapolate far after a sudden change
            of step length, and the resulting error does not show where steps are needed.
        multistep: whether the density is for a multistep sampler such as dpmpp_2m, which works best if step
            lengths change gradually.
    """
    return density_of(costs, COST_ORDER, EVEN_PART if multistep else 0.0)


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights scaled to sum 1; equal ones if all are 0. Weights whose sum is 1 already are not changed."""
    total = sum(weights)
    if abs(total - 1) < 1e-12:
        return tuple(weights)
    return tuple(weight / total if total > 0 else 1 / len(weights) for weight in weights)


def even_density(blocks: int = 1) -> tuple[float, ...]:
    """The density of the fine schedule itself."""
    return (1 / blocks,) * blocks


def positions(
    density: Sequence[float], steps: int, start: float = 0.0, end: float = 1.0
) -> tuple[float, ...]:
    """Positions of the `steps` + 1 levels of a grid between two positions, with equal mass in each step.

    Args:
        density: relative number of steps (mass) of each block; blocks without mass are crossed in one step.
        steps: at least 1.
        start, end: positions of the first and the last level. The steps between them are distributed by the
            density between them.

    Raises:
        RASError: fewer than one step, or start not before end.
    """
    if steps < 1 or not 0 <= start < end <= 1:
        raise RASError(
            f"{steps} steps from position {start} to {end} of the schedule.",
            "at least one step, and 0 <= start < end <= 1.",
            "ask for at least one step, and a part of the schedule that is not empty.",
        )
    mass = (0.0, *accumulate(normalised(density)))
    low, high = _mass_at(mass, start), _mass_at(mass, end)
    if high - low < 1e-9:  # no mass in this part
        return tuple(start + (end - start) * i / steps for i in range(steps + 1))
    inner = (_position_of_mass(mass, low + (high - low) * i / steps) for i in range(1, steps))
    return (start, *inner, end)


def _mass_at(mass: Sequence[float], position: float) -> float:
    return level_at(mass, position)


def _position_of_mass(mass: Sequence[float], wanted: float) -> float:
    blocks = len(mass) - 1
    block = min(bisect_right(mass, wanted) - 1, blocks - 1)
    width = mass[block + 1] - mass[block]
    return (block + ((wanted - mass[block]) / width if width > 0 else 0.0)) / blocks


def level_at(levels: Levels, position: float) -> float:
    """The noise level at a position of a fine schedule, linear between two of its levels."""
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
    """The noise levels at these positions of a fine schedule."""
    check_schedule(levels)
    return tuple(level_at(levels, place) for place in places)


def check_schedule(levels: Levels) -> None:
    """Refuse a schedule that is not strictly decreasing.

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
    """The family "first a of n, then every k": the first `first` steps of a schedule, then every k-th level.

    Args:
        levels: the n-step schedule, n + 1 levels.
        first: a, from 0 on.
        every: k, from 1 on.
    """
    check_schedule(levels)
    return (*levels[:-1][:first], *levels[first:-1:every], levels[-1])


def front_loaded_density(steps: int, first: int, every: int) -> tuple[float, ...]:
    """The density of "first a of n, then every k", for grids of any number of steps."""
    return normalised((1.0,) * first + (1 / every,) * (steps - first))


def part_of(levels: Levels, density: Sequence[float], steps: int, given: Levels) -> tuple[float, ...]:
    """A grid for the same part of the schedule as a given grid, with the same first and last level.

    A run covers only a part if KSamplerAdvanced has start and end steps, or if denoise is below 1. The first
    and the last level are kept, so that two samplers that share a run meet at one level, and denoise keeps
    its meaning.

    Args:
        levels: the model's fine schedule.
        density: density over this whole schedule.
        steps: number of steps of the new grid.
        given: the sampler's own noise levels, at least two.
    """
    check_schedule(given)
    start, end = position_at(levels, given[0]), position_at(levels, given[-1])
    if end <= start:  # outside the model's own levels, where the density says nothing
        return tuple(level_at(given, i / steps) for i in range(steps + 1))
    inner = grid(levels, positions(density, steps, start, end))[1:-1]
    return (given[0], *inner, given[-1])
