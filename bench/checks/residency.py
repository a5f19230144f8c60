"""The command line of `bench residency`, which checks CUDA graphs under ComfyUI's dynamic VRAM.

The program writes the model files, then runs each group of checks in a process of its own, in which ComfyUI
is started with the group's flags.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...ras_core.errors import RASError
from ..common.hosting import (
    DISABLE_DYNAMIC,
    comfyui_path,
    has_dynamic_vram,
    knows_dynamic_vram,
    start_as_main,
)
from ..common.paths import OUTPUT
from ..common.paths import command as own_command
from ..common.progress import say
from ..common.results import write_json
from ..speed.cases import Case
from ..speed.cli import ask, last_line, shared_memory
from ..speed.job import SpeedJob

FILES = ("default", "lora", "scaled_fp8", "int8_convrot")
LEFT_FREE = 4.0
"""GiB of GPU memory that ComfyUI may use in the group `small`: too little for a network of 4 GiB together
with its activations."""

GIB = 2**30


@dataclass(frozen=True)
class Group:
    """Checks that run one after another in the same process.

    Attributes:
        name: the group's name.
        flags: ComfyUI's command-line flags.
        checks: names in residency_checks.CHECKS.
        seconds: time limit for all of the group's checks together.
    """

    name: str
    flags: tuple[str, ...]
    checks: tuple[str, ...]
    seconds: float = 60.0


MAIN = (
    "replay_equals_eager", "eviction_between_steps", "eviction_between_runs", "idle_layers",
    "lora_changes", "other_models_between", "interrupt_between_steps", "interrupt_in_capture",
    "exception_in_capture", "interrupt_in_replay", "exception_in_replay",
    "two_nodes", "two_sizes", "time_of_check", "fp8", "scaled_fp8", "int8_convrot", "unload_frees_all",
)  # fmt: skip
WITHOUT = (
    "replay_equals_eager", "lora_changes", "exception_in_capture", "interrupt_in_replay", "two_nodes", "fp8",
    "scaled_fp8", "unload_frees_all",
)  # fmt: skip


def groups(total: int) -> list[Group]:
    """All groups of checks, for a device with `total` bytes of memory."""
    headroom = f"{max(total / GIB - LEFT_FREE, 1.0):.1f}"
    brief = ("replay_equals_eager", "eviction_between_steps")
    return [
        Group("dynamic", (), MAIN, 190.0),
        # Each of the next two checks has its own process: a capture that it breaks leaves the CUDA allocator
        # of the process unusable for other checks.
        Group("ballast", (), ("ballast_in_capture",)),
        Group("out of memory", (), ("out_of_memory_in_capture",)),
        Group("without", (DISABLE_DYNAMIC,), WITHOUT, 90.0),
        Group("small", ("--vram-headroom", headroom), ("too_little_memory",)),
        Group("no async offload", ("--disable-async-offload",), brief),
        Group("fast disk", ("--fast-disk",), brief),
        Group("no cudaMallocAsync", ("--disable-cuda-malloc",), brief),
    ]


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 if no check failed."""
    options = parser().parse_args(argv)
    if options.worker:
        return work(json.loads(options.worker))
    chosen, known = names_in(options.only), groups(0)
    try:
        check_names("--groups", names_in(options.groups), [group.name for group in known])
        check_names("--only", chosen, [name for group in known for name in group.checks])
        has_dynamic = knows_dynamic_vram(comfyui_path())
    except RASError as error:
        print(error, file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "checks": []}
    parent = None if options.tiny else shared_memory(25 * GIB)
    with (
        tempfile.TemporaryDirectory(prefix="ras-residency-", dir=parent) as folder,
        options.out.with_suffix(".log").open("w", encoding="utf-8") as log,
    ):
        made = make_files(Path(folder), options, log, chosen)
        results["machine"] = made.get("machine")
        add(results, "files", "make", not made.get("error"), made.get("error") or f"{made['seconds']:.0f} s")
        for group in groups(made.get("total", 0)):
            if not made.get("error") and (has_dynamic or not group.flags) and is_wanted(group, options):
                checks = [name for name in group.checks if not chosen or name in chosen]
                run_group(group, checks, Path(folder), options, results, log)
            write_json(options.out, results)
    failed = [check for check in results["checks"] if check["held"] is False]
    print(f"{len(results['checks'])} checks, {len(failed)} failed")
    return 1 if failed else 0


def names_in(comma_list: str) -> list[str]:
    """The names in a comma list."""
    return [name.strip() for name in comma_list.split(",") if name.strip()]


