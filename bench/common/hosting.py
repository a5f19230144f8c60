"""Start ComfyUI in this process as its main.py does, without its server.

`start_as_main` imports ComfyUI's module `main`, so the installed version itself sets up the CUDA allocator,
comfy-aimdo and the model patcher for dynamic VRAM. Call it before torch is imported, because torch reads the
allocator's settings when it is loaded.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...ras_core.errors import RASError
from .paths import ROOT

DISABLE_DYNAMIC = "--disable-dynamic-vram"
QUIET = ("--disable-api-nodes", "--disable-all-custom-nodes")
"""Flags that keep ComfyUI from loading API nodes and custom nodes. The programs import the pack's nodes
themselves."""


def comfyui_path() -> Path:
    """The folder of the ComfyUI in COMFYUI_PATH or, if that is not set, of the one in the dev environment.

    Raises:
        RASError: there is no ComfyUI in that folder.
    """
    support = importlib.import_module("support.comfy")
    try:
        return support.comfy_path()
    except support.ComfyNotFound as error:
        raise RASError(
            f"no ComfyUI at {support.ROOT / '.host'} and COMFYUI_PATH is not set.",
            "a ComfyUI to sample with.",
            "set COMFYUI_PATH to yours.",
        ) from error


def knows_dynamic_vram(comfyui: Path) -> bool:
    """Whether this version of ComfyUI has dynamic VRAM and a flag to turn it off."""
    return DISABLE_DYNAMIC in (comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8")


def start_as_main(flags: Sequence[str] = (), threads: int = 0) -> Path:
    """Import ComfyUI's main.py with these command-line flags; returns ComfyUI's folder.

    Args:
        flags: ComfyUI's flags. Without --base-directory among them, ComfyUI's folders for models, input and
            output are in a temporary folder.
        threads: number of CPU threads for torch; 0 for torch's default.

    Raises:
        RASError: there is no ComfyUI, or torch has already been imported.
    """
    if "torch" in sys.modules:
        raise RASError(
            "torch was imported before ComfyUI.",
            "a process in which ComfyUI sets up the allocator first.",
            "start ComfyUI before anything else.",
        )
    comfyui = comfyui_path()
    os.environ.update({"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "OMP_WAIT_POLICY": "PASSIVE"})
    if "--base-directory" not in flags:
        flags = [*flags, "--base-directory", tempfile.mkdtemp(prefix="ras-bench-")]
    sys.argv = ["main.py", *QUIET, *flags]
    hidden = {str(comfyui), str(ROOT)}
    sys.path[:] = [str(comfyui), *(p for p in sys.path if os.path.realpath(p or ".") not in hidden)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("cuda_malloc")
    importlib.import_module("main")

    import torch

    torch.set_grad_enabled(False)
    if threads:
        torch.set_num_threads(threads)
    return comfyui


def has_dynamic_vram() -> bool:
    """Whether ComfyUI runs with dynamic VRAM; False for versions of ComfyUI that do not have it."""
    try:
        memory = importlib.import_module("comfy.memory_management")
    except ImportError:
        return False
    return bool(getattr(memory, "aimdo_enabled", False))


def end_node() -> None:
    """Clean up as ComfyUI's executor does after each node. Without dynamic VRAM there is nothing to clean
    up.
    """
    if not has_dynamic_vram():
        return
    importlib.import_module("comfy.model_management").reset_cast_buffers()
    importlib.import_module("comfy.model_prefetch").cleanup_prefetch_queues()
    importlib.import_module("comfy_aimdo.model_vbar").vbars_reset_watermark_limits()
