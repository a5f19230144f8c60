"""Each K/V cache format gives the result of unchanged rows, within its tolerance, and the same every time."""

import pytest
import torch
from ras_pack.bench.checks.kv import KV_FORMATS, measured
from ras_pack.bench.common.shapes import SHAPES

FAMILIES = ("sd3_medium", "sd35_medium", "lumina2", "flux_dev")


@torch.inference_mode()
def check(shape, pixels: int) -> None:
    rows = list(measured(shape, pixels, ratio=0.25))
    assert [row["kv_cache"] for row in rows] == list(KV_FORMATS)
    assert [row for row in rows if not row["held"]] == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_on_the_gpu(name, cuda):
    check(SHAPES[name], 1024)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd35_medium", "flux_dev"])
def test_tiny_networks(name, cpu):
    check(SHAPES[name].tiny(), 128)
