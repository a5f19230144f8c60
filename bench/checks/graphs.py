"""Check that captured and eager regional steps agree, and that CUDA graphs are kept and dropped correctly.

    python -m bench graphs --out bench/output/graphs.json

This needs an NVIDIA GPU and takes about a minute, since each network has only a few blocks (of the family's
true width). With `--tiny`, the program runs on a CPU. The tests in tests/gpu run the same checks.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..common.paths import OUTPUT
from ..common.progress import say
from ..common.results import write_json
from ..common.setup import machine, pick_device, start


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 if all checks passed."""
    options = parser().parse_args(argv)
    start("cpu" if options.tiny else pick_device("cuda"))
    from ..common.shapes import SHAPES

    results: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "checks": []}
    for name in options.families.split(",") if options.families else SHAPES:
        check_family(name, options, results)
        write_json(options.out, results)
    failed = [check for check in results["checks"] if check["held"] is False]
    print(f"{len(results['checks'])} checks, {len(failed)} failed")
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench graphs", description=(__doc__ or "").splitlines()[0])
    top.add_argument("--families", default="", help="comma-separated list; all families by default")
    top.add_argument("--pixels", type=int, default=512)
    top.add_argument("--tiny", action="store_true", help="only try the program: tiny networks, on the CPU")
    top.add_argument("--out", type=Path, default=OUTPUT / "graphs.json")
    return top


def check_family(name: str, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Run all checks of one family. A check that raises an exception has failed; the later checks still
    run.
    """
    from .graph_checks import CHECKS, run_check, scene_of

    scene = scene_of(name, options.pixels, options.tiny)
    for what in CHECKS:
        try:
            held, detail = run_check(what, scene)
        except Exception as error:
            held, detail = False, f"{type(error).__name__}: {error}"
        results["checks"].append({"family": name, "check": what, "held": held, "detail": detail})
        word = "skip  " if held is None else "ok    " if held else "FAILED"
        say(f"{word} {name}: {what} ({detail})")
    scene.bench.close()
