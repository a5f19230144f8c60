"""Paths of the dev environment."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".host"
VENV = HOME / "venv"
BASE = HOME / "base"  # base directory for a user's ComfyUI, which must not be changed
PACK = "multirate-ras"
