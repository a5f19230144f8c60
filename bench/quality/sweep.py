"""Run many cells: resuming, progress, and the files with the results."""

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
    """Measure the cells that the folder's table lacks, in an order that loads each family once.

    Args:
        runner: measures cells somewhere else, in any order; without it they run in this process.
        limit: seconds for cells in this process, shared by the families; 0 for none. Cells run in the order
            given, and those that do not fit are left out.
    """
    claim(out, options.identity())
    table = Table(out / "cells.csv")
    missing = sorted((cell for cell in cells if cell.key not in table.finished), key=lambda c: c.family)
    if len(missing) < len(cells):
        say(f"{len(cells) - len(missing)} of {len(cells)} cells are finished already.")
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
    """Cells one after the other in this process, as long as there is time."""

    def run(cells: Sequence[Cell]) -> Measured:
        engine, begun = Engine(options, out / "pictures"), clock()
        families = [list(same) for _, same in itertools.groupby(cells, key=lambda cell: cell.family)]
        for number, family_cells in enumerate(families):
            end = begun + limit * (number + 1) / len(families) if limit else float("inf")
            for reference in refs.needed(family_cells, options):
                say(f"reference: {reference.family}, {reference.sampler}, {reference.steps} steps")
                engine.reference(reference)
            for place, cell in enumerate(family_cells):
                if clock() >= end:
                    left = len(family_cells) - place
                    say(f"{cell.family}: no time for {left} of {len(family_cells)} cells.")
                    break
                try:
                    row = engine.row(cell)
                except Exception as error:  # one cell must not cost the others their time on a rented device
                    say(f"{cell.family} {cell.label}: left out ({type(error).__name__}: {error})")
                    continue
                yield cell, row

    return run


def work_of(cell: Cell) -> float:
    """Planned work of a cell, in units of a dense default run."""
    return 1.0 / sd3_cost_reduction(cell.planned_shares())


def write_description(out: Path, options: Options) -> None:
    """Write description.json: the machine, the date and the settings of the table."""
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