def check_names(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse unknown names.

    Raises:
        RASError: a given name is unknown; the message lists the known names.
    """
    if unknown := [name for name in given if name not in known]:
        names = ", ".join(dict.fromkeys(known))
        raise RASError(f"{option} {', '.join(unknown)}.", f"names among: {names}.", f"correct {option}.")


def is_wanted(group: Group, options: argparse.Namespace) -> bool:
    names = names_in(options.groups)
    return group.name in names if names else not options.tiny or group.name == "dynamic"


def make_files(
    folder: Path, options: argparse.Namespace, log: IO[str], chosen: Sequence[str]
) -> dict[str, Any]:
    """Write the model files of the network under test and of two others. The check `other_models_between`
    runs the second network between two runs of the network under test; the check `idle_layers` runs the
    third, because some of its layers do not run in a step.
    """
    report: dict[str, Any] = {"seconds": 0.0}
    files = {
        "network": ("sd3_medium", FILES),
        "other": ("sd35_large" if options.tiny else "lumina2", FILES[:1]),
    }
    files["idle"] = ("anima", FILES[:1])
    for name, check in (("other", "other_models_between"), ("idle", "idle_layers")):
        if (chosen and check not in chosen) or (options.tiny and name == "idle"):
            del files[name]
    for name, (shape, kinds) in files.items():
        job = SpeedJob(
            action="make", case=Case(shape, 512), tiny=options.tiny, device="cpu" if options.tiny else "cuda",
            flags=("--cpu",) if options.tiny else (), threads=options.threads, steps=0, repeats=0,
            seconds=90.0, folder=str(folder), files={kind: f"{name}_{kind}.safetensors" for kind in kinds},
        )  # fmt: skip
        found = ask(job, log)
        if found.get("error") or "default" in found.get("failed", {}):
            return {**found, "error": found.get("error") or f"no files: {found['failed']}"}
        report |= {key: found[key] for key in ("machine", "total")}
        report["seconds"] += found["make_seconds"]
    return report


def run_group(
    group: Group,
    checks: Sequence[str],
    folder: Path,
    options: argparse.Namespace,
    results: dict[str, Any],
    log: IO[str],
) -> None:
    """Run a group's checks. If a check kills the process, that check has failed, and the remaining checks run
    in a new process.
    """
    out, until = folder / "checks.json", time.perf_counter() + group.seconds
    flags = [*group.flags, *(["--cpu"] if options.tiny else [])]
    say(f"{group.name}: {' '.join(flags)}")
    while checks:
        start, seconds = log.tell(), until - time.perf_counter()
        job = {
            "folder": str(folder), "flags": flags, "checks": list(checks), "out": str(out),
            "tiny": options.tiny, "threads": options.threads, "seconds": seconds,
        }  # fmt: skip
        ending = start_group(job, seconds, log)
        report = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"checks": []}
        results["comfyui"] = report.get("comfyui", results.get("comfyui"))
        dynamic = report.get("dynamic_vram")
        for check in report["checks"]:
            add(results, group.name, check["name"], check["held"], check["detail"], dynamic)
        if not ending:
            return
        name = report.get("running", checks[-1])
        add(results, group.name, name, False, f"{ending}: {last_line(log, start)}"[:500], dynamic)
        checks = checks[list(checks).index(name) + 1 :]


def start_group(job: dict[str, Any], seconds: float, log: IO[str]) -> str:
    """Run a group's process to its end. Returns an error message if the process failed, else an empty
    string.
    """
    Path(job["out"]).unlink(missing_ok=True)
    command = own_command("residency", "--worker", json.dumps(job))
    try:
        done = subprocess.run(command, stdout=log, stderr=log, timeout=max(seconds, 0) + 30, check=False)
    except subprocess.TimeoutExpired:
        return "the process did not end within its time limit"
    return f"the process ended with exit status {done.returncode}" if done.returncode else ""


def add(
    results: dict[str, Any],
    group: str,
    name: str,
    held: bool | None,
    detail: str,
    dynamic: bool | None = None,
) -> None:
    """Print and store a check's result; `held` is whether the check passed, or None if it was skipped."""
    word = "skip" if held is None else "ok" if held else "FAIL"
    print(f"{word} {group}: {name} {detail}", flush=True)
    results["checks"].append(
        {"group": group, "name": name, "held": held, "detail": detail, "dynamic_vram": dynamic}
    )


def work(job: dict[str, Any]) -> int:
    """What a group's process does: start ComfyUI, then run the group's checks one after another."""
    started = time.perf_counter()
    start_as_main(job["flags"], job["threads"])
    import comfyui_version

    from .residency_checks import CHECKS, run_check
    from .residency_scene import Scene

    scene = Scene(Path(job["folder"]), job["tiny"])
    report: dict[str, Any] = {
        "comfyui": comfyui_version.__version__, "dynamic_vram": has_dynamic_vram(), "checks": [],
    }  # fmt: skip

    def keep() -> None:
        Path(job["out"]).write_text(json.dumps(report), encoding="utf-8")

    for name in job["checks"]:
        report["running"] = name
        keep()
        if time.perf_counter() - started > job["seconds"]:
            held, detail = None, "no time left"
        else:
            held, detail = run_check(CHECKS[name], scene)
        report["checks"].append({"name": name, "held": held, "detail": detail})
        keep()
    del report["running"]
    keep()
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench residency")
    top.add_argument("--groups", default="", help="comma-separated list of groups; all by default")
    top.add_argument("--only", default="", help="comma-separated list of checks; all by default")
    top.add_argument("--threads", type=int, default=0)
    top.add_argument("--tiny", action="store_true", help="only try the program: a tiny network, on the CPU")
    top.add_argument("--out", type=Path, default=OUTPUT / "residency.json")
    top.add_argument("--worker", help=argparse.SUPPRESS)
    return top
