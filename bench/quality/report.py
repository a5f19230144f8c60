"""Report on a table of cells: by how many dB multirate is better than fewer steps of the same cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ...ras_core.errors import RASError, path_end
from .cells import cell_from
from .front import Point, at_cost, best_at_cost, pareto
from .sigma_grids import kind_of
from .table import FIGURE_COLUMNS, markdown, read_rows

TARGETS = {1.5: 0.5, 2.0: 1.5, 2.5: 2.0, 3.0: 2.0, 3.5: 2.0}
"""Cost reduction -> required PSNR gain of multirate over the best fewer-steps baseline, in dB."""
OTHER_TARGETS = {"random": 2.0, "paper": 3.0}
"""Required PSNR gain of multirate over random tokens and over the paper's rule, in dB, at OTHER_COSTS."""
OTHER_COSTS = (1.5, 2.0)
OURS = ("multirate", "adaptive", "forecast", "plan")
"""Methods that count as this pack's RAS, in contrast to baselines and bounds."""
BASELINE_SAMPLERS = ("euler", "dpmpp_2m", "ab2")
Row = dict[str, Any]


@dataclass(frozen=True)
class Gain:
    """Multirate compared with the best fewer-steps baseline at one cost reduction.

    PSNRs and FDs are interpolated on Pareto fronts. They are None at cost reductions beyond the last point of
    their front.

    Attributes:
        cost: the cost reduction.
        wanted: required PSNR gain, dB.
        multirate, baseline: PSNR of the two fronts at this cost reduction, dB, interpolated between measured
            cells.
        name: curve of the best baseline: its sampler, or its kind of grid.
        setting: label of one measured multirate cell. Of the cells whose cost reduction is at least `cost`,
            it is the one with the highest PSNR.
        fd, fd_baseline: FD-EffLite0 of multirate and of the baseline, interpolated along their PSNR fronts.
        fd_spread: measurement uncertainty of FD-EffLite0: mean of the column `fd_spread` over multirate
            cells.
        kept: label of a cell chosen as `setting` is, but only from cells that keep the FD: theirs is at most
            `fd_baseline` + `fd_spread`. "" if there is no such cell.
        kept_gain: PSNR of the cell `kept` minus `baseline`, dB.
    """

    cost: float
    wanted: float
    multirate: float | None
    baseline: float | None
    name: str
    setting: str
    fd: float | None = None
    fd_baseline: float | None = None
    fd_spread: float | None = None
    kept: str = ""
    kept_gain: float | None = None

    @property
    def gain(self) -> float | None:
        if self.multirate is None or self.baseline is None:
            return None
        return self.multirate - self.baseline

    @property
    def verdict(self) -> str:
        """ "yes" if the required gain is reached, else "no"; "?" if a front ends before this cost reduction.

        If FD-EffLite0 was measured, `kept_gain` is compared with the required gain, otherwise `gain`.
        """
        if self.gain is None:
            return "?"
        counts = self.gain if self.fd is None else self.kept_gain
        return "yes" if counts is not None and counts >= self.wanted else "no"


def series_of(row: Row) -> str:
    """Name of the curve that a cell belongs to; a curve has the cells of one kind of method.

    The name is the kind of forecast for the method whole_steps, and the method for all others except dense.
    Dense cells on the `simple` schedule are named by their sampler, and those on other grids by the kind of
    grid.
    """
    if row["method"] == "whole_steps":
        return row["form"].rstrip("0123456789")
    if row["method"] != "dense":
        return row["method"]
    kind = kind_of(row["grid"] or "simple")
    if kind != "scheduler":
        return kind
    if row["grid"] not in ("", None, "simple"):
        return "other schedulers"
    return row["sampler"] if row["sampler"] in BASELINE_SAMPLERS else "other samplers"


def curves(rows: Sequence[Row], family: str) -> dict[str, list[Row]]:
    """For each curve (`series_of`), the rows of a family that belong to it.

    Rows that differ only in the seed are averaged into one row.
    """
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row["family"] == family:
            setting = cell_from({**row, "seed": 0}).key
            groups.setdefault(series_of(row), {}).setdefault(setting, []).append(row)
    return {name: [_mean(same) for same in settings.values()] for name, settings in groups.items()}


def points(rows: Sequence[Row], figure: str = "psnr") -> list[Point]:
    """(cost reduction at SD3-medium's shape, value of the figure) of all rows that have this figure."""
    return [(row["cost_sd3"], row[figure]) for row in rows if row[figure] is not None]


def front_of(rows: Sequence[Row]) -> list[Point]:
    """The Pareto front of these rows: PSNR against cost reduction."""
    return pareto(points(rows))


