#!/usr/bin/env python3
"""Quality against cost: region-adaptive sampling beside the other ways to save time.

    python bench/quality.py sweep --preset front --out results/front
    python bench/quality.py report results/front
    python bench/quality.py --help

Run it with the Python of a ComfyUI, and name that ComfyUI in COMFYUI_PATH; `make bench-quality` does both.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def bootstrap(program: str = "ras_pack.bench.cli") -> ModuleType:
    """Make the pack importable as `ras_pack`, by the tests' own mechanism; returns the program's module."""
    hidden = {str(ROOT), str(ROOT / "bench")}  # neither nodes/ nor this folder may shadow other modules
    sys.path[:] = [p for p in sys.path if os.path.realpath(p or ".") not in hidden]
    sys.path.append(str(ROOT / "tests"))
    importlib.import_module("support.comfy").register_pack()
    return importlib.import_module(program)


if __name__ == "__main__":
    sys.exit(bootstrap().main())
