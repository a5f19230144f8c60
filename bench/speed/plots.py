"""Plots of the speed program's results: speed-up compared to that expected from FLOPs (the "FLOP ideal"), run
time over image size and over batch size, and the time of each step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...ras_core.errors import RASError
from ..common.plotting import pyplot

Row = dict[str, Any]

FAMILY = "sd3_medium"
SERIES = {"eager": "tab:orange", "graph": "tab:red", "reference": "tab:blue", "lazycache": "tab:green"}
NAMES = {
    "eager": "RAS", "graph": "RAS, captured calls", "reference": "reference code, against its own dense run",
    "lazycache": "LazyCache (any ratio)",
}  # fmt: skip
RATIO_COLOURS = {1.0: "black", 0.5: "tab:orange", 0.25: "tab:red", 0.125: "tab:purple"}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    options = argparse.ArgumentParser(prog="bench speed-plot")
    options.add_argument("results", type=Path, nargs="+", help="result files (JSON) of `bench speed`")
    options.add_argument("--out", type=Path, required=True, help="folder for the plots")
    given = options.parse_args(argv)
    rows = read_rows(given.results)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        for name, draw in PLOTS.items():
            if not draw(rows, given.out / f"{name}.png"):
                print(f"no {name}.png, because the results lack the cases that it shows", file=sys.stderr)
    except RASError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """The rows that have figures, at most one row for each case and variant. If several files have a row for
    the same case and variant, the row of the file that is last in `paths` is used. If one file has two such
    rows, one with and one without dynamic VRAM, the row with dynamic VRAM is used, since dynamic VRAM is
    ComfyUI's default.
    """
    found: dict[tuple[str, str], Row] = {}
    for path in paths:
        rows = [row for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if row.get("seconds")]
        for row in sorted(rows, key=lambda row: bool(row.get("dynamic_vram"))):
            found[row["case"], row["variant"]] = row
    return list(found.values())


def series_of(row: Row) -> str | None:
    """The plotted series that a row belongs to (a key of SERIES); None for dense runs."""
    if row["method"] == "lazycache":
        return "lazycache"
    if row["ratio"] >= 1 or row["method"] == "dense":
        return None
    if row["method"] == "ras":
        return "eager" if row["graphs"] == "off" else "graph"
    return "reference"


def bars(rows: Sequence[Row], ratio: float) -> dict[str, dict[str, float]]:
    """For each series, the best speed-up against a dense run in each case. The reference code is compared
    with its own dense run, all other series with ComfyUI's.
    """
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        name = series_of(row)
        if name is None or (name != "lazycache" and row["ratio"] != ratio):
            continue
        speedup = row["own_speedup"] if name == "reference" else row["speedup"]
        cases = found.setdefault(name, {})
        cases[row["case"]] = max(speedup, cases.get(row["case"], 0.0))
    return found


def ideals(rows: Sequence[Row], ratio: float) -> dict[str, float]:
    """The speed-up expected from FLOPs for this pack's RAS at a ratio, by case."""
    return {
        row["case"]: row["ideal"]
        for row in rows
        if row["method"] == "ras" and row["ratio"] == ratio and row.get("ideal")
    }


def best_seconds(rows: Sequence[Row], ratio: float) -> Row | None:
    """The row of this pack's fastest RAS variant at a ratio; for ratio 1, that of ComfyUI's dense run."""
    if ratio >= 1:
        fitting = [row for row in rows if row["method"] == "dense"]
    else:
        fitting = [row for row in rows if row["method"] == "ras" and row["ratio"] == ratio]
    return min(fitting, key=lambda row: row["seconds"], default=None)


def ratios_of(rows: Sequence[Row]) -> list[float]:
    return sorted({row["ratio"] for row in rows if row["method"] == "ras" and row["ratio"] < 1}, reverse=True)


def speedup_plot(rows: Sequence[Row], out: Path) -> bool:
    """Plot the speed-up as a group of bars for each case, in one panel per ratio. A line across each group
    shows the speed-up expected from FLOPs.
    """
    ratios = ratios_of(rows)
    if not ratios:
        return False
    plt = pyplot()
    cases = list(dict.fromkeys(row["case"] for row in rows))
    fig, axes = plt.subplots(
        len(ratios), 1, figsize=(1.5 + 1.1 * len(cases), 3.1 * len(ratios)), squeeze=False, sharex=True
    )
    for ax, ratio in zip(axes[:, 0], ratios, strict=True):
        found = bars(rows, ratio)
        shown = [name for name in SERIES if name in found]
        width = 0.8 / len(shown)
        for number, name in enumerate(shown):
            offset = (number - (len(shown) - 1) / 2) * width
            x = [i + offset for i, case in enumerate(cases) if case in found[name]]
            heights = [found[name][case] for case in cases if case in found[name]]
            ax.bar(x, heights, width, color=SERIES[name], label=NAMES[name])
        for i, case in enumerate(cases):
            if ideal := ideals(rows, ratio).get(case):
                ax.hlines(ideal, i - 0.4, i + 0.4, colors="black", label="FLOP ideal" if i == 0 else None)
        ax.axhline(1, color="grey", linewidth=0.8)
        ax.set_ylabel("speed-up")
        ax.set_title(f"{ratio:.1%} of the tokens active in regional steps".replace(".0%", "%"))
        ax.grid(axis="y", alpha=0.3)
    axes[0, 0].legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.12), ncols=2)
    axes[-1, 0].set_xticks(range(len(cases)), cases, rotation=20, ha="right")
    _save(plt, fig, out)
    return True


