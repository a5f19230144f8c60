"""Paths of the dev environment."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".host"
VENV = HOME / "venv"
BASE = HOME / "base"  # base directory for a ComfyUI that we must not change
PACK = "multirate-ras"
