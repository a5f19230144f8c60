"""What an archive for the registry holds."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from .comfy import ROOT


def tracked(*arguments: str) -> set[str]:
    """Paths that git lists. Its own exclude rules are the syntax of .comfyignore."""
    try:
        command = ["git", "ls-files", "-z", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()}


def archive_files() -> set[str]:
    """The tracked files that an archive holds, as `comfy node pack` chooses them."""
    return tracked("--cached") - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")


def write_archive(path: Path) -> Path:
    """The archive itself: no folder around the files, as `comfy node pack` writes it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(archive_files()):
            archive.write(ROOT / name, name)
    return path
