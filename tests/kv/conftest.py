"""Fixtures of the tests of the K/V cache."""

import importlib

import pytest
import torch
from ras_pack.ras_core.kv import triton_check
from ras_pack.ras_core.kv.triton_spread_launch import SpreadKernels


@pytest.fixture(scope="module")
def kernels() -> SpreadKernels:
    pytest.importorskip("triton", reason="Triton is not installed")
    return SpreadKernels(importlib.import_module("ras_pack.ras_core.kv.triton_kernels"))


@pytest.fixture
def use(kernels, monkeypatch):
    """A function that sets whether K/V caches use the Triton kernels, on any device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def switch(on: bool) -> None:
        monkeypatch.setattr(triton_check, "DEVICE_TYPE", device if on else "none")

    triton_check._on.cache_clear()
    yield switch
    triton_check._on.cache_clear()
