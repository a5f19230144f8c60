"""The results table on disk: a CSV file with one row per cell.

Each row is appended as soon as its cell is measured, so that an interrupted sweep can be resumed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...ras_core.errors import RASError, path_end
from .cells import Cell

CELL_COLUMNS = tuple(field.name for field in fields(Cell))
FIGURE_COLUMNS = (
    "order",
    "images",
    "evaluations",  # number of network evaluations per image, without those that a cache skipped
    "token_share",  # share of the image tokens that a step processed, mean over all steps
    "cost_sd3",  # FLOPs of a dense run with the default steps / FLOPs of the cell, for SD3-medium at 1024 px
    "cost_own",  # cost reduction as in cost_sd3, but for the measured network at its image size
    "seconds",  # time for sampling all images, without decoding them
    "psnr",  # PSNR to the converged trajectory in dB, mean over images
    "psnr_sem",  # standard error of the mean in column psnr, dB
    "ssim",  # SSIM to the converged trajectory, mean over images; empty without pytorch-msssim
    "latent_error",  # relative L2 error of the latents against the converged trajectory
    "psnr_dense",  # PSNR in dB to a dense run of the same sampler with the default steps
    "fd",  # FD-EffLite0 to real images (features.py); empty if no real images are given
    "fd_spread",  # half the difference of the distances to the first and second half of the real images
    "fd_floor",  # FD-EffLite0 between the two halves of the real images
    "fd_block4",  # as fd, fd_spread and fd_floor, but with features of block 4, which depend on colour
    "fd_block4_spread",
    "fd_block4_floor",
    "lpips",
    "clip_score",
    "fid",
    "notes",
)
COLUMNS = ("key", *CELL_COLUMNS, *FIGURE_COLUMNS)
TEXT = {
    "key", "family", "method", "sampler", "reset_steps", "metric", "notes", "grid", "form", "shares",
    "kv_cache", "extra",
}  # fmt: skip


class Table:
    """The CSV file with the results, to which the row of each measured cell is appended."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = read_rows(path)

    @property
    def finished(self) -> set[str]:
        """Keys of the cells that are in the table, and so need not be measured again."""
        return {row["key"] for row in self.rows}

    def append(self, row: dict[str, Any]) -> None:
        """Append the row of a measured cell to the file."""
        fresh = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow({name: _written(value) for name, value in row.items()})
        self.rows.append({name: row.get(name) for name in COLUMNS})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a results file (`whole_lines`). Numbers are converted from text, and empty figures
    become None.
    """
    text = whole_lines(path)
    if not text:
        return []
    lines = csv.reader(text.splitlines())
    header = tuple(next(lines))
    if header != COLUMNS:
        raise RASError(
            f"{path_end(path)} has other columns ({len(header)}; first difference: {_difference(header)}).",
            "the columns that this version of the harness writes.",
            "choose another folder with --out, or move the old results away.",
        )
    return [{name: _read(name, value) for name, value in zip(COLUMNS, line, strict=True)} for line in lines]


def whole_lines(path: Path) -> str:
    """The text of a results file, empty if there is none.

    If the last line has no line break at its end, the program was interrupted while it wrote that line. The
    line is then removed from the file, and the next sweep measures its cell again.
    """
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    if not text:
        path.unlink()
    return text


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Reserve a folder for results that were measured with these settings, by writing settings.json.

    Raises:
        RASError: the folder has results that were measured with other settings. One table must not mix
            results of different settings.
    """
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if wrong := sorted(name for name in {*known, *settings} if known.get(name) != settings.get(name)):
            raise RASError(
                f"{path_end(folder)} holds results of other settings: {', '.join(wrong)} differ.",
                "the settings of the existing results.",
                "choose another folder with --out, or repeat the first command to continue its results.",
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def markdown(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table.

    Its floats have two decimals, or three if they are between -1 and 1. None is shown as a dash.
    """
    lines = [list(header), *([_shown(value) for value in row] for row in rows)]
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([body[0], "|" + "---|" * len(lines[0]), *body[1:]]) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _written(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


def _read(name: str, value: str) -> Any:
    if name in TEXT:
        return value
    if value == "":
        return None
    number = float(value)
    return int(number) if number.is_integer() and "." not in value else number


def _difference(header: tuple[str, ...]) -> str:
    for mine, theirs in zip(COLUMNS, header, strict=False):
        if mine != theirs:
            return f"{theirs!r} where {mine!r} belongs"
    return "the number of columns"
