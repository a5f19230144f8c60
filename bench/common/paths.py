"""Folder paths, and the command by which one bench program starts another."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "bench" / "output"


def command(program: str, *arguments: str) -> list[str]:
    """The command line that starts a program of bench in another process; it works from any directory."""
    return [sys.executable, str(ROOT / "bench"), program, *arguments]
