"""Names of noise schedules, and their levels. Pure: what is measured on a model comes as numbers.

simple, beta, ...      one of ComfyUI's schedulers
8of40by3               the first 8 steps of the 40-step `simple` schedule, then every third of its levels
calibrated             steps where one long step costs most on this model (calibrated.py)
calibrated:0.5         the same, half-way to the `simple` schedule
density:3+1+1+2        so many steps in each of equal parts of the `simple` schedule, by proportion
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ...ras_core.errors import RASError
from ...ras_core.method.sigma_grid import (
    COST_ORDER,
    density_of,
    front_loaded,
    front_loaded_density,
    grid,
    normalised,
    positions,
)

Levels = tuple[float, ...]
FINE_STEPS = 200
"""Steps of the schedule that a density refers to; as ras_core's plans have it."""

_FRONT_LOADED = re.compile(r"(\d+)of(\d+)by(\d+)")


def kind_of(name: str) -> str:
    """Which kind of grid: "scheduler", "front-loaded", "calibrated" or "density"."""
    if parts_of(name) is not None:
        return "front-loaded"
    head = name.partition(":")[0]
    return head if head in ("calibrated", "density") else "scheduler"


def parts_of(name: str) -> tuple[int, int, int] | None:
    """(first, steps, every) of "first of steps by every"; None for other grids.

    Raises:
        RASError: numbers that make no grid.
    """
    found = _FRONT_LOADED.fullmatch(name)
    if found is None:
        return None
    first, steps, every = (int(number) for number in found.groups())
    if not first <= steps or steps < 1 or every < 1:
        raise RASError(
            f"the grid {name!r}.", "first of steps by every, such as 8of40by3.", "correct the grid."
        )
    return first, steps, every


def steps_of(name: str) -> int | None:
    """The number of steps that a grid's name settles; None where the cell says it."""
    parts = parts_of(name)
    if parts is None:
        return None
    first, steps, every = parts
    return first + -(-(steps - first) // every)


def density_named(name: str, costs: Callable[[], Sequence[float]]) -> tuple[float, ...]:
    """The density of a grid that has one.

    Args:
        name: of any grid but a scheduler other than `simple`.
        costs: measures the model, where the name asks for it: final error of one long step over each part.

    Raises:
        RASError: the name is not understood.
    """
    kind, _, value = name.partition(":")
    parts = parts_of(name)
    if parts is not None:
        first, steps, every = parts
        return front_loaded_density(steps, first, every)
    if kind == "calibrated":
        return density_of(costs(), COST_ORDER, _number(name, value) if value else 0.0)
    if kind == "density":
        return normalised([_number(name, part) for part in value.split("+")])
    raise RASError(
        f"the grid {name!r}.", "one of those that bench/quality/sigma_grids.py names.", "correct the grid."
    )


def levels_named(
    name: str,
    steps: int,
    scheduled: Callable[[str, int], Levels],
    costs: Callable[[], Sequence[float]],
) -> Levels:
    """Noise levels of a grid, from the first to 0.

    Args:
        name: of the grid.
        steps: how many; a name with its own number of steps settles it itself.
        scheduled: levels of one of ComfyUI's schedulers, by its name and a number of steps.
        costs: as for `density_named`.
    """
    parts = parts_of(name)
    if parts is not None:
        first, fine, every = parts
        return front_loaded(scheduled("simple", fine), first, every)
    if kind_of(name) == "scheduler":
        return scheduled(name, steps)
    return grid(scheduled("simple", FINE_STEPS), positions(density_named(name, costs), steps))


def label_of(name: str) -> str:
    """The grid in words, for tables and plots."""
    parts = parts_of(name)
    return name if parts is None else "first {} of {}, then every {}".format(*parts)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RASError(f"the grid {name!r}.", f"a number instead of {text!r}.", "correct it.") from error
