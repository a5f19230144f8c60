"""Captured regional calls: as CUDA graphs on a GPU, or on a CPU as stand-ins that repeat operations."""

from collections.abc import Iterator

import pytest
from ras_pack.bench.checks.graph_checks import CHECKS, Scene, run_check, scene_of
from ras_pack.bench.common.shapes import SHAPES

SLOW = ("behind torch.compile",)
"""Skipped on a CPU: it takes a minute there, and test_compile.py checks the same."""


@pytest.fixture(scope="module", params=list(SHAPES))
def scene(request: pytest.FixtureRequest, cuda) -> Iterator[Scene]:
    """A family's network with few blocks, whose width is that of the published model."""
    found = scene_of(request.param)
    yield found
    found.bench.close()


@pytest.fixture(scope="module", params=["sd3_medium"])
def tiny_scene(request: pytest.FixtureRequest, cpu) -> Iterator[Scene]:
    found = scene_of(request.param, tiny=True)
    yield found
    found.bench.close()


@pytest.mark.gpu
@pytest.mark.parametrize("what", CHECKS)
def test_on_cuda_graphs(what, scene, record_property):
    held, detail = run_check(what, scene)
    record_property("detail", detail)  # in the file of --junitxml
    if held is None and scene.bench.shape.cfg == 1:  # there is no second prompt
        pytest.skip(detail)
    assert held, detail


@pytest.mark.slow
@pytest.mark.parametrize("what", [what for what in CHECKS if what not in SLOW])
def test_on_stand_ins(what, tiny_scene):
    held, detail = run_check(what, tiny_scene)
    if held is None:
        pytest.skip(detail)
    assert held, detail
