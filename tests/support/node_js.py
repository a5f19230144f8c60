"""Runs scripts of web/ in Node.js, with stand-ins for the modules of ComfyUI's front end that they import."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from .comfy import ROOT

APP = "export const app = { registerExtension(one) { app.one = one; } };"


def web(name: str) -> str:
    """The text of a script of the pack."""
    return (ROOT / "web" / name).read_text(encoding="utf-8")


def run_page(
    folder: Path, page: str, scripts: Iterable[str], given: Any, others: Mapping[str, str] | None = None
) -> Any:
    """What a page prints, which is JSON. The test is skipped if Node.js is not installed.

    Args:
        folder: where the page's files are written.
        page: the page's own script. It imports the pack's scripts from ./extensions/pack and ComfyUI's `app`
            from ./scripts/app.js.
        scripts: names of the pack's scripts.
        given: what the page reads from its standard input as JSON.
        others: more files, by path in the folder. They replace those above.
    """
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    files = {"scripts/app.js": APP, "page.js": page, "package.json": '{"type": "module"}'}
    files |= {f"extensions/pack/{name}": web(name) for name in scripts}
    for name, text in {**files, **(others or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    run = subprocess.run(
        ["node", "page.js"],
        cwd=folder, input=json.dumps(given), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
