"""Plots with matplotlib, which is optional."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.plotting import pyplot
from .front import pareto
from .report import Row, curves, points

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
}
NAMES = {
    "euler": "fewer steps, Euler",
    "dpmpp_2m": "fewer steps, DPM++ 2M",
    "ab2": "fewer steps, AB2",
    "multirate": "multirate RAS",
    "adaptive": "multirate RAS, adaptive budget",
    "forecast": "multirate RAS, kv_cache = forecast",
    "continued": "forecast, with outputs continued",
    "quadratic": "forecast, quadratic",
    "spread": "forecast, with errors spread",
    "fresher": "all three",
    "change": "its selection alone",
    "random": "random tokens",
    "paper": "RAS as in the paper",
    "lazycache": "LazyCache",
    "easycache": "EasyCache",
}


def front_plot(rows: Sequence[Row], family: str, out: Path, figure: str = "psnr") -> None:
    """Quality over cost reduction: every cell a mark, every curve's Pareto front a line."""
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


def line_plot(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]], labels: tuple[str, str, str], out: Path
) -> None:
    """Named curves of (x, y); labels are those of the axes and the title."""
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(8, 5.2))
    for name, (x, y) in curves.items():
        ax.plot(x, y, marker="." if len(x) < 40 else None, label=name)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.set_title(labels[2])
    _finish(plt, fig, ax, out)


def bar_plot(groups: dict[str, dict[str, float]], labels: tuple[str, str], out: Path) -> None:
    """Groups of bars; labels are those of the value axis and the title."""
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
