"""The demo's numbers: PSNR between two images, and the table that compares two runs."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Run:
    """A run of the demo: seconds in the sampler, content of the image file, statistics from the RAS nodes."""

    seconds: float
    image: bytes
    stats: dict[str, Any] = field(default_factory=dict)


def psnr(one: bytes, other: bytes) -> float:
    """PSNR in dB between two images, on RGB values in [0, 1]; infinite if the images are equal."""
    a, b = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64) / 255 for data in (one, other)
    )
    if a.shape != b.shape:
        raise ValueError(
            f"The images have different sizes, {a.shape} and {b.shape}; use the same workflow for both."
        )
    error = np.mean((a - b) ** 2)
    return math.inf if error == 0 else float(-10 * math.log10(error))


def comparison(dense: Run, ras: Run) -> list[list[str]]:
    """The rows of the table. Columns: name of the quantity, its value in the dense run, and with RAS."""
    return [
        ["", "dense", "RAS"],
        ["sampling time", f"{dense.seconds:.2f} s", f"{ras.seconds:.2f} s"],
        ["steps (regional)", _steps(dense.stats), _steps(ras.stats)],
        ["tokens processed", _share(dense.stats), _share(ras.stats, dense.stats)],
        ["speed-up, expected", "1.00x", _speedup(ras.stats.get("expected_speedup"))],
        ["speed-up, measured", "1.00x", _speedup(dense.seconds / ras.seconds)],
        ["PSNR between the two", "", f"{psnr(dense.image, ras.image):.1f} dB"],
    ]


def _steps(stats: dict[str, Any]) -> str:
    if "steps" not in stats:
        return "?"
    return f"{stats['steps']} ({stats.get('regional_steps', 0)})"


def _share(stats: dict[str, Any], dense: dict[str, Any] | None = None) -> str:
    """Image tokens that the model processed in the whole run, and their share of those in the dense run,
    which may have more steps.
    """
    tokens = _tokens(stats)
    if tokens is None:
        return "?"
    return f"{tokens:,} ({tokens / (_tokens(dense or {}) or tokens):.0%})"


def _tokens(stats: dict[str, Any]) -> int | None:
    if not stats.keys() >= {"token_share", "evaluations", "grid"}:
        return None
    height, width = stats["grid"]
    return round(stats["token_share"] * stats["evaluations"] * height * width)


def _speedup(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}x"


def table(rows: list[list[str]]) -> str:
    """Format the table as text. The first row is the heading; all columns but the first are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)
