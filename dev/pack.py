"""Import this repository outside ComfyUI, for the programs in bench/ and training/."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def register_pack() -> None:
    """Register the repository as package `ras_pack`, as the tests do.

    Removes the root and the started program's folder from `sys.path`, so that `import nodes` finds ComfyUI's
    module instead of the pack's folder.
    """
    hidden = {str(ROOT), *(str(path) for path in ROOT.iterdir() if path.is_dir())}
    sys.path[:] = [p for p in sys.path if os.path.realpath(p or ".") not in hidden]
    sys.path.append(str(ROOT / "tests"))
    importlib.import_module("support.comfy").register_pack()


def import_from_pack(module: str) -> ModuleType:
    """A module of this repository by its dotted name, such as "bench.speed.cli"."""
    return importlib.import_module(f"ras_pack.{module}")
