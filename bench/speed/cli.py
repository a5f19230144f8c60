"""Compare the time and memory of runs with RAS and of dense runs: the command line of the speed program.

Dynamic VRAM is the memory management of newer versions of ComfyUI, which may evict weights from GPU memory.
If ComfyUI has it, the program starts two processes for each case, one with dynamic VRAM and one without. It
writes the results after each process, and prints a table at the end.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from ..common.hosting import DISABLE_DYNAMIC, comfyui_path, knows_dynamic_vram
from ..common.paths import OUTPUT
from ..common.paths import command as own_command
from ..common.progress import say
from ..common.results import write_json
from .cases import (
    DEFAULT_CASES,
    RATIOS,
    SPREAD,
    STEPS,
    WEIGHTS,
    Case,
    loads_from_file,
    other_weights,
    pick_cases,
    unlike,
    variants,
    weights_of,
)
from .job import Action, SpeedJob, files_for
from .table import profile_table, table

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (the fastest place for files of 16 GB)
ROOM = 40 * 2**30
"""A case's files are written to shared memory only if this number of bytes is free there. The largest case
has a network of 16 GB in several layouts."""

TINY_STEPS = 16

MOST = 1800
"""Longest time limit of one process, in seconds; it applies also without --seconds."""

GRACE = 60
"""Extra seconds for a process to start and end; they are added to its time limit."""


@dataclass
class Budget:
    """Time limit of the whole program in seconds, from its start; 0 for none."""

    seconds: float
    started: float

    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.started) if self.seconds else float("inf")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    options = with_defaults(parser().parse_args(argv))
    budget = Budget(options.seconds, time.perf_counter())
    try:
        cases = pick_cases(options.cases)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.tiny:
        cases = unlike(cases)
    if options.blocks:
        cases = [replace(case, blocks=options.blocks) for case in cases]
    if options.list:
        print("\n".join(case.key for case in pick_cases("all")))
        return 0
    has_dynamic = knows_dynamic_vram(comfyui_path())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    date = time.strftime("%Y-%m-%d")
    results: dict[str, Any] = {"date": date, "tiny": options.tiny, "rows": [], "dropped": []}
    with options.out.with_suffix(".log").open("w", encoding="utf-8") as log:
        for case in cases:
            run_case(case, options, has_dynamic, budget, results, log)
    if options.profile:
        print(profile_table(results))
        entries = results.get("profiles", [])
        return 0 if entries and all(not entry["error"] for entry in entries) else 1
    print(table(results))
    return 0 if any(not row["error"] for row in results["rows"]) else 1


def with_defaults(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in the options that were not given. With --quick or --tiny, the defaults are fewer runs; --tiny
    only tests that all code runs.
    """
    is_short = options.tiny or options.quick
    if not options.ratios:
        options.ratios = () if options.speeds else (RATIOS[1:2] if is_short else RATIOS)
    if options.repeats is None:
        options.repeats = 1 if is_short else 3
    if options.weights is None:
        options.weights = ("default",) if options.quick and not options.tiny else ()
    if options.tiny and options.device == "auto":
        options.device = "cpu"
    if not options.cases:
        options.cases = "sd3_medium-1024" if options.tiny or options.profile else DEFAULT_CASES
    return options


def run_case(
    case: Case,
    options: argparse.Namespace,
    has_dynamic: bool,
    budget: Budget,
    results: dict[str, Any],
    log: IO[str],
) -> None:
    """Run a case. The first process writes the model files that the case needs; the others load these files
    and measure. The results are written after each measuring process.
    """
    started = time.perf_counter()
    if budget.left() < options.reserve:
        say(f"{case.key}: dropped, because only {max(budget.left(), 0):.0f} s of --seconds are left")
        results["dropped"].append(case.key)
        write_json(options.out, results)
        return
    with scratch(options) as folder:
        job = first_job(case, options, folder, budget.left())
        made = ask(job, log) if job.files else {}
        failed = made.get("failed", {}) | ({"default": made["error"]} if made.get("error") else {})
        results["dropped"] += [f"{case.key} {kind} ({why})" for kind, why in failed.items()]
        for flags in ways_to_start(case, options, has_dynamic, failed):
            run = replace(measuring(job, options, failed), flags=(*job.flags, *flags), seconds=budget.left())
            add_report(results, case, ask(run, log))
            write_json(options.out, results)
            job = replace(job, reference="")  # once is enough: the reference does not depend on dynamic VRAM
    say(f"{case.key}: done in {time.perf_counter() - started:.0f} s")
    if not options.profile:
        say(table({**results, "rows": [row for row in results["rows"] if row["case"] == case.key]}))


