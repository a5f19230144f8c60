"""In captured calls, one kernel casts each float8 weight, with the same result as PyTorch's operations."""

import importlib

import pytest
import torch
from ras_pack.ras_core.graphs import weight_casts
from ras_pack.ras_core.graphs.weight_casts import (
    FLOAT8,
    QuickCasts,
    cast_by,
    gives_known_numbers,
    quick_casts,
)
from torch import nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(scope="module")
def kernel():
    pytest.importorskip("triton", reason="Triton is not installed")
    return importlib.import_module("ras_pack.ras_core.graphs.cast_kernel")


@pytest.fixture
def casts(kernel, monkeypatch):
    """Let the kernel run on any device; yields a list of the shapes of the weights that it has cast."""
    done = []

    def counted(module, codes, dtype):
        done.append(tuple(codes.shape))
        return cast_by(module, codes, dtype)

    monkeypatch.setattr(weight_casts, "DEVICE_TYPE", DEVICE.type)
    monkeypatch.setattr(weight_casts, "cast_by", counted)
    weight_casts._kernel_on.cache_clear()
    assert weight_casts._kernel_on(DEVICE) is kernel
    done.clear()
    yield done
    weight_casts._kernel_on.cache_clear()


def _weight(*shape: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=draw).to(DEVICE, FLOAT8)


def test_the_kernel_casts_every_code_as_pytorch_does(kernel):
    assert gives_known_numbers(kernel, DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 5000), (64, 64)], ids=str)
def test_a_cast_gives_the_same_numbers(casts, dtype, shape):
    weight = _weight(*shape)
    with QuickCasts():
        quick = weight.to(dtype)
        with torch.inference_mode():
            again = weight.to(dtype, copy=True)
    assert casts == [shape, shape]
    for found in (quick, again):
        assert found.dtype == dtype and torch.equal(found, weight.to(dtype))


def test_a_layer_of_comfyui_casts_with_it(casts):
    import comfy.ops

    layer = comfy.ops.manual_cast.Linear(32, 16, bias=True, device=DEVICE, dtype=torch.float32)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer.to(FLOAT8)
    rows = torch.randn(4, 32, device=DEVICE)
    with torch.inference_mode():
        expected = layer(rows)
        with quick_casts(layer, DEVICE):
            assert torch.equal(layer(rows), expected)
    assert sorted(casts) == [(16,), (16, 32)]


def test_other_casts_are_left_alone(casts):
    weight = _weight(6, 4)
    with QuickCasts():
        for other in (weight.t().to(torch.float16), weight.view(torch.uint8).to(torch.float32)):
            assert other.numel() == 24
        torch.ones(3, device=DEVICE).to(torch.float16)
    assert casts == []


def test_networks_without_float8_weights_are_not_watched():
    import contextlib

    assert isinstance(quick_casts(nn.Linear(2, 2), DEVICE), contextlib.nullcontext)
