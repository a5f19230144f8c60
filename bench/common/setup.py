"""Import ComfyUI's modules in this process, for a given device and precision."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

from ...ras_core.errors import RASError

DTYPES = {
    "auto": {},
    "fp32": {"fp32_unet": True},
    "fp16": {"fp16_unet": True},
    "bf16": {"bf16_unet": True},
}


def pick_device(wanted: str) -> str:
    """The device to use, "cuda" or "cpu". If "auto" is wanted, it is "cuda" if torch finds a GPU, else
    "cpu".
    """
    import torch

    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise RASError(
            "--device cuda, but torch finds no GPU.",
            "a GPU that this build of torch can use.",
            "use --device cpu, or run with another Python.",
        )
    return "cuda" if wanted != "cpu" and found else "cpu"


def start(device: str, dtype: str = "auto", threads: int = 0) -> None:
    """Import ComfyUI for sampling. Call this function before anything else imports ComfyUI.

    Args:
        device: "cpu" or "cuda".
        dtype: precision of the network, a key of DTYPES. The autoencoder always runs in float32, so that its
            rounding errors do not affect the measurements.
        threads: number of CPU threads for torch; 0 for torch's default.
    """
    support = importlib.import_module("support.comfy")
    flags = {"fp32_vae": True, **DTYPES[dtype]}
    try:
        support.setup(cpu=device == "cpu", threads=threads or None, **flags)
    except support.ComfyNotFound as error:
        raise RASError(
            f"no ComfyUI at {support.ROOT / '.host'} and COMFYUI_PATH is not set.",
            "a ComfyUI to sample with.",
            "set COMFYUI_PATH to yours, or let `make bench-quality` build one.",
        ) from error


def machine() -> dict[str, Any]:
    """Description of the machine and of the software versions, for result files."""
    import comfyui_version
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "comfyui": comfyui_version.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """A readable name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()} ({sys.platform})"
