"""RAS compared with the best of all baselines: gain in dB at equal cost, and speed-up at equal quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .cells import cell_from
from .front import Ratio, at_log_cost, time_to_equal_quality
from .report import OURS, Row, curves, front_of, series_of
from .table import markdown

COSTS = (1.5, 1.75, 2.0, 2.5, 3.0, 3.5)
BOUND = "exact_kv"
NEITHER = (BOUND, "change")
"""Methods that count neither as RAS nor as a baseline.

The method exact_kv has exact keys and values at the cost of regional steps, which no user can have. The
method change selects tokens as RAS does, but without the multirate integrator, so it is only a part of RAS.
"""
NAMES = {
    "euler": "fewer steps, simple, Euler",
    "dpmpp_2m": "fewer steps, simple, DPM++ 2M",
    "ab2": "fewer steps, simple, AB2",
    "other samplers": "fewer steps, simple, other samplers",
    "other schedulers": "fewer steps, other schedulers",
    "front-loaded": "first a of n, then every k",
    "calibrated": "calibrated grid",
    "density": "grid by density",
    "taylor": "whole-step forecast, Taylor",
    "hermite": "whole-step forecast, Hermite",
    "chebyshev": "whole-step forecast, Chebyshev",
    "dbcache": "DBCache",
    "lazycache": "LazyCache",
    "easycache": "EasyCache",
    "random": "random tokens",
    "paper": "RAS as in the paper",
    "plan": "RAS with a plan",
    "multirate": "RAS, simple grid",
    "forecast": "RAS, simple grid, kv_cache forecast",
    "continued": "forecast, outputs continued",
    "quadratic": "forecast2",
    "spread": "forecast, errors spread",
    "fresher": "forecast2, outputs continued, errors spread",
    BOUND: "exact K/V (not achievable)",
}


@dataclass(frozen=True)
class Standing:
    """RAS compared with the best baseline at one cost reduction.

    A figure is None if its front ends before this cost reduction.

    Attributes:
        cost: the cost reduction.
        ours, theirs, bound: PSNR in dB at this cost reduction on the front of RAS, of all baselines together,
            and of RAS with exact keys and values.
        time: how many times faster RAS reaches the quality `ours` than the baselines do.
        best, rival: one measured cell of RAS and one of the baselines. Of the cells whose cost reduction is
            at least `cost`, each is the one with the highest PSNR.
    """

    cost: float
    ours: float | None
    theirs: float | None
    bound: float | None
    time: Ratio | None
    best: Row | None
    rival: Row | None

    @property
    def gain(self) -> float | None:
        """PSNR of RAS minus that of the best baseline, in dB, at this cost reduction."""
        return None if self.ours is None or self.theirs is None else self.ours - self.theirs


def sides(rows: Sequence[Row], family: str) -> dict[str, list[Row]]:
    """The rows of a family: "ours" (RAS), "theirs" (all baselines) and "bound" (exact keys and values)."""
    found: dict[str, list[Row]] = {"ours": [], "theirs": [], "bound": []}
    for name, cells in curves(rows, family).items():
        if name in OURS:
            found["ours"] += cells
        elif name == BOUND:
            found["bound"] += cells
        elif name not in NEITHER:
            found["theirs"] += cells
    return found


def standings(rows: Sequence[Row], family: str, costs: Sequence[float] = COSTS) -> list[Standing]:
    """RAS compared with the best baseline at each of these cost reductions."""
    groups = sides(rows, family)
    ours, theirs, bound = (front_of(groups[name]) for name in ("ours", "theirs", "bound"))
    return [
        Standing(
            cost, at_log_cost(ours, cost), at_log_cost(theirs, cost), at_log_cost(bound, cost),
            time_to_equal_quality(ours, theirs, cost),
            _cheap_best(groups["ours"], cost), _cheap_best(groups["theirs"], cost),
        )
        for cost in costs
    ]  # fmt: skip


def rival_tables(rows: Sequence[Row], family: str) -> str:
    """Two Markdown tables: RAS compared with the best baseline, and the PSNR of each kind of method."""
    header = [
        "cost", "RAS dB", "best baseline dB", "kind", "gain dB", "times faster to equal PSNR",
        "exact K/V dB (not achievable)", "RAS SSIM", "baseline SSIM", "RAS cell", "baseline cell",
    ]  # fmt: skip
    against = markdown(header, [_line(each) for each in standings(rows, family)])
    kinds = markdown(["kind", *(f"{cost:g}x" for cost in COSTS)], _kind_lines(rows, family))
    return (
        f"## {family}: RAS against the best of all baselines\n\n{against}\n"
        f"PSNR in dB of each kind of method at these cost reductions:\n\n{kinds}"
    )


def _line(standing: Standing) -> list:
    best, rival, time = standing.best, standing.rival, standing.time
    return [
        f"{standing.cost:g}x", standing.ours, standing.theirs, NAMES.get(series_of(rival)) if rival else None,
        standing.gain, f"{time.bound} {time.value:.2f}".strip() if time else None, standing.bound,
        best and best["ssim"], rival and rival["ssim"],
        cell_from(best).label if best else None, cell_from(rival).label if rival else None,
    ]  # fmt: skip


def _kind_lines(rows: Sequence[Row], family: str) -> list[list]:
    lines = []
    for name, cells in curves(rows, family).items():
        front = front_of(cells)
        lines.append([NAMES.get(name, name), *(at_log_cost(front, cost) for cost in COSTS)])
    return sorted(
        lines, key=lambda line: list(NAMES.values()).index(line[0]) if line[0] in NAMES.values() else 99
    )


def _cheap_best(rows: Sequence[Row], cost: float) -> Row | None:
    """The measured cell with the highest PSNR whose cost reduction is at least `cost`.

    A cost reduction 1 % smaller is allowed: few cells meet `cost` exactly, since the number of steps is an
    integer.
    """
    cheap = [row for row in rows if row["psnr"] is not None and row["cost_sd3"] >= cost * 0.99]
    return max(cheap, key=lambda row: row["psnr"], default=None)