def ways_to_start(
    case: Case, options: argparse.Namespace, has_dynamic: bool, failed: dict[str, str]
) -> list[tuple[str, ...]]:
    """The flags for ComfyUI in each process: none (ComfyUI's default), then the flag that disables dynamic
    VRAM, if this version of ComfyUI has dynamic VRAM. A network that is not loaded from a file runs only
    without dynamic VRAM.
    """
    if "default" in failed:
        return []
    if not has_dynamic:
        return [()]
    ways = {"on": [()], "off": [(DISABLE_DYNAMIC,)], "both": [(), (DISABLE_DYNAMIC,)]}[options.dynamic_vram]
    return ways if loads_from_file(case, options.tiny) else [(DISABLE_DYNAMIC,)]


def first_job(case: Case, options: argparse.Namespace, folder: Path, seconds: float) -> SpeedJob:
    """The job of a case's first process: write the files with random weights."""
    weights = tuple(weights_of(case, options.weights, options.tiny))
    from_file = loads_from_file(case, options.tiny)
    own = ("--cpu",) if options.device == "cpu" else ()
    graphs = options.device != "cpu" or options.tiny
    found = variants(options.ratios, graphs, options.compile, options.kv_cache, options.more, options.speeds)
    found = found if "default" in weights else []
    for each in weights:
        found += other_weights(options.ratios, graphs, each) if each != "default" else []
    return SpeedJob(
        action="make", case=case, tiny=options.tiny, device=options.device,
        flags=(*own, *shlex.split(options.flags)), threads=options.threads,
        steps=options.steps or (TINY_STEPS if options.tiny else case.steps), repeats=options.repeats,
        seconds=seconds, folder=str(folder),
        files=files_for(case, weights) if from_file else {}, variants=tuple(found),
        reference=str(options.reference or ""), ratios=tuple(options.ratios),
    )  # fmt: skip


def measuring(job: SpeedJob, options: argparse.Namespace, failed: dict[str, str]) -> SpeedJob:
    """The job that measures or profiles the case, with the files that the first job has written."""
    action: Action = "profile" if options.profile else "measure"
    steps = 11 if options.profile else job.steps  # profile_run.STEPS, which imports torch
    left = tuple(variant for variant in job.variants if variant.weights not in failed)
    return replace(job, action=action, steps=steps, variants=left)


@contextmanager
def scratch(options: argparse.Namespace) -> Any:
    """A temporary folder for a case's files."""
    parent = options.scratch or (None if options.tiny else shared_memory(ROOM))
    with tempfile.TemporaryDirectory(prefix="ras-speed-", dir=parent) as folder:
        yield Path(folder)


def shared_memory(nbytes: int) -> Path | None:
    """The shared-memory folder if more than `nbytes` bytes are free in it, else None."""
    has_room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > nbytes
    return SHARED_MEMORY if has_room else None


def ask(job: SpeedJob, log: IO[str]) -> dict[str, Any]:
    """Run a job in a process and return its report, with an `error` if the process failed."""
    if job.action == "make" and knows_dynamic_vram(comfyui_path()):
        job = replace(job, flags=(*job.flags, DISABLE_DYNAMIC))
    say(f"{job.case.key}: {job.action} {' '.join(job.flags)}")
    limit = min(max(job.seconds, 0), MOST) + GRACE
    out = Path(job.folder) / "report.json"
    out.unlink(missing_ok=True)
    command = own_command("speed-worker", str(out))
    start, error = log.tell(), ""
    try:
        done = subprocess.run(
            command, input=job.dumps(), text=True, stdout=log, stderr=log, timeout=limit, check=False
        )
        if done.returncode:
            error = f"{job.action} ended with status {done.returncode}: {last_line(log, start)}"
    except subprocess.TimeoutExpired:
        error = f"{job.action} took more than {limit:.0f} s"
    report = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    if error:
        say(error)
        report["error"] = error[:500]
    return report


def last_line(log: IO[str], start: int) -> str:
    """The last line written to a log since `start`."""
    with Path(log.name).open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else "no output"


