"""The cells that compare the plans of the nodes' input `speed` with what can be done without them."""

from __future__ import annotations

from dataclasses import replace

from ...ras_core.method.family_plans import family_plans
from ...ras_core.method.plan import PLAN_SPEEDS
from .baselines import Dense, dense, whole_steps
from .cells import Cell
from .plan_cells import cell_of_plan

FEWER_STEPS: tuple[Dense, ...] = (
    *(("ab2", "calibrated", steps) for steps in (14, 11, 9, 19, 16, 12, 10, 8, 22)),
    *(("ab2_unbounded", "calibrated", steps) for steps in (14, 11, 19, 17, 12, 24, 28)),
    *(("ab2_unbounded", "calibrated:0.5", steps) for steps in (14, 19, 17, 24)),
    *(("dpmpp_2m", "calibrated", steps) for steps in (14, 19, 11)),
    *(("dpmpp_2m", "calibrated:0.5", steps) for steps in (14, 19, 24, 36)),
    *(("euler", "calibrated", steps) for steps in (11, 9, 14, 8)),
    *((sampler, grid, 14) for sampler in ("euler", "dpmpp_2m") for grid in ("simple", "beta")),
)
"""Fewer dense steps: the strongest of the cells of `baselines`, and ComfyUI's own schedules.

Up to 36 steps, which cost more than 28, so that fronts of dense runs reach the PSNR of the plan for 1.5x.
"""

# Forecast, sampler, steps, computed steps at the start, interval of the computed steps after those.
FORECASTS = (("taylor1", "dpmpp_2m", 40, 6, 3), ("taylor1", "dpmpp_2m", 28, 5, 3))


def speeds(family: str, seed: int) -> list[Cell]:
    """The plan of each speed, the same with exact keys and values, and the strongest baselines."""
    plans = [_cell(family, speed, seed) for speed in PLAN_SPEEDS]
    bounds = [replace(cell, method="exact_kv") for cell in plans if cell.method == "plan"]
    fewer = [dense(family, *each, seed=seed) for each in FEWER_STEPS]
    forecasts = [whole_steps(family, *each, seed=seed) for each in FORECASTS]
    return list({cell.key: cell for cell in (*plans, *fewer, *bounds, *forecasts)}.values())


def _cell(family: str, speed: str, seed: int) -> Cell:
    plan = family_plans(family).best(speed)
    if plan.is_plain:
        return dense(family, plan.solver, "calibrated", plan.steps, seed)
    return replace(cell_of_plan(family, plan, seed), extra={"spread": True})
