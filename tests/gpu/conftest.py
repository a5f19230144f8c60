"""Checks on an NVIDIA GPU, and the same code with tiny networks on the CPU.

    COMFYUI_PATH=~/ComfyUI python3 -m pytest tests/gpu

Only needs pytest, PyTorch and ComfyUI. ComfyUI chooses its device when it is imported, so the GPU is only
used if this folder is run by itself: for the whole suite, tests/conftest.py starts ComfyUI on the CPU.
"""

import sys
from pathlib import Path

import pytest
import torch

TESTS = str(Path(__file__).resolve().parents[1])

if "comfy.cli_args" not in sys.modules:
    sys.path.insert(0, TESTS)
    from support import comfy

    try:
        comfy.setup(cpu=not torch.cuda.is_available(), threads=None, fp32_vae=True)
    except comfy.ComfyNotFound as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The GPU that ComfyUI uses; skips with the reason if it uses none."""
    import comfy.model_management

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() is false")
    device = comfy.model_management.get_torch_device()
    if device.type != "cuda":
        pytest.skip("ComfyUI runs on the CPU in this process: run `python -m pytest tests/gpu` by itself")
    return device


@pytest.fixture(scope="session")
def cpu() -> torch.device:
    """The CPU; skips if ComfyUI uses a GPU, where the same checks run at true width."""
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    if device.type != "cpu":
        pytest.skip("the same checks run on the GPU")
    return device
