"""Tables of all families: the plans of the input `speed`, and what can be done without regional steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ras_core.method.plan import PLAN_SPEEDS
from .front import at_log_cost, time_to_equal_quality
from .report import Row, front_of
from .sigma_grids import kind_of
from .table import markdown

Kind = Callable[[Row], bool]


def _dense(*samplers: str) -> Kind:
    return lambda row: row["method"] == "dense" and row["sampler"] in samplers


def _of_comfyui(row: Row) -> bool:
    return _dense("euler", "dpmpp_2m")(row) and kind_of(row["grid"] or "simple") == "scheduler"


RIVALS: dict[str, Kind] = {
    "dense, `ab2`": _dense("ab2"),
    "dense, `ab2` without its bound": _dense("ab2_unbounded"),
    "dense, euler or dpmpp_2m, any noise levels": _dense("euler", "dpmpp_2m"),
    "dense, ComfyUI's schedulers": _of_comfyui,
    "forecasts of whole steps": lambda row: row["method"] == "whole_steps",
}
BOUND = "exact keys and values (not achievable)"
SPEEDS = {name: float(name.removesuffix("x")) for name in PLAN_SPEEDS}
NEAR = 0.02
"""Relative difference between a plan's cost reduction and its speed, up to which the cell is that plan."""
ROUNDING = 0.002
"""Relative difference between a cell's cost reduction and its speed that comes from rounded token shares."""


def plan_tables(rows: Sequence[Row]) -> str:
    """Markdown tables of all families: PSNR, SSIM and FDs at equal cost, and time to equal PSNR.

    A cell of a table has one value for each family, separated by slashes. A family without a cell of the
    method `plan` near a speed has "–" there. The text is empty if no family has such a cell.
    """
    families = list(dict.fromkeys(row["family"] for row in rows))
    if not any(_plan(rows, family, speed) for family in families for speed in SPEEDS.values()):
        return ""
    kinds = {"the plan": _is_plan, **RIVALS, BOUND: lambda row: row["method"] == "exact_kv"}

    def table(kinds: dict[str, Kind], value: Callable[[str, Kind, float], str]) -> str:
        lines = [
            [
                name,
                *(" / ".join(value(family, kind, speed) for family in families) for speed in SPEEDS.values()),
            ]
            for name, kind in kinds.items()
        ]
        return markdown([" / ".join(families), *SPEEDS], lines)

    parts = [
        "## The plans\nPSNR in dB at equal cost. Values between two cells are interpolated over\n"
        "the logarithm of the cost reduction.\n",
        table(kinds, lambda family, kind, speed: _psnr(rows, family, kind, speed)),
        "How many times faster the plan is than such runs, at the PSNR of the plan.\n",
        table(RIVALS, lambda family, kind, speed: _time(rows, family, kind, speed)),
    ]
    for figure, digits in (("ssim", 3), ("fd", 1), ("fd_block4", 1)):
        if any(row[figure] for row in rows):
            parts += [
                f"{figure} of the cell with the nearest cost that is not higher.\n",
                table(kinds, lambda *of, figure=figure, digits=digits: _nearest(rows, *of, figure, digits)),
            ]
    return "\n".join(parts)


def _is_plan(row: Row) -> bool:
    return row["method"] == "plan"


def _of(rows: Sequence[Row], family: str, kind: Kind) -> list[Row]:
    return [row for row in rows if row["family"] == family and row["psnr"] is not None and kind(row)]


def _plan(rows: Sequence[Row], family: str, speed: float) -> Row | None:
    near = [row for row in _of(rows, family, _is_plan) if abs(row["cost_sd3"] / speed - 1) < NEAR]
    return max(near, key=lambda row: row["psnr"], default=None)


def _psnr(rows: Sequence[Row], family: str, kind: Kind, speed: float) -> str:
    """Interpolated on the front of this kind. For plans, only a plan of this very speed counts."""
    if kind is _is_plan:
        plan = _plan(rows, family, speed)
        return "–" if plan is None else f"{plan['psnr']:.1f}"
    # A cell may miss its speed by rounding.
    found = at_log_cost(front_of(_of(rows, family, kind)), speed / (1 + ROUNDING))
    return "–" if found is None else f"{found:.1f}"


def _time(rows: Sequence[Row], family: str, kind: Kind, speed: float) -> str:
    plan = _plan(rows, family, speed)
    if plan is None:
        return "–"
    cost = plan["cost_sd3"]
    rivals = front_of(_of(rows, family, kind))
    ratio = time_to_equal_quality([(cost, plan["psnr"])], rivals, cost)
    return "–" if ratio is None else f"{ratio.bound}{ratio.value:.2f}"


def _nearest(rows: Sequence[Row], family: str, kind: Kind, speed: float, figure: str, digits: int) -> str:
    """Of cells with equal costs, the one with the highest PSNR."""
    cells = [row for row in _of(rows, family, kind) if row["cost_sd3"] >= speed * (1 - NEAR) and row[figure]]
    nearest = min(cells, key=lambda row: (round(row["cost_sd3"], 2), -row["psnr"]), default=None)
    return "–" if nearest is None else f"{nearest[figure]:.{digits}f}"
