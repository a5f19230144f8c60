"""Where the steps of a run belong: from measured errors to a density of steps, and from that to noise levels.

A position is a place in a fine schedule: 0 at its first noise level, 1 at its last, linear in its steps. A
density says how many steps belong into each of K blocks of equal length in position.

A solver whose error in one step grows like (length)^q, with n steps in a block of error cost c, makes an
error of c n^(1 - q) there. For a fixed number of steps the sum over all blocks is least where n ~ c^(1/q).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from ..errors import RASError

Levels = Sequence[float]

COST_ORDER = 2.0
"""Euler's q."""

EVEN_PART = 0.5
"""Half-way to an even density, for a multistep sampler."""


def density_of(costs: Sequence[float], order: float = 2.0, even: float = 0.0) -> tuple[float, ...]:
    """The share of steps that each block should get.

    Args:
        costs: error in the final latent when a block is done in one step, for each block; any unit.
        order: q, the power of a step's length with which its error grows; 2 for Euler.
        even: share of an even density to mix in, 0 to 1. A step of a real run is not confined to a block,
            and costs are noisy, so that half-way is often better than the pure rule.

    Returns:
        As many numbers as blocks, with sum 1.

    Raises:
        RASError: no costs, or one that is negative or not finite; order or even out of range.
    """
    if not costs or not all(math.isfinite(cost) and cost >= 0 for cost in costs):
        raise RASError(
            f"costs of blocks = {list(costs)}.",
            "at least one finite number of 0 or more.",
            "measure the blocks again.",
        )
    if order <= 0 or not 0 <= even <= 1:
        raise RASError(
            f"order = {order}, even = {even}.", "order above 0, even from 0 to 1.", "correct the arguments."
        )
    weights = normalised([cost ** (1 / order) for cost in costs])
    return tuple((1 - even) * weight + even / len(costs) for weight in weights)


def step_density(costs: Sequence[float], multistep: bool) -> tuple[float, ...]:
    """The density that a plan takes unless another is measured to be better.

    Args:
        costs: measured with Euler, for multistep samplers too: after a jump in step length these extrapolate
            far, and the error of that is no measure of where steps belong.
        multistep: whether it is for a sampler like dpmpp_2m, which wants step lengths to change gently.
    """
    return density_of(costs, COST_ORDER, EVEN_PART if multistep else 0.0)


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """The same weights with sum 1; even ones if all are 0. A sum of 1 leaves them as they are."""
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
        density: mass of each block; a block without mass is crossed by one step.
        steps: at least 1.
        start, end: positions of the first and the last level. The steps between are distributed by the part
            of the density that lies there.

    Raises:
        RASError: fewer than one step, or start not before end.
    """
    if steps < 1 or not 0 <= start < end <= 1:
        raise RASError(
            f"{steps} steps from position {start} to {end}.",
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
    """The position of a noise level in a fine schedule, the inverse of `level_at`; clamped to 0 and 1."""
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
    """Refuse a schedule that does not decrease all the way.

    Raises:
        RASError: fewer than two levels, or one that is not below the one before it.
    """
    if len(levels) >= 2 and all(a > b for a, b in zip(levels, levels[1:], strict=False)):
        return
    raise RASError(
        f"a schedule of {len(levels)} noise levels that does not decrease all the way.",
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
    """A grid for the same part of the schedule as a given one: the same first and last level.

    KSamplerAdvanced's start and end steps make such parts, and so does denoise below 1. Levels at the joints
    stay, so that two samplers that share a run meet at one level, and denoise keeps its meaning.

    Args:
        levels: the model's fine schedule.
        density: over the whole of it.
        steps: of the new grid.
        given: the sampler's own noise levels, two at least.
    """
    check_schedule(given)
    start, end = position_at(levels, given[0]), position_at(levels, given[-1])
    if end <= start:  # outside of the model's own levels: nothing is known of them
        return tuple(level_at(given, i / steps) for i in range(steps + 1))
    inner = grid(levels, positions(density, steps, start, end))[1:-1]
    return (given[0], *inner, given[-1])
