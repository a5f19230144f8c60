"""The command line of the speed program: budget, cases, results after every case, a table at the end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ..ras_core.config import KVCache
from ..ras_core.errors import RASError
from ..ras_core.graph_rules import MAX_GRAPHS
from .progress import say
from .setup import ROOT, machine, pick_device, start
from .speed_cases import RATIOS, STEPS, Case, Variant, pick_cases, reference_variants, unlike, variants
from .speed_table import profile_table, table

TINY_PIXELS = 128


@dataclass
class Budget:
    """Seconds that the whole program may take, from its start on; 0 for no limit."""

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
    if options.list:
        print("\n".join(case.key for case in cases))
        return 0
    try:
        device = "cpu" if options.tiny else pick_device(options.device)
        start(device, threads=options.threads)
    except RASError as error:
        print(error, file=sys.stderr)
        return 1
    if options.profile:
        results = run_profiles(cases if options.cases else cases[:1], device, options)
        print(profile_table(results))
        return 0 if all(not entry["error"] for entry in results["profiles"]) else 1
    results = run_cases(cases, device, options, budget)
    print(table(results))
    return 0 if any(not row["error"] for row in results["rows"]) else 1


def with_defaults(options: argparse.Namespace) -> argparse.Namespace:
    """Few runs where --tiny only asks whether every path runs."""
    options.ratios = options.ratios or (RATIOS[:1] if options.tiny else RATIOS)
    if options.repeats is None:
        options.repeats = 1 if options.tiny else 3
    return options


def run_profiles(cases: Sequence[Case], device: str, options: argparse.Namespace) -> dict:
    """Steps of these cases in the profiler; the file is written anew after each."""
    from .profile_run import STEPS as PROFILED_STEPS
    from .profile_run import profiles

    found = variants(options.ratios, device == "cuda" or options.tiny)
    found = [variant for variant in found if variant.method in ("dense", "ras")]
    results: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "profiles": []}
    for case in cases:
        bench = make_bench(case, device, options, PROFILED_STEPS)
        results["profiles"] += profiles(bench, found)
        bench.close()
        write(options.out, results)
    return results


def run_cases(cases: Sequence[Case], device: str, options: argparse.Namespace, budget: Budget) -> dict:
    """All cases that fit into the budget; the file is written anew after each."""
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "machine": machine(),
        "tiny": options.tiny, "rows": [], "dropped": [],
    }  # fmt: skip
    for case in cases:
        started = time.perf_counter()
        if budget.left() < options.reserve:
            say(f"{case.key}: dropped, {max(budget.left(), 0):.0f} s are left")
            results["dropped"].append(case.key)
        else:
            results["rows"] += run_case(case, device, options, budget.left)
            say(f"{case.key}: {time.perf_counter() - started:.0f} s")
            say(table({**results, "rows": [row for row in results["rows"] if row["case"] == case.key]}))
        write(options.out, results)
    return results


def run_case(
    case: Case, device: str, options: argparse.Namespace, left: Callable[[], float]
) -> list[dict[str, Any]]:
    """Rows of one case; one row with the error where it cannot be set up."""
    from .reference_rows import reference_rows
    from .shapes import free
    from .speed_run import measure_case

    try:
        bench = make_bench(case, device, options, options.steps or case.steps)
    except Exception as error:
        free()
        return [{"case": case.key, "variant": "dense", "error": f"{type(error).__name__}: {error}"[:500]}]
    graphs = device == "cuda" or options.tiny
    wanted = variants(options.ratios, graphs, options.compile, options.kv_cache)
    if warning := too_many_recordings(wanted, len(set(bench.shape.text_rows))):
        say(warning)
    found = [bench.measured(each) for each in wanted]
    rows = measure_case(bench, found, options.repeats, left)
    dense = found[0].figures_only()
    del found
    bench.close()
    asked = reference_variants(case, options.ratios, device == "cuda") if options.reference else []
    if asked:
        rows += reference_rows(bench, dense, asked, options.reference, options.repeats, left())
    return rows


def too_many_recordings(wanted: Sequence[Variant], calls: int) -> str:
    """What to do where a model keeps fewer recordings than runs in turns need, so that each makes its own
    anew; nothing otherwise.
    """
    needed = calls * sum(each.graphs != "off" for each in wanted)
    if needed <= MAX_GRAPHS:
        return ""
    return (
        f"Of the {needed} recordings that these runs take turns with, a model keeps {MAX_GRAPHS}: each run "
        "will record its call anew. Ask for fewer --ratios or fewer settings of --kv-cache at a time."
    )


def make_bench(case: Case, device: str, options: argparse.Namespace, steps: int) -> Any:
    """The case's network on the device; a tiny one where that was asked for."""
    import comfy.model_management

    from .shapes import SHAPES
    from .speed_run import Bench

    shape = SHAPES[case.shape]
    shape, pixels = (shape.tiny(), TINY_PIXELS) if options.tiny else (shape, case.pixels)
    return Bench(case, shape, comfy.model_management.get_torch_device(), pixels, steps)


def write(path: Path, results: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench/speed.py", description=(__doc__ or "").splitlines()[0])
    top.add_argument("--cases", default="", help="comma list, by the beginning of their names (--list)")
    top.add_argument("--list", action="store_true", help="only print the cases")
    top.add_argument("--seconds", type=float, default=0, help="end by then; what does not fit is dropped")
    top.add_argument("--reserve", type=float, default=10, help="seconds without which no case is begun")
    top.add_argument("--repeats", type=int, help="timed runs of each variant; 3 by default")
    top.add_argument("--steps", type=int, default=0, help=f"{STEPS}, and 30 for Lumina-Next, by default")
    top.add_argument("--ratios", type=_ratios, help="0.5,0.25,0.125 by default")
    top.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    top.add_argument("--threads", type=int, default=0)
    top.add_argument("--reference", type=Path, help="a folder with microsoft/RAS, to run beside it")
    top.add_argument(
        "--compile", nargs="?", const="inductor", default="", metavar="BACKEND",
        help="and with ComfyUI's TorchCompileModel before",
    )  # fmt: skip
    top.add_argument(
        "--kv-cache", type=_storages, default=(), metavar="NAMES",
        help="and with these settings of kv_cache: fp8,forecast,cpu",
    )  # fmt: skip
    top.add_argument("--profile", action="store_true", help="profile steps of --cases (the first) instead")
    top.add_argument("--tiny", action="store_true", help="tiny networks on the CPU: does every path run?")
    top.add_argument("--out", type=Path, default=ROOT / "bench" / "output" / "speed.json")
    return top


def _storages(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := sorted(set(names) - set(get_args(KVCache))):
        known = ", ".join(get_args(KVCache))
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is no kv_cache; there are {known}")
    return names


def _ratios(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part.strip())
