"""Import this repository outside ComfyUI, for the programs in bench/ and training/."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def register_pack() -> None:
    """Make the repository importable as package `ras_pack`, as the tests do.

    Removes the repository's root and its top-level folders from `sys.path`. Otherwise `import nodes` would
    find the pack's folder `nodes` instead of ComfyUI's module.
    """
    hidden = {str(ROOT), *(str(path) for path in ROOT.iterdir() if path.is_dir())}
    sys.path[:] = [p for p in sys.path if os.path.realpath(p or ".") not in hidden]
    sys.path.append(str(ROOT / "tests"))
    importlib.import_module("support.comfy").register_pack()


def import_from_pack(module: str) -> ModuleType:
    """Import a module of this repository by its dotted name, such as "bench.speed.cli"."""
    return importlib.import_module(f"ras_pack.{module}")
