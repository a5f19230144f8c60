"""The dev environment: a ComfyUI tree, the interpreter that runs it, and how both are built."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from . import paths
from .processes import DevError, ask, say, writing_bytecode
from .stamps import build_lock
from .tree import RELEASE, RELEASES, Release, link_pack, make_tree, tree_problem
from .venv import interpreter, make_venv, missing_modules, venv_problem


@dataclass(frozen=True)
class DevEnvironment:
    """A ComfyUI tree and the interpreter that runs it.

    Attributes:
        comfyui: path of the ComfyUI tree.
        python: path of the interpreter.
        ours: whether the tree was built by this tool, so that this tool may change it.
    """

    comfyui: Path
    python: Path
    ours: bool

    def variables(self) -> dict[str, str]:
        """The environment variables for a program that runs in this dev environment."""
        # OpenMP threads that wait by spinning slow down a busy machine by a factor of 5 to 20.
        variables = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "COMFYUI_PATH": str(self.comfyui)}
        return writing_bytecode(variables) if self.ours else variables


def cpu_flag(env: DevEnvironment) -> list[str]:
    """`--cpu` if torch finds no accelerator, since ComfyUI would not start without this flag."""
    probe = "import torch; print(int(torch.cuda.is_available() or torch.backends.mps.is_available()))"
    return [] if ask([str(env.python), "-c", probe]) == "1" else ["--cpu"]


def given_tree() -> Path | None:
    """The ComfyUI tree at COMFYUI_PATH, checked; None if the variable is not set."""
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        return None
    path = Path(given).expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise DevError(
            f"COMFYUI_PATH is {given}, where there is no ComfyUI. Expected: the folder that has ComfyUI's "
            "main.py and comfy/ in it. Correct the path, or unset COMFYUI_PATH to build one in .host/."
        )
    return path


def current(release: Release = RELEASE) -> DevEnvironment:
    """The dev environment that the environment variables select, whether it is built yet or not.

    If COMFYUI_PATH is set, the ComfyUI there replaces the tree of `RELEASE`, the current release. The tree of
    an older release is always built by this tool.
    """
    tree = (given_tree() if release is RELEASE else None) or release.tree
    return DevEnvironment(tree, interpreter(), is_ours(tree))


def is_ours(tree: Path) -> bool:
    """Whether this ComfyUI tree was built by this tool."""
    return tree in [release.tree for release in RELEASES]


def check_given_python(python: Path) -> None:
    """Check that the user's own interpreter has the main packages, without changing it."""
    problem = missing_modules(python, ("torch", "aiohttp", "numpy", "PIL"))
    if problem:
        raise DevError(
            f"COMFYUI_PYTHON cannot be used: {problem}. Expected: the Python that runs your ComfyUI. "
            "Correct the path, or unset COMFYUI_PYTHON to have the packages installed under .host/."
        )


def build(release: Release = RELEASE) -> DevEnvironment:
    """Build or repair the dev environment. If the environment is already complete, this takes well
    under a second.

    Raises:
        DevError: the environment cannot be built.
    """
    env = current(release)
    paths.HOME.mkdir(exist_ok=True)
    with build_lock():
        if os.environ.get("COMFYUI_PYTHON"):
            check_given_python(env.python)
        elif problem := venv_problem():
            say(f"dev: .host/venv: {problem}")
            make_venv()
        if env.comfyui == release.tree:
            build_tree(release)
        elif not env.ours:
            link_pack(paths.BASE / "custom_nodes")
    return env


def build_tree(release: Release) -> None:
    """Create or repair a ComfyUI tree, and put the pack into its custom_nodes."""
    if problem := tree_problem(release):
        say(f"dev: .host/{release.tree.name}: {problem}")
        make_tree(release)
    link_pack(release.tree / "custom_nodes")
