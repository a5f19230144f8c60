"""The command line of the soak: `make soak ARGS='--minutes 30 --seed 1'`."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path

from support import comfy


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of the command line."""
    parser = argparse.ArgumentParser(prog="soak", description="Random scenarios with planted faults.")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long to run")
    parser.add_argument("--scenarios", type=int, help="how many scenarios to play at most")
    parser.add_argument("--seed", type=int, default=0, help="seed from which the scenarios are drawn")
    parser.add_argument("--first", type=int, default=0, help="number of the first scenario")
    parser.add_argument("--only", type=int, help="play only the scenario with this number; print its values")
    parser.add_argument("--out", type=Path, help="write the summary to this JSON file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the soak. Returns 1 if a scenario failed, else 0."""
    options = arguments(argv)
    # Otherwise, PyTorch keeps the compiled code of up to 1,024 operations, and memory grows for hours. With a
    # small limit, a scenario that is played again also needs no more memory than the first time.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8")
    comfy.setup(threads=1)
    from .scenario import Scenario
    from .summary import machine, soak

    numbers = itertools.count(options.first)
    if options.scenarios is not None:
        numbers = itertools.islice(numbers, options.scenarios)
    if options.only is not None:
        numbers = iter([options.only])
        _say(Scenario.draw(options.seed, options.only).describe())
    end = time.monotonic() + 60 * options.minutes
    summary = soak(options.seed, numbers, lambda: time.monotonic() > end, _say)
    _say(f"ComfyUI {machine()['comfyui']}, {summary.text()}")
    if options.out:
        options.out.write_text(json.dumps({**machine(), **summary.as_dict()}, indent=1) + "\n")
    return int(bool(summary.failures))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