def add_report(results: dict[str, Any], case: Case, report: dict[str, Any]) -> None:
    """Add a report's rows, profiles and machine description to the results."""
    if "machine" in report:
        results.setdefault("machine", report["machine"])
        results["comfyui"] = report["machine"]["comfyui"]
        results["dynamic_vram"] = sorted({*results.get("dynamic_vram", []), report["dynamic_vram"]})
    results["rows"] += report.get("rows", [])
    if "profiles" in report:
        results["profiles"] = results.get("profiles", []) + report["profiles"]
    if report.get("error"):
        results["rows"].append({"case": case.key, "variant": "", "error": report["error"]})


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench speed", description=(__doc__ or "").splitlines()[0])
    top.add_argument(
        "--cases", default="",
        help="comma-separated list of names of cases or beginnings of names, or `all`; "
        f"{DEFAULT_CASES} by default",
    )  # fmt: skip
    top.add_argument("--list", action="store_true", help="only print the names of all cases")
    top.add_argument(
        "--seconds", type=float, default=0,
        help="time limit of the program; cases for which no time is left are dropped; 0 for no limit",
    )  # fmt: skip
    top.add_argument(
        "--reserve", type=float, default=30,
        help="a case is dropped if fewer seconds than this are left; 30 by default",
    )  # fmt: skip
    top.add_argument(
        "--quick", action="store_true",
        help="time each variant once, with only 25 %% of the tokens active and with unchanged weights",
    )  # fmt: skip
    top.add_argument("--repeats", type=int, help="number of timed runs of each variant; 3 by default")
    top.add_argument(
        "--steps", type=int, default=0,
        help=f"sampling steps of a run; by default {STEPS}, and 30 for Lumina-Next",
    )  # fmt: skip
    top.add_argument(
        "--blocks", type=int, default=0,
        help="build networks with only this number of main blocks, of the true width, if all of them "
        "take too much time or memory; the names of the cases in the results end with this number",
    )  # fmt: skip
    top.add_argument(
        "--ratios", type=_ratios, help="shares of active tokens in regional steps; 0.5,0.25,0.125 by default"
    )
    top.add_argument(
        "--weights", type=_weights, help=f"how weights are loaded; comma-separated, of {', '.join(WEIGHTS)}"
    )
    top.add_argument(
        "--dynamic-vram", choices=("both", "on", "off"), default="both",
        help="run each case in ComfyUI with dynamic VRAM (on), without (off), or both, if ComfyUI has it",
    )  # fmt: skip
    top.add_argument("--flags", default="", help="further command-line flags for ComfyUI, in one argument")
    top.add_argument(
        "--scratch", type=Path, help="folder for checkpoints; by default shared memory if it has enough room"
    )
    top.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    top.add_argument("--threads", type=int, default=0)
    top.add_argument(
        "--more", action="store_true",
        help="also run LazyCache, RAS with all tokens active, and RAS without CUDA graphs at every ratio",
    )  # fmt: skip
    top.add_argument("--reference", type=Path, help="also run the microsoft/RAS code in this folder")
    top.add_argument(
        "--compile", nargs="?", const="inductor", default="", metavar="BACKEND",
        help="also run dense and RAS with ComfyUI's TorchCompileModel node before the RAS node",
    )  # fmt: skip
    top.add_argument(
        "--kv-cache", type=_format_names, default=(), metavar="NAMES",
        help="also run RAS with these settings of kv_cache, for example fp8,forecast,cpu; "
        "forecast+spread also corrects the forecasts, as plans do",
    )  # fmt: skip
    top.add_argument(
        "--speeds", type=_speeds, default=(), metavar="NAMES",
        help="also run RAS with the plans for these values of speed, for example 1.5x,2x; without --ratios, "
        "run only these",
    )  # fmt: skip
    top.add_argument("--profile", action="store_true", help="profile steps of --cases instead of timing runs")
    top.add_argument(
        "--tiny", action="store_true", help="only test that all code runs: tiny networks, on the CPU"
    )
    top.add_argument("--out", type=Path, default=OUTPUT / "speed.json")
    return top


def _names(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := sorted(set(names) - set(known)):
        raise argparse.ArgumentTypeError(f"no {what} {', '.join(unknown)}; known are {', '.join(known)}")
    return names


def _format_names(text: str) -> tuple[str, ...]:
    # Not imported at the top, because `formats` imports torch. `checks.residency` imports this module before
    # it starts ComfyUI, which must import torch first.
    from ...ras_core.kv.formats import setting_names

    known = setting_names()
    spread = tuple(name + SPREAD for name in known if name.startswith("forecast"))
    return _names(text, (*known, *spread), "setting of kv_cache")


def _speeds(text: str) -> tuple[str, ...]:
    from ...ras_core.method.plan import PLAN_SPEEDS

    return _names(text, PLAN_SPEEDS, "speed")


def _weights(text: str) -> tuple[str, ...]:
    return _names(text, WEIGHTS, "kind of weights")


def _ratios(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part.strip())