def scaling_plot(
    rows: Sequence[Row], out: Path, place: Callable[[Row], int], labels: tuple[str, str], is_log: bool
) -> bool:
    """Draw two plots with a size on the x axis: the image size or the batch size. The left one shows the
    sampling time of a run, the right one the speed-up and the speed-up expected from FLOPs.

    Args:
        rows: rows of one family, whose cases differ only in the size on the x axis.
        out: image file.
        place: function that returns the size in a row.
        labels: label of the size axis, and the title.
        is_log: whether seconds are shown on a logarithmic scale.
    """
    sizes = sorted({place(row) for row in rows})
    if len(sizes) < 2:
        return False
    plt = pyplot()
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    for ratio in (1.0, *ratios_of(rows)):
        colour = RATIO_COLOURS.get(ratio)
        name = "dense" if ratio >= 1 else f"RAS {ratio:.1%}".replace(".0%", "%")
        best = {size: best_seconds([row for row in rows if place(row) == size], ratio) for size in sizes}
        points = [(size, row) for size, row in best.items() if row is not None]
        x = [size for size, _ in points]
        left.plot(x, [row["seconds"] for _, row in points], marker="o", color=colour, label=name)
        if ratio >= 1:
            continue
        right.plot(x, [row["speedup"] for _, row in points], marker="o", color=colour, label=name)
        ideal = [row["ideal"] for _, row in points]
        right.plot(x, ideal, linestyle="--", color=colour, label=f"FLOP ideal of {name}")
    if is_log:
        left.set_yscale("log")
    left.set_ylabel("sampling time of a run, s")
    right.set_ylabel("speed-up against dense")
    for ax in (left, right):
        ax.set_xticks(sizes)
        ax.set_xlabel(labels[0])
        ax.set_title(labels[1])
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    _save(plt, fig, out)
    return True


def resolution_plot(rows: Sequence[Row], out: Path) -> bool:
    found = [row for row in rows if row["case"].startswith(FAMILY + "-") and row["batch"] == 1]
    return scaling_plot(found, out, lambda row: row["pixels"], ("image side, px", FAMILY), is_log=True)


def batch_plot(rows: Sequence[Row], out: Path) -> bool:
    found = [row for row in rows if row["case"].startswith(FAMILY + "-1024")]
    labels = ("images in a batch", f"{FAMILY}, 1024 px")
    return scaling_plot(found, out, lambda row: row["batch"], labels, is_log=False)


def step_plot(rows: Sequence[Row], out: Path) -> bool:
    """Plot the milliseconds of each step, in one panel for each of the families that the reference
    supports.
    """
    cases = ("sd3_medium-1024", "lumina_next-1024")
    shown = {case: [row for row in rows if row["case"] == case and row.get("step_seconds")] for case in cases}
    shown = {case: found for case, found in shown.items() if found}
    if not shown:
        return False
    plt = pyplot()
    fig, axes = plt.subplots(1, len(shown), figsize=(7 * len(shown), 4.8), squeeze=False)
    for ax, (case, found) in zip(axes[0], shown.items(), strict=True):
        for row in found:
            if row["method"] == "lazycache" or (row["method"] == "ras" and row["ratio"] >= 1):
                continue
            style = "-" if row["method"] != "reference" else ":" if row["option"] else "--"
            ax.plot(  # without the last step, whose time includes the end of the run
                [1000 * seconds for seconds in row["step_seconds"][:-1]],
                color=RATIO_COLOURS.get(row["ratio"]), linestyle=style,
                marker="." if series_of(row) == "graph" else None, linewidth=1, label=row["variant"],
            )  # fmt: skip
        ax.set_ylim(bottom=0)
        ax.set_xlabel("step")
        ax.set_ylabel("ms")
        ax.set_title(case)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    _save(plt, fig, out)
    return True


PLOTS = {"speedup": speedup_plot, "resolution": resolution_plot, "batch": batch_plot, "steps": step_plot}


def _save(plt: Any, fig: Any, out: Path) -> None:
    fig.tight_layout()
    fig.savefig(out, dpi=130)
    plt.close(fig)
