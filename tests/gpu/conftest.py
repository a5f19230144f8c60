"""Checks on an NVIDIA GPU, and the same code with tiny networks on the CPU.

    COMFYUI_PATH=~/ComfyUI python3 -m pytest tests/gpu

These tests need only pytest, PyTorch and ComfyUI. ComfyUI chooses its device when it is imported. In a run of
the whole suite, tests/conftest.py makes it choose the CPU, so run this folder by itself to use the GPU.
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
    """The GPU that ComfyUI uses. If ComfyUI uses none, the test is skipped with the reason."""
    import comfy.model_management

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() is false")
    device = comfy.model_management.get_torch_device()
    if device.type != "cuda":
        pytest.skip("ComfyUI runs on the CPU in this process: run `python -m pytest tests/gpu` by itself")
    return device


@pytest.fixture(scope="session")
def cpu() -> torch.device:
    """The CPU. If ComfyUI uses a GPU, the test is skipped, because the GPU tests make the same checks with
    networks of full width.
    """
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    if device.type != "cpu":
        pytest.skip("the same checks run on the GPU")
    return device
