"""The results of the speed program as a table for the terminal."""

from __future__ import annotations

from typing import Any

HEAD = (
    "case", "variant", "s", "step ms", "regional ms", "speed-up", "own", "ideal", "% ideal",
    "peak GiB", "K/V GiB",
)  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """One line a variant; speed-ups are against ComfyUI's dense run, eager, and against the program's own."""
    lines = [HEAD, *(_line(row) for row in results["rows"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    about = results["machine"]
    title = f"{about['device']}, torch {about['torch']}, ComfyUI {about['comfyui']}, {results['date']}"
    notes = [f"{row['case']} {row['variant']}: {text}" for row in results["rows"] for text in _notes(row)]
    dropped = [f"dropped: {', '.join(results['dropped'])}"] if results["dropped"] else []
    return "\n".join([title, *(line.rstrip() for line in shown), *notes, *dropped])


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    memory = row.get("memory") or {}
    return (
        row["case"],
        row["variant"],
        _number(row.get("seconds"), 3),
        _number(row.get("dense_step_seconds"), 1, 1000),
        _number(row.get("regional_step_seconds"), 1, 1000),
        _number(row.get("speedup"), 2),
        _number(row.get("own_speedup"), 2),
        _number(row.get("ideal"), 2),
        _number(row.get("of_ideal"), 1, 100),
        _number(memory.get("allocated"), 2, 2**-30),
        _number(row.get("kv_bytes"), 2, 2**-30),
    )


def _notes(row: dict[str, Any]) -> list[str]:
    found = list(row.get("notes") or [])
    if row.get("error"):
        found.append(row["error"])
    if row.get("only_warm_up"):
        found.append("only the warm-up run fitted")
    return found


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"
