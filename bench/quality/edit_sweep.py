"""Measure many editing cells and write their results, from which a sweep can be resumed."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..common.progress import say
from ..common.setup import machine
from . import references as refs
from .cells import Cell
from .edit_cells import FAMILY, EditCell, best_cells, plain_cells, plan_cells, variants_of
from .edit_engine import FIGURES, EditEngine
from .edit_pairs import EditPairs
from .edit_report import read_rows
from .options import Options
from .table import claim

COLUMNS = (
    "key", "kind", "references", "method", "sampler", "grid", "steps", "shares", "kv_cache", "extra",
    *FIGURES, "notes",
)  # fmt: skip


def sweep_edits(
    engine: EditEngine,
    options: Options,
    pairs: EditPairs,
    out: Path,
    limit: float = 0.0,
    best_of: Path | None = None,
    command: str = "",
) -> None:
    """Measure the cells that the results of a folder lack.

    First the runs without RAS and the plans with frozen and with kept references, then variants of the best
    plans. With `best_of`, only the best cells of the results in that folder.

    Args:
        limit: time limit in seconds; 0: none. A quarter of it is reserved for the variants.
    """
    claim(out, {**options.identity(), "pairs": pairs.digest})
    path, begun = out / "cells.csv", time.monotonic()
    say("reference run")
    engine.reference(refs.converged_of(Cell(FAMILY), options))
    steps = options.default_steps
    if best_of is not None:
        stages: list[tuple[float, Callable[[], list[EditCell]]]] = [
            (1.0, lambda: best_cells(read_rows(best_of / "cells.csv")))
        ]
    else:
        stages = [
            (0.75, lambda: _in_turn(plain_cells(), plan_cells(steps, False), plan_cells(steps, True))),
            (1.0, lambda: variants_of(read_rows(path))),
        ]
    for share, cells in stages:
        _measure(engine, cells(), path, begun + limit * share if limit else float("inf"))
    told = {
        **machine(), "updated": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "images": len(pairs.prompts), "kinds": pairs.kinds, "size": options.size,
        "reference_steps": options.reference_steps, "command": command,
        "closeness": engine.closeness_to_wanted(FAMILY),
    }  # fmt: skip
    (out / "description.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _in_turn(
    plain: Sequence[EditCell], frozen: Sequence[EditCell], kept: Sequence[EditCell]
) -> list[EditCell]:
    """All cells: a few of each list in turn, in proportion to the lengths of the lists."""
    lists = [plain, frozen, kept]
    placed = [((number + 0.5) / len(cells), cell) for cells in lists for number, cell in enumerate(cells)]
    return [cell for _, cell in sorted(placed, key=lambda pair: pair[0])]


def _measure(engine: EditEngine, cells: Iterable[EditCell], path: Path, end: float) -> None:
    known = {row["key"] for row in read_rows(path)}
    missing = [cell for cell in cells if cell.key not in known]
    for number, cell in enumerate(missing):
        if time.monotonic() >= end:
            say(f"time limit reached, {len(missing) - number} of {len(missing)} cells left out.")
            return
        try:
            row = engine.edit_row(cell)
        except Exception as error:  # a failing cell must not end a sweep on a rented GPU
            say(f"{cell.label}: failed and left out ({type(error).__name__}: {error})")
            continue
        _append(path, row)
        say(
            f"{number + 1}/{len(missing)} {cell.kind}: {row['cost']:.2f}x {row['psnr']:.2f} dB "
            f"({row['seconds']:.1f} s) {cell.label} {row['notes']}"
        )


def _append(path: Path, row: dict[str, Any]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(
            {k: "" if v is None else f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        )
