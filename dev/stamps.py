"""Stamps: files that tell from which recipe a part of the dev environment was built, and what it contains.

By its stamp, a later build can see whether the part is up to date and complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import paths
from .processes import say


def fingerprint(*recipe: object) -> str:
    """A short hash that identifies a recipe (package versions and settings) in stamps."""
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]


def part_problem(stamp: dict | None, recipe: str, damage: str | None) -> str | None:
    """Why a part must be built or repaired; None if it is complete."""
    if stamp is None:
        return "not built, or not completely"
    if stamp["recipe"] != recipe:
        return "built from another recipe"
    return damage


def damage(recorded: Mapping[str, list[int]], present: Mapping[str, list[int]]) -> str | None:
    """Report the first entry that changed since the stamp was written, or None. New entries are ignored."""
    for name, size in recorded.items():
        if present.get(name) != size:
            return f"{name} is missing or changed"
    return None


def read_stamp(part: Path) -> dict | None:
    """The stamp of a part, or None if it does not exist or cannot be read."""
    try:
        stamp = json.loads((part / "stamp.json").read_text())
        return stamp if stamp.keys() >= {"recipe", "inventory"} else None
    except (OSError, ValueError, AttributeError):
        return None


def write_stamp(part: Path, recipe: str, contents: dict[str, list[int]]) -> None:
    """Write a part's stamp atomically. Called when everything else in the part has been built."""
    new = part / "stamp.json.new"
    new.write_text(json.dumps({"recipe": recipe, "inventory": contents}))
    new.replace(part / "stamp.json")


def inventory(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, list[int]]:
    """For every entry of a folder: the number of files in it and their total size in bytes. Bytecode files
    are not counted.

    Comparing two inventories detects every missing file in 0.1 s; importing all packages would take 10 s.
    """
    skip = {"__pycache__", "stamp.json", *leave_out}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return {entry.name: _weigh(entry) for entry in entries if entry.name not in skip}
    return {}


def _weigh(entry: os.DirEntry) -> list[int]:
    if not entry.is_dir(follow_symlinks=False):
        return [1, entry.stat(follow_symlinks=False).st_size]
    count = size = 0
    with os.scandir(entry.path) as inside:
        for one in inside:
            if one.name != "__pycache__":
                files, weight = _weigh(one)
                count, size = count + files, size + weight
    return [count, size]


@contextlib.contextmanager
def build_lock() -> Iterator[None]:
    """Allow one build at a time. A second build waits for the first, then finds all parts complete."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    paths.HOME.mkdir(exist_ok=True)
    with (paths.HOME / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("dev: waiting for another build")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
