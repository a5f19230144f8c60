"""Make a real ComfyUI importable in the tests, on the CPU, without changing its files or using the network.

Two names need care. ComfyUI's loader uses the pack's full path as its module name, so the pack only uses
relative imports, and tests import it as a package named `ras_pack`. The pack has a folder `nodes/`, and
ComfyUI has a file `nodes.py`. So the pack's root must not be on `sys.path`, or `import nodes` would import
the pack's folder instead of ComfyUI's file.
"""

import atexit
import importlib
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK = "ras_pack"

# Read by libraries on import. Spinning OpenMP threads slow down a busy machine by a factor of 5 to 20.
QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


class ComfyNotFound(RuntimeError):
    """Raised if there is no ComfyUI with which the tests could run."""


def comfy_path() -> Path:
    """The ComfyUI tree under test: `COMFYUI_PATH` if set, otherwise the one that `make host` builds."""
    given = os.environ.get("COMFYUI_PATH")
    path = Path(given).expanduser().resolve() if given else ROOT / ".host" / "ComfyUI"
    if (path / "comfy" / "cli_args.py").is_file():
        return path
    raise ComfyNotFound(
        f"No ComfyUI at {path} ({'from COMFYUI_PATH' if given else 'the default'}). "
        "The tests need a ComfyUI tree with comfy/ and main.py in it. "
        "Run `make host` once (or `make test`, which does), or set COMFYUI_PATH to your ComfyUI."
    )


def register_pack() -> None:
    """Register the pack as a package named `ras_pack`, without running the pack's own `__init__.py`."""
    if PACK not in sys.modules:
        package = types.ModuleType(PACK, "The pack under test, by alias.")
        package.__path__ = [str(ROOT)]
        sys.modules[PACK] = package


def _put_on_path(comfy: Path) -> None:
    """Put ComfyUI first on `sys.path`, and remove all entries for the pack's root from it.

    An entry '' is also removed, since it means the current folder.
    """
    unwanted = {str(ROOT), str(comfy)}
    sys.path[:] = [str(comfy)] + [p for p in sys.path if p and os.path.realpath(p) not in unwanted]


def _temporary_base() -> str:
    """A temporary directory for models, input, output and user files, used instead of ComfyUI's own."""
    base = tempfile.mkdtemp(prefix="ras-tests-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    return base


def setup(cpu: bool = True, threads: int | None = 2, **flags: object) -> Path:
    """Prepare this process: alias package, ComfyUI's modules, device, threads. Returns ComfyUI's path.

    The programs of bench/ start in the same way; `flags` are ComfyUI's command-line flags by name.
    """
    os.environ.update(QUIET)
    comfy = comfy_path()
    register_pack()
    _put_on_path(comfy)

    # Set these before any other comfy module is imported: devices and folders are fixed on import.
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = cpu
    args.disable_api_nodes = True
    vars(args).update(flags)
    if args.base_directory is None:
        args.base_directory = _temporary_base()
    # nodes.py puts comfy/ on sys.path, where a utils.py would shadow ComfyUI's package `utils`.
    importlib.import_module("utils")

    import torch

    if threads:
        torch.set_num_threads(threads)
    return comfy
