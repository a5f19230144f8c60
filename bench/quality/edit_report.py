"""Write the README of an editing sweep from its results. This works without ComfyUI."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .edit_cells import FROZEN, SPEEDS, EditCell, best_rows
from .front import at_log_cost, pareto
from .table import markdown, whole_lines

NAMES = {
    "schedulers": "fewer dense steps, ComfyUI's `simple` and `beta`, euler and dpmpp_2m",
    "calibrated": "fewer dense steps, calibrated grid, euler and dpmpp_2m",
    "ab2_unbounded": "fewer dense steps, calibrated grid, the usual AB2",
    "ab2": "fewer dense steps, calibrated grid, `ab2`",
    "kept": "plan, regional steps process the reference image",
    "frozen": "plan, reference image frozen",
    "frozen, gpu": "reference image frozen, keys and values unchanged (`gpu`)",
    "frozen, forecast2": "reference image frozen, `forecast2`",
    "frozen, no spread": "reference image frozen, without `spread`",
    "exact": "reference image frozen, exact keys and values (upper bound)",
}
PLAIN, PLANS = ("schedulers", "calibrated", "ab2_unbounded", "ab2"), ("kept", *FROZEN)
NUMBERS = ("cost", "cost_own", "psnr", "psnr_sem", "ssim", "token_share", "seconds", "latent_error")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file (`whole_lines`), with numbers instead of texts; empty numbers are None."""
    rows = csv.DictReader(whole_lines(path).splitlines())
    return [{k: (float(v) if v else None) if k in NUMBERS else v for k, v in row.items()} for row in rows]


def psnr_at(rows: Sequence[dict[str, Any]], kind: str, speed: float) -> float | None:
    """PSNR in dB of one kind of run at a cost reduction.

    For runs without RAS it is interpolated on their front, linearly in the logarithm of the cost. For plans,
    which were made for these cost reductions, it is that of the best one.
    """
    if kind in PLAIN:
        front = pareto((row["cost"], row["psnr"]) for row in rows if row["kind"] == kind)
        return at_log_cost(front, speed)
    best = best_rows(rows, kind, speed)
    return best[0]["psnr"] if best else None


def write_readme(folder: Path) -> str:
    """Write README.md into a folder of results; returns its text."""
    rows = read_rows(folder / "cells.csv")
    told = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    text = f"{_head(told)}\n{_table(rows)}\n{_gains(rows)}\n{_plans(rows)}"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


def _head(told: dict[str, Any]) -> str:
    kinds = ", ".join(f"{count} of {kind}" for kind, count in told["kinds"].items())
    closeness, steps = told["closeness"], told["reference_steps"]
    return f"""# Editing, {told["device"]}, {told["updated"][:10]}
ComfyUI {told["comfyui"]}, PyTorch {told["torch"]}. A small editing model (`training`, family `flux_edit`)
sampled {told["images"]} held-out edits ({kinds}) at {told["size"]} px with CFG 3.5, with ReferenceLatent
on both conditionings.

PSNR is in dB, of the decoded RGB image against the converged image from the same noise ({steps} steps).
Costs such as 2x are cost reductions: the FLOPs of 28 dense steps divided by those of the run, computed for
Flux.1 at 1024 px with one reference image of the same size, whose rows are counted. The converged images
have {closeness["converged_to_wanted"]:.1f} dB to the wanted images; the reference images themselves have
{closeness["reference_to_wanted"]:.1f} dB. The file [cells.csv](cells.csv) has all runs.

    {told["command"]}
"""


def _speeds() -> list[float]:
    return sorted(SPEEDS)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for kind, name in NAMES.items():
        values = [_shown(rows, kind, speed) for speed in _speeds()]
        if any(values):
            lines.append([name, *values])
    return "## PSNR at equal cost\n" + markdown(
        ["PSNR, dB (SSIM)", *(f"{speed:g}x" for speed in _speeds())], lines
    )


def _shown(rows: Sequence[dict[str, Any]], kind: str, speed: float) -> str | None:
    found = psnr_at(rows, kind, speed)
    if found is None:
        return None
    best = best_rows(rows, kind, speed)
    likeness = best[0]["ssim"] if best and kind not in PLAIN else None
    return f"{found:.1f}" + (f" ({likeness:.3f})" if likeness else "")


def _gains(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for kind in PLANS:
        gains = []
        for speed in _speeds():
            ours = psnr_at(rows, kind, speed)
            rivals = [found for each in PLAIN if (found := psnr_at(rows, each, speed)) is not None]
            gains.append(f"{ours - max(rivals):+.1f}" if ours is not None and rivals else None)
        if any(gains):
            lines.append([NAMES[kind], *gains])
    return "## Gain over the best run without RAS\n" + markdown(
        ["gain, dB", *(f"{speed:g}x" for speed in _speeds())], lines
    )


def _plans(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for speed in _speeds():
        for kind in NAMES:
            for row in best_rows(rows, kind, speed)[:1]:
                error = row["psnr_sem"]
                told = f"{row['psnr']:.2f}" + (f" ± {error:.2f}" if error else "")
                lines.append([f"{row['cost']:.2f}x", told, EditCell.of_row(row).label])
    return "## The best run of each kind\n" + markdown(["cost", "PSNR, dB", "run"], lines)
