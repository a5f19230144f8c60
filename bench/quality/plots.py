"""Plots of the results, drawn with matplotlib, which is an optional package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.plotting import pyplot
from .front import pareto
from .report import Row, curves, front_of, points
from .rivals import NAMES, sides

MARKS = {
    "euler": ("tab:gray", "o"),
    "dpmpp_2m": ("tab:blue", "s"),
    "ab2": ("tab:cyan", "^"),
    "multirate": ("tab:red", "D"),
    "adaptive": ("tab:pink", "*"),
    "forecast": ("black", "p"),
    "continued": ("tab:pink", "p"),
    "quadratic": ("tab:cyan", "p"),
    "spread": ("tab:gray", "p"),
    "fresher": ("tab:red", "p"),
    "change": ("tab:orange", "v"),
    "random": ("tab:olive", "x"),
    "paper": ("tab:purple", "P"),
    "lazycache": ("tab:green", "<"),
    "easycache": ("tab:brown", ">"),
    "plan": ("tab:red", "*"),
    "exact_kv": ("tab:pink", "2"),
    "calibrated": ("navy", "h"),
    "front-loaded": ("royalblue", "H"),
    "density": ("slateblue", "8"),
    "other schedulers": ("lightsteelblue", "."),
    "other samplers": ("darkgray", "."),
    "taylor": ("darkgreen", "1"),
    "hermite": ("seagreen", "3"),
    "chebyshev": ("olivedrab", "4"),
    "dbcache": ("saddlebrown", "d"),
}


def front_plot(rows: Sequence[Row], family: str, out: Path, figure: str = "psnr") -> None:
    """Plot quality against cost reduction: each cell as a marker, and the Pareto front of each kind of method
    as a line.
    """
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(8, 5.2))
    for name, cells in curves(rows, family).items():
        found = points(cells, figure)
        if not found:
            continue
        colour, mark = MARKS.get(name, ("black", "."))
        ax.plot(*zip(*found, strict=True), mark, color=colour, alpha=0.45, markersize=5)
        line = pareto(found) if figure != "fd" else [(c, -q) for c, q in pareto((c, -q) for c, q in found)]
        ax.plot(
            *zip(*line, strict=True), color=colour, marker=mark, markersize=5, label=NAMES.get(name, name)
        )
    ax.set_xlabel("cost reduction against 28 dense steps (FLOPs, SD3-medium at 1024 px)")
    ax.set_ylabel("PSNR to the converged trajectory, dB" if figure == "psnr" else figure)
    ax.set_title(f"{family}: {max(row['images'] for row in rows)} prompts")
    _finish(plt, fig, ax, out)


def rival_plot(rows: Sequence[Row], family: str, out: Path) -> None:
    """Plot PSNR against speed-up as three Pareto fronts: RAS; all baselines together; and RAS whose cached
    tokens have the keys and values that a dense step would compute (an upper bound).

    Every measured cell is a marker, whose colour and form tell the kind of method.
    """
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(8, 5.2))
    groups = sides(rows, family)
    for name, cells in curves(rows, family).items():
        colour, mark = MARKS.get(name, ("black", "."))
        if found := points(cells):
            ax.plot(*zip(*found, strict=True), mark, color=colour, alpha=0.5, markersize=4)
    lines = {"ours": ("RAS", "tab:red", "-"), "theirs": ("best of all baselines", "navy", "-")}
    lines["bound"] = ("exact K/V (not achievable)", "tab:pink", "--")
    for side, (label, colour, style) in lines.items():
        if line := front_of(groups[side]):
            ax.plot(*zip(*line, strict=True), style, color=colour, marker=".", label=label)
    ax.set_xscale("log")
    ax.set_xlim(1.3, 4.2)
    ax.set_xticks(ticks := [1.5, 2, 2.5, 3, 3.5, 4], [f"{tick:g}x" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("cost reduction against 28 dense steps (FLOPs, SD3-medium at 1024 px)")
    ax.set_ylabel("PSNR to the converged trajectory, dB")
    ax.set_title(f"{family}: {max(row['images'] for row in rows)} prompts")
    _finish(plt, fig, ax, out)


def line_plot(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]], labels: tuple[str, str, str], out: Path
) -> None:
    """Plot named curves (x values, y values); `labels` are the x label, the y label and the title."""
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(8, 5.2))
    for name, (x, y) in curves.items():
        ax.plot(x, y, marker="." if len(x) < 40 else None, label=name)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.set_title(labels[2])
    _finish(plt, fig, ax, out)


def bar_plot(groups: dict[str, dict[str, float]], labels: tuple[str, str], out: Path) -> None:
    """Plot groups of bars, group name -> bar name -> value; `labels` are the y label and the title."""
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(8, 5.2))
    series = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    width = 0.8 / len(series)
    for number, name in enumerate(series):
        x = [i + (number - (len(series) - 1) / 2) * width for i in range(len(groups))]
        ax.bar(x, [bars.get(name, 0.0) for bars in groups.values()], width, label=name)
    ax.set_xticks(range(len(groups)), [name.replace(", ", ",\n") for name in groups], fontsize=8)
    ax.set_ylabel(labels[0])
    ax.set_title(labels[1])
    _finish(plt, fig, ax, out)


def _finish(plt: Any, fig: Any, ax: Any, out: Path) -> None:
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(out, dpi=130)
    plt.close(fig)
