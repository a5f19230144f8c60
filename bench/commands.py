"""The programs of bench. Each program is a module whose function `main(argv)` returns the exit status."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ..ras_core.errors import RASError

PROGRAMS = {
    "quality": (".quality.cli", "quality against cost, and the studies of the method"),
    "speed": (".speed.cli", "speed and memory, compared to dense runs, LazyCache and the reference code"),
    "speed-plot": (".speed.plots", "plots of the speed program's results"),
    "residency": (".checks.residency", "check that CUDA graphs do not change images under dynamic VRAM"),
    "graphs": (".checks.graphs", "check that captured and eager steps agree in every model family"),
    "kv": (".checks.kv", "error, time and memory of each setting of kv_cache"),
    "eager-cost": (".profile.eager_cost", "CPU time of regional steps without CUDA graphs"),
    "live-view": (".profile.live_view", "sampling time and CPU time that the live view costs"),
}
"""The programs for users, each with a one-line description."""

WORKERS = {"speed-worker": ".speed.worker", "reference-worker": ".reference.worker"}
"""Programs that the speed program starts in processes of their own; each reads its job from standard
input."""


def usage() -> str:
    """The list of programs."""
    width = max(map(len, PROGRAMS)) + 2
    lines = [f"  {name:{width}}{about}" for name, (_, about) in PROGRAMS.items()]
    return "\n".join(["usage: python -m bench PROGRAM [--help] ...", "", *lines])


def main(argv: Sequence[str]) -> int:
    """Run a program; returns its exit status: 1 if the program raises RASError, 2 if there is no such
    program.
    """
    modules = {name: module for name, (module, _) in PROGRAMS.items()} | WORKERS
    if not argv or argv[0] not in modules:
        asked_for_help = argv[:1] == ["--help"] or argv[:1] == ["-h"]
        print(usage(), file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    program = importlib.import_module(modules[argv[0]], __package__)
    try:
        return program.main(list(argv[1:]))
    except RASError as error:
        print(error, file=sys.stderr)
        return 1
