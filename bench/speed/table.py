"""Show the results of the speed program as a table in the terminal."""

from __future__ import annotations

from typing import Any

HEAD = (
    "case", "dynamic", "variant", "s", "step ms", "regional ms", "CPU ms", "speed-up", "own", "ideal",
    "% ideal", "around ms", "graphs", "replays", "peak GiB", "taken GiB", "K/V GiB",
)  # fmt: skip

FORMER_KEYS = {
    "recordings": "kept_graphs",
    "host_ms_by": "cpu_ms_by",
    "own_host_share": "own_cpu_share",
}
"""Keys of older result files, each with its current name."""


def table(results: dict[str, Any]) -> str:
    """A table with one line per variant. The column `speed-up` is relative to ComfyUI's dense run. The
    column `own` is relative to the dense run of the same program: ComfyUI, or diffusers for the reference
    code.
    """
    lines = [HEAD, *(_line(_renamed(row)) for row in results["rows"])]
    about = results.get("machine") or dict.fromkeys(("device", "torch", "comfyui"), "?")
    title = f"{about['device']}, torch {about['torch']}, ComfyUI {about['comfyui']}, {results['date']}"
    notes = [f"{row['case']} {row['variant']}: {text}" for row in results["rows"] for text in _notes(row)]
    dropped = [f"dropped: {', '.join(results['dropped'])}"] if results["dropped"] else []
    return "\n".join([title, *_aligned(lines), *notes, *dropped])


def profile_table(results: dict[str, Any]) -> str:
    """A table with one line per profiled variant, then details of each variant.

    The details are the time in each range, and the calls and lines of code at which the CPU waits for the
    device. A range is a named part of RAS's own work (bench/profile/ranges.py).
    """
    head = (
        "case",
        "variant",
        "step ms",
        "device ms",
        "own device %",
        "own CPU %",
        "kernels",
        "waits",
        "reads",
    )
    lines, notes = [head], []
    for entry in map(_renamed, results["profiles"]):
        lines.append(_profile_line(entry))
        about = f"{entry['case']} {entry['variant']}"
        for what in ("device_ms_by", "cpu_ms_by", "waits", "reads", "waiting_lines"):
            parts = ", ".join(f"{name} {value:.3g}" for name, value in (entry.get(what) or {}).items())
            notes += [f"{about}, {what}: {parts}"] if parts else []
        notes += [f"{about}: {entry['error']}"] if entry["error"] else []
    return "\n".join([*_aligned(lines), *notes])


def _renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """A copy of a row or profile in which keys from older result files have their current names."""
    return {FORMER_KEYS.get(key, key): value for key, value in entry.items()}


def _profile_line(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        entry["case"],
        entry["variant"],
        _number(entry.get("wall_ms"), 2),
        _number(entry.get("device_ms"), 2),
        _number(entry.get("own_device_share"), 1, 100),
        _number(entry.get("own_cpu_share"), 1, 100),
        _number(entry.get("kernels"), 0),
        _number(sum((entry.get("waits") or {}).values()), 2),
        _number(sum((entry.get("reads") or {}).values()), 2),
    )


def _aligned(lines: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return [line.rstrip() for line in shown]


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    memory = row.get("memory") or {}
    return (
        row["case"],
        {True: "on", False: "off"}.get(row.get("dynamic_vram"), "-"),
        row["variant"],
        _number(row.get("seconds"), 3),
        _number(row.get("dense_step_seconds"), 1, 1000),
        _number(row.get("regional_step_seconds"), 1, 1000),
        _number(row.get("regional_cpu_step_seconds", row.get("dense_cpu_step_seconds")), 1, 1000),
        _number(row.get("speedup"), 2),
        _number(row.get("own_speedup"), 2),
        _number(row.get("ideal"), 2),
        _number(row.get("of_ideal"), 1, 100),
        _number(row.get("overhead_seconds"), 0, 1000),
        _number(row.get("kept_graphs"), 0),
        _number((row.get("cuda_graphs") or {}).get("replays"), 0),
        _number(memory.get("peak", memory.get("allocated")), 2, 2**-30),
        _number(memory.get("taken"), 2, 2**-30),
        _number(row.get("kv_bytes"), 2, 2**-30),
    )


def _notes(row: dict[str, Any]) -> list[str]:
    found = list(row.get("notes") or [])
    if row.get("error"):
        found.append(row["error"])
    if row.get("only_warm_up"):
        found.append("there was no time for a timed run, so the figures are from the warm-up run")
    return found


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"
