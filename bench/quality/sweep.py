"""Measure many cells, show the progress, and write the results to files from which a sweep can be resumed."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..common.progress import Progress, say
from ..common.setup import machine
from . import references as refs
from .cells import Cell
from .costs import sd3_cost_reduction
from .engine import Engine
from .options import Options
from .table import Table, claim

Measured = Iterator[tuple[Cell, dict[str, Any]]]
Runner = Callable[[Sequence[Cell]], Measured]


def sweep(
    cells: Sequence[Cell], options: Options, out: Path, runner: Runner | None = None, limit: float = 0.0
) -> Table:
    """Measure the cells that the results table of a folder does not have yet, and append them to the table.

    The cells are sorted by family, so that each model is loaded only once.

    Args:
        runner: measures the cells elsewhere, such as on a Ray cluster, in any order. If `runner` is None, the
            cells are measured in this process.
        limit: time limit in seconds for measuring in this process; 0: no limit. The time is divided equally
            between the families. The cells of a family run in the given order, and those that have not
            started when the family's time is over are left out.
    """
    claim(out, options.identity())
    table = Table(out / "cells.csv")
    missing = sorted((cell for cell in cells if cell.key not in table.finished), key=lambda c: c.family)
    if len(missing) < len(cells):
        say(f"{len(cells) - len(missing)} of {len(cells)} cells are in the table already.")
    if not missing:
        return table
    progress = Progress(len(missing), sum(map(work_of, missing)))
    write_description(out, options)
    for cell, row in (runner or local_runner(options, out, limit))(missing):
        table.append(row)
        progress.step(work_of(cell), _line(cell, row))
    write_description(out, options)
    return table


def local_runner(
    options: Options, out: Path, limit: float = 0.0, clock: Callable[[], float] = time.monotonic
) -> Runner:
    """A runner that measures cells one after the other in this process, until the time limit; see `sweep`."""

    def run(cells: Sequence[Cell]) -> Measured:
        engine, begun = Engine(options, out / "pictures"), clock()
        families = [list(same) for _, same in itertools.groupby(cells, key=lambda cell: cell.family)]
        for number, family_cells in enumerate(families):
            end = begun + limit * (number + 1) / len(families) if limit else float("inf")
            for reference in refs.needed(family_cells, options):
                say(f"reference run: {reference.family}, {reference.sampler}, {reference.steps} steps")
                engine.reference(reference)
            for place, cell in enumerate(family_cells):
                if clock() >= end:
                    left = len(family_cells) - place
                    say(f"{cell.family}: time limit reached, {left} of {len(family_cells)} cells left out.")
                    break
                try:
                    row = engine.row(cell)
                except Exception as error:  # a failing cell must not end a sweep on a rented GPU
                    say(f"{cell.family} {cell.label}: failed and left out ({type(error).__name__}: {error})")
                    continue
                yield cell, row

    return run


def work_of(cell: Cell) -> float:
    """Expected FLOPs of a cell divided by those of a dense run of 28 steps, for the progress display."""
    return 1.0 / sd3_cost_reduction(cell.planned_shares())


def write_description(out: Path, options: Options) -> None:
    """Write description.json: the machine, the dates of the sweep, and the options that it measures with."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path = out / "description.json"
    begun = json.loads(path.read_text(encoding="utf-8"))["begun"] if path.exists() else now
    text = {
        "begun": begun,
        "updated": now,
        **machine(),
        "settings": options.identity(),
        "batch": options.batch,
    }
    path.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def _line(cell: Cell, row: dict[str, Any]) -> str:
    return f"{cell.family} {cell.label}: {row['cost_sd3']:.2f}x {row['psnr']:.2f} dB ({row['seconds']:.1f} s)"
