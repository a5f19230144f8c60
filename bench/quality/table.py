"""The results on disk: one CSV row per cell, appended when it is finished, so that a run can be resumed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...ras_core.errors import RASError
from .cells import Cell

CELL_COLUMNS = tuple(field.name for field in fields(Cell))
FIGURE_COLUMNS = (
    "order",
    "images",
    "evaluations",  # network evaluations per image, without those that a cache skipped
    "token_share",  # share of the image tokens processed, mean over the steps
    "cost_sd3",  # cost reduction at SD3-medium's shape, 1024 px, against dense at the default steps
    "cost_own",  # the same at this network's shape and size
    "seconds",  # sampling time of all images, without decoding
    "psnr",  # dB, mean over images, against the converged trajectory
    "psnr_sem",  # dB, standard error of that mean
    "ssim",  # mean over images, against the converged trajectory; empty without pytorch-msssim
    "latent_error",  # relative, against the converged trajectory
    "psnr_dense",  # dB, against the same sampler dense at the default steps
    "fd",  # FD-EffLite0 to the real images; empty without them
    "fd_spread",  # half the difference between the distances to the two halves of the real images
    "fd_floor",  # distance between these two halves
    "fd_block4",  # the same three for mean and deviation of block 4, which are sensitive to colour
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
    """A CSV file to which rows are appended."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = read_rows(path)

    @property
    def finished(self) -> set[str]:
        """Keys of the cells that need not be run again."""
        return {row["key"] for row in self.rows}

    def append(self, row: dict[str, Any]) -> None:
        """Append the row of a finished cell."""
        fresh = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow({name: _written(value) for name, value in row.items()})
        self.rows.append({name: row.get(name) for name in COLUMNS})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a results file, numbers as numbers, empty figures as None.

    A last line without a line break was cut off by an interruption: it is removed from the file, and its cell
    is run again.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    if not text:
        path.unlink()
        return []
    lines = csv.reader(text.splitlines())
    header = tuple(next(lines))
    if header != COLUMNS:
        raise RASError(
            f"{path} has other columns ({len(header)}, first difference {_difference(header)}).",
            "the columns of this version of the harness.",
            "name another --out, or move the old results away.",
        )
    return [{name: _read(name, value) for name, value in zip(COLUMNS, line, strict=True)} for line in lines]


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Reserve the folder for results with these settings.

    Raises:
        RASError: it holds results of other settings, which must not be mixed in one table.
    """
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if wrong := sorted(name for name in {*known, *settings} if known.get(name) != settings.get(name)):
            raise RASError(
                f"{folder} holds results of other settings: {', '.join(wrong)} differ.",
                "the settings of the existing results.",
                "name another --out, or repeat the first command to continue it.",
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def markdown(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; numbers have three digits or two decimals, None is a dash."""
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
    return "their number"
