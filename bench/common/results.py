"""Result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, results: Any) -> None:
    """Write results to a file, creating its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")