def baselines(groups: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The curves whose cells are dense runs with fewer steps."""
    return {name: rows for name, rows in groups.items() if rows[0]["method"] == "dense"}


def gains(rows: Sequence[Row], family: str) -> list[Gain]:
    """The comparison with the fewer-steps baselines at each cost reduction in TARGETS."""
    groups = curves(rows, family)
    dense, ours = baselines(groups), _ours(groups)
    fronts = {name: front_of(each) for name, each in dense.items()}
    front, found = front_of(ours), []
    for cost, wanted in TARGETS.items():
        best = best_at_cost(fronts, cost)
        name, quality = best if best else ("", None)
        fd, spread = _along(dense.get(name, []), cost, "fd"), _spread(ours)
        kept = _best(ours, cost, None if fd is None or spread is None else fd + spread)
        found.append(
            Gain(
                cost, wanted, at_cost(front, cost), quality, name, _label(_best(ours, cost)),
                _along(ours, cost, "fd"), fd, spread,
                _label(kept), None if kept is None or quality is None else kept["psnr"] - quality,
            )
        )  # fmt: skip
    return found


def _ours(groups: dict[str, list[Row]]) -> list[Row]:
    """The rows of the methods in OURS, including methods that occur only in older results."""
    return [row for name in OURS for row in groups.get(name, [])]


def versus_others(rows: Sequence[Row], family: str) -> list[list[Any]]:
    """Table lines that compare multirate, at each cost reduction in OTHER_COSTS, with two other methods:
    random tokens and the paper's rule.

    Each line has: cost reduction, the other method, its PSNR, the gain of multirate, the required gain.
    """
    groups = curves(rows, family)
    front = front_of(_ours(groups))
    lines = []
    for cost in OTHER_COSTS:
        for name, wanted in OTHER_TARGETS.items():
            ours, theirs = at_cost(front, cost), at_cost(front_of(groups.get(name, [])), cost)
            gain = None if ours is None or theirs is None else ours - theirs
            lines.append([f"{cost:g}x", name, theirs, gain, wanted])
    return lines


def report(folder: Path) -> str:
    """The full report on the results in a folder, as Markdown.

    Raises:
        RASError: the folder has no results.
    """
    rows = read_rows(folder / "cells.csv")
    if not rows:
        raise RASError(
            f"no results in {path_end(folder)}.",
            "a folder that `sweep --out` has written results to.",
            "run a sweep first.",
        )
    families = list(dict.fromkeys(row["family"] for row in rows))
    return "\n".join(
        part for family in families for part in (_gain_table(rows, family), _front_table(rows, family))
    )


def _gain_table(rows: Sequence[Row], family: str) -> str:
    found = gains(rows, family)
    header = ["cost", "multirate dB", "best fewer steps dB", "by", "gain dB", "wanted", "reached", "setting"]
    has_fd = any(line.fd is not None for line in found)
    lines = []
    for g in found:
        line = [f"{g.cost:g}x", g.multirate, g.baseline, g.name, g.gain, g.wanted, g.verdict, g.setting]
        lines.append(line + ([g.fd, g.fd_baseline, g.fd_spread, g.kept, g.kept_gain] if has_fd else []))
    header += ["FD", "FD fewer steps", "FD spread", "setting that keeps FD", "its gain dB"] if has_fd else []
    others = markdown(["cost", "compared with", "its dB", "gain dB", "wanted"], versus_others(rows, family))
    return f"## {family}: multirate against fewer steps\n\n{markdown(header, lines)}\n{others}"


def _front_table(rows: Sequence[Row], family: str) -> str:
    lines = []
    for name, cells in sorted(curves(rows, family).items()):
        front = set(front_of(cells))
        for row in sorted(cells, key=lambda row: row["cost_sd3"]):
            mark = "*" if (row["cost_sd3"], row["psnr"]) in front else ""
            figures = [
                row[c]
                for c in (
                    "cost_sd3",
                    "cost_own",
                    "seconds",
                    "psnr",
                    "ssim",
                    "psnr_dense",
                    "latent_error",
                    "fd",
                )
            ]
            lines.append([name, cell_from(row).label, mark, *figures])
    header = [
        "curve",
        "cell",
        "front",
        "cost",
        "cost here",
        "seconds",
        "PSNR dB",
        "SSIM",
        "to dense dB",
        "latent",
        "FD",
    ]
    return f"### {family}: all cells\n\n{markdown(header, lines)}"


def _best(rows: Sequence[Row], cost: float, most_fd: float | None = None) -> Row | None:
    """The row with the highest PSNR whose cost reduction is at least `cost` (1 % less is allowed).

    If `most_fd` is given, only rows with an FD-EffLite0 of at most this value are considered.
    """
    cheap = [row for row in rows if row["cost_sd3"] >= cost * 0.99]
    if most_fd is not None:
        cheap = [row for row in cheap if row["fd"] is not None and row["fd"] <= most_fd]
    return max(cheap, key=lambda row: row["psnr"]) if cheap else None


def _label(row: Row | None) -> str:
    return cell_from(row).label if row else ""


def _along(rows: Sequence[Row], cost: float, figure: str) -> float | None:
    """The value of a figure at a cost reduction, interpolated between the cells of the PSNR front.

    The value is None at cost reductions beyond the end of the front, or if a cell of the front lacks this
    figure.
    """
    front = set(front_of(rows))
    cells = sorted((row for row in rows if (row["cost_sd3"], row["psnr"]) in front), key=_cost)
    if not cells or any(row[figure] is None for row in cells):
        return None
    return at_cost([(row["cost_sd3"], row[figure]) for row in cells], cost)


def _spread(rows: Sequence[Row]) -> float | None:
    found = [row["fd_spread"] for row in rows if row["fd_spread"] is not None]
    return mean(found) if found else None


def _cost(row: Row) -> float:
    return row["cost_sd3"]


def _mean(rows: Sequence[Row]) -> Row:
    """Merge the rows of several seeds into one: each figure that all of them have is averaged."""
    if len(rows) == 1:
        return rows[0]
    numbers = [c for c in FIGURE_COLUMNS if isinstance(rows[0][c], (int, float))]
    same = {c: mean(row[c] for row in rows) for c in numbers if all(row[c] is not None for row in rows)}
    return {**rows[0], **same}
