"""Grids (noise schedules) by name, and their noise levels.

This module runs no model: costs measured on a model are passed to it as numbers. Names of grids:

- simple, beta, and other names of ComfyUI's schedulers: the noise levels of this scheduler;
- 8of40by3: the first 8 steps of the 40-step `simple` schedule, then every third of its levels;
- calibrated: more steps in those parts of the schedule where one long step causes the largest error on this
  model (calibrated.py);
- calibrated:0.5: the mean of the step densities of `calibrated` and of the `simple` schedule;
- density:3+1+1+2: the `simple` schedule is cut into equal parts (here four), and the steps are shared between
  them in these proportions.
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
"""Number of steps of a fine `simple` schedule. The noise levels of grids with a density are interpolated
between those of this schedule, as in the plans of ras_core.
"""

_FRONT_LOADED = re.compile(r"(\d+)of(\d+)by(\d+)")


def kind_of(name: str) -> str:
    """The kind of a grid, from its name: "scheduler", "front-loaded", "calibrated" or "density"."""
    if parts_of(name) is not None:
        return "front-loaded"
    head = name.partition(":")[0]
    return head if head in ("calibrated", "density") else "scheduler"


def parts_of(name: str) -> tuple[int, int, int] | None:
    """The numbers of a front-loaded grid's name: (8, 40, 3) for "8of40by3"; None for other grids.

    Raises:
        RASError: the numbers define no grid, as in "9of8by3".
    """
    found = _FRONT_LOADED.fullmatch(name)
    if found is None:
        return None
    first, steps, every = (int(number) for number in found.groups())
    if not first <= steps or steps < 1 or every < 1:
        raise RASError(
            f"the grid {name!r}.",
            "a name such as 8of40by3: the first 8 of 40 steps, then every third level.",
            "correct the grid.",
        )
    return first, steps, every


def steps_of(name: str) -> int | None:
    """The number of steps that the name of a grid fixes. If it is None, the cell decides the number."""
    parts = parts_of(name)
    if parts is None:
        return None
    first, steps, every = parts
    return first + -(-(steps - first) // every)


def density_named(name: str, costs: Callable[[], Sequence[float]]) -> tuple[float, ...]:
    """The step density of a grid: for each equal part of the `simple` schedule, its share of the steps.

    Args:
        name: name of a front-loaded, calibrated or density grid.
        costs: function that measures the model, called for calibrated grids only. For each part of the
            schedule, it returns the error of the final latent when a single long step crosses the part.

    Raises:
        RASError: this is not the name of a grid with a density.
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
        f"the grid {name!r}.",
        "a front-loaded, calibrated or density grid (see bench/quality/sigma_grids.py).",
        "correct the grid.",
    )


def levels_named(
    name: str,
    steps: int,
    scheduled: Callable[[str, int], Levels],
    costs: Callable[[], Sequence[float]],
) -> Levels:
    """The noise levels of a grid, from the highest to 0.

    Args:
        name: name of the grid.
        steps: number of steps; ignored if the name fixes the number of steps.
        scheduled: returns the noise levels of a ComfyUI scheduler for its name and a number of steps.
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
    """The name of a grid as tables and plots show it."""
    parts = parts_of(name)
    return name if parts is None else "first {} of {}, then every {}".format(*parts)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RASError(
            f"the grid {name!r}.", f"a number instead of {text!r}.", "correct the grid."
        ) from error
