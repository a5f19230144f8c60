"""The cells that measure RAS with plans at many cost reductions.

A way (`Way`) is a rule for spending the cost of a run. It consists of a sigma grid, a sampler, an approximate
share of active tokens in regional steps, and the part of the cost that dense steps at the start take. A way
and a cost reduction together give one cell.

Some of the cells use exact keys and values (oracle.py); their quality is an upper bound for RAS.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...ras_core.errors import RASError, path_end
from ...ras_core.method.plan import Plan
from ...ras_core.method.plan_candidates import shares_for
from .cells import Cell
from .costs import DEFAULT_STEPS, SD3_MEDIUM, SD3_TEXT, SD3_TOKENS

TARGETS = (2.0, 1.5, 3.0, 2.5, 1.75, 3.5)
"""Cost reductions for which plans are made. The ones that users ask for most often come first."""
# A way to spend the cost of a run: grid, sampler, approximate share of the tokens in regional steps, part of
# the run's cost that is spent on dense steps at the start.
Way = tuple[str, str, float, float]
WAYS: tuple[Way, ...] = (
    ("calibrated:0.5", "dpmpp_2m", 0.7, 0.4),
    ("simple", "dpmpp_2m", 0.5, 0.45),
    ("calibrated:0.5", "dpmpp_2m", 0.5, 0.45),
    ("calibrated:0.5", "dpmpp_2m", 0.7, 0.6),
    ("simple", "dpmpp_2m", 0.7, 0.4),
    ("calibrated:0.5", "dpmpp_2m", 0.85, 0.5),
)
COARSE_WAYS: tuple[Way, ...] = (
    ("calibrated", "euler", 0.7, 0.4),
    ("calibrated", "euler", 0.5, 0.5),
)
"""Additional ways (`Way`), for cost reductions of 2.5x and more.

At such cost reductions the steps are so long that a first-order sampler is often better than a second-order
one.
"""
# Grid, number of dense steps at the start, share of the tokens in regional steps, number of dense steps at
# the end.
FRONT_LOADED = (
    ("6of28by2", 6, 0.7, 0),
    ("8of40by3", 8, 0.7, 0),
    ("10of50by3", 8, 0.6, 0),
    ("5of32by3", 5, 0.7, 0),
    ("8of40by5", 3, 0.5, 7),
    ("8of40by7", 3, 0.5, 5),
)
KV_CACHE = "forecast"
OLD_SETTINGS = ((28, 8, 0, 0.5), (28, 6, 0, 0.3), (20, 6, 0, 0.35), (28, 4, 0, 0.08))
"""Settings of RAS without a plan, as users can enter them in the nodes. They run on the `simple` schedule.

Each has the number of steps, the number of dense steps at the start, the interval of the later dense steps
(0: none), and the share of the tokens in regional steps.
"""


def plans(family: str, seed: int) -> list[Cell]:
    """All cells (configurations to be measured) that run RAS by a plan, in the order in which a sweep with a
    time limit should measure them.

    The ways in WAYS that promise the highest quality come first, and each way runs at all cost reductions in
    TARGETS. The cells of the first two ways also run with exact keys and values: the first six of these
    follow directly after the two ways, the others near the end.
    """
    made = [_cells(family, seed, [way]) for way in WAYS]
    coarse = _cells(family, seed, COARSE_WAYS, [target for target in TARGETS if target >= 2.5])
    bound = [replace(cell, method="exact_kv") for cell in (*made[0], *made[1])]
    auto = [replace(cell, kv_cache="auto") for cell in made[0][:3]]
    later = [cell for cells in made[3:] for cell in cells]
    cells = [*made[0], *made[1], *bound[:6], *made[2], *coarse, *_front_loaded(family, seed), *later]
    cells += [*auto, *bound[6:], *_old(family, seed)]
    return list({cell.key: cell for cell in cells}.values())


def step_cost(share: float) -> float:
    """Cost of a step on a share of the tokens, relative to a dense step: FLOPs for SD3-medium at 1024 px."""
    dense = SD3_MEDIUM.step_flops(SD3_TOKENS, SD3_TOKENS, SD3_TEXT)
    return SD3_MEDIUM.step_flops(SD3_TOKENS, round(share * SD3_TOKENS), SD3_TEXT) / dense


def cell_of_plan(family: str, plan: Plan, seed: int = 0) -> Cell:
    """A cell that runs this plan of ras_core on one family."""
    density = "+".join(f"{share:.6g}" for share in plan.density)
    return Cell(
        family, "plan", plan.solver, plan.steps,
        grid=f"density:{density}", shares=plan.shares, kv_cache=plan.kv_cache, seed=seed,
    )  # fmt: skip


def read_cells(path: Path, families: Sequence[str]) -> list[Cell]:
    """The cells that a JSON file lists, once for each family.

    Each entry of the list has either fields of Cell (without `family`) or a plan of ras_core.

    Raises:
        RASError: the file cannot be read, or is not such a list.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [
            cell_of_plan(family, Plan.from_dict(entry)) if "density" in entry else Cell(family, **entry)
            for family in families
            for entry in entries
        ]
    except (OSError, ValueError, TypeError) as error:
        raise RASError(
            f"cells in {path_end(path)} cannot be read: {error}.",
            'a JSON list such as [{"method": "plan", "grid": "8of40by3", "start": 8, "ratio": 0.7}].',
            "correct the file, or name another with --cells.",
        ) from error


def with_extra(cells: Iterable[Cell], extras: Sequence[dict[str, Any]]) -> list[Cell]:
    """The given cells, followed by copies of those whose method is plan or exact_kv.

    Each dictionary in `extras` has further fields of RASConfig, and makes one copy of every such cell.
    """
    cells = list(cells)
    planned = [cell for cell in cells if cell.method in ("plan", "exact_kv")]
    return [*cells, *(replace(cell, extra=extra) for extra in extras for cell in planned)]


def _cells(family: str, seed: int, ways: Sequence[Way], targets: Sequence[float] = TARGETS) -> list[Cell]:
    found = []
    for grid, sampler, share, dense in ways:
        for target in targets:
            shares = shares_for(DEFAULT_STEPS / target, share, dense, step_cost)
            if shares is not None:
                cell = Cell(
                    family, "plan", sampler, grid=grid, shares=shares, kv_cache=KV_CACHE, seed=seed
                )  # fmt: skip
                found.append(cell)
    return found


def _front_loaded(family: str, seed: int) -> list[Cell]:
    found = []
    for grid, start, share, end in FRONT_LOADED:
        cell = Cell(
            family, "plan", "dpmpp_2m", grid=grid, start=start, ratio=share, kv_cache=KV_CACHE, seed=seed
        )  # fmt: skip
        found.append(replace(cell, reset_steps=tuple(range(cell.steps - end, cell.steps))))
    return found


def _old(family: str, seed: int) -> list[Cell]:
    return [
        Cell(
            family, "multirate", "dpmpp_2m", steps, start=start, reset_every=reset, ratio=ratio, seed=seed
        )  # fmt: skip
        for steps, start, reset, ratio in OLD_SETTINGS
    ]
