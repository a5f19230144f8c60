"""The contents of an archive for the registry."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from .comfy import ROOT

LEFT_OUT = {
    "demo/weights/flux.safetensors", "demo/weights/lumina2.safetensors",
    "example_workflows/ras_lumina2_demo.jpg", "example_workflows/ras_lumina2_demo.json",
}  # fmt: skip
"""Files that the archive lacks for its size, in folders that it otherwise has completely: two of the three
demo models, and the template that needs one of them."""


def tracked(*arguments: str) -> set[str]:
    """Paths of the tracked files that `git ls-files` lists with these arguments. As .comfyignore has the
    syntax of git's exclude rules, git can apply it.
    """
    try:
        command = ["git", "ls-files", "-z", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()}


def archive_files() -> set[str]:
    """The tracked files in an archive, chosen as by `comfy node pack`."""
    return tracked("--cached") - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")


def write_archive(path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write the archive as `comfy node pack` does: without a top folder."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in sorted(archive_files()):
            archive.write(ROOT / name, name)
    return path
