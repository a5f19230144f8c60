"""RAS with torch.compile, as ComfyUI's node applies it.

Compiled code does not run hooks that are added later, so RAS has to run the network uncompiled."""

from functools import cache

import comfy.model_management
import pytest
import torch
import torch._dynamo
from comfy_api.torch_helpers import set_torch_compile_wrapper
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host.patch import last_trace, patch_model
from support.families import FAMILIES
from support.sampling import FAST, distance, sample
from support.tape import AgainTape, capture_on

FAMILY = FAMILIES["sd3"]  # one is enough, and compiling is slow: the hooks are the same for all


def _build():
    return FAMILY.build(num_blocks=2)  # as few as a network can have: each is compiled


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Compiled code of ComfyUI's attention depends on the free memory, which changes at any moment."""
    free = 2**34
    monkeypatch.setattr(
        comfy.model_management, "get_free_memory", lambda _=None, both=False: (free, free) if both else free
    )
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class _Backend:
    """A backend that runs the code unchanged and counts compilations."""

    def __init__(self):
        self.compiled = self.ran = 0

    def __call__(self, graph, inputs):
        self.compiled += 1

        def run(*args):
            self.ran += 1
            return graph(*args)

        return run


def _compiled(model, backend):
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend=backend)
    return compiled


@pytest.mark.parametrize("order", ["before", "after"])
def test_regional_steps_run_and_are_captured_and_a_second_run_compiles_nothing(order):
    most = _compilations_without_ras()
    noise, backend, tape = FAMILY.noise(), _Backend(), AgainTape()
    expected = sample(patch_model(_build(), FAST), FAMILY, noise)
    model = _build()
    capture_on(model, tape)
    if order == "before":
        patched = patch_model(_compiled(model, backend), FAST)
    else:
        patched = _compiled(patch_model(model, FAST), backend)
    compiled = []
    for _ in range(2):
        latent = sample(patched, FAMILY, noise)
        trace = last_trace(patched)
        assert trace.regional_steps == 7 and not trace.notes
        assert distance(latent, expected) < 1e-4
        compiled.append(backend.compiled)
    assert compiled[0] == compiled[1] <= most
    assert (tape.captured, tape.replayed) == (1, 5 + 7)
    assert backend.ran >= 2  # step 0 of each run: from step 1 on the cache is filled or used


@cache
def _compilations_without_ras() -> int:
    torch._dynamo.reset()
    backend = _Backend()
    sample(_compiled(_build(), backend), FAMILY, FAMILY.noise(), steps=2)
    torch._dynamo.reset()
    return backend.compiled


def test_a_dense_plan_is_compiled_whole():
    backend, model, noise = _Backend(), _build(), FAMILY.noise()
    patched = patch_model(_compiled(model, backend), RASConfig(sample_ratio=1.0))
    assert distance(sample(patched, FAMILY, noise, steps=4), sample(model, FAMILY, noise, steps=4)) < 1e-4
    assert backend.ran >= 4


@pytest.mark.parametrize("part", ["apply_model", "diffusion_model"])
def test_what_other_nodes_compile(part):
    """Another node has compiled the network inside the model, or a function around the network. RAS cannot
    switch off compilation there.
    """
    noise, model = FAMILY.noise(), _build()
    expected = sample(patch_model(_build(), FAST), FAMILY, noise, steps=4)
    setattr(model.model, part, torch.compile(getattr(model.model, part), backend="eager"))
    patched = patch_model(model, FAST)
    assert distance(sample(patched, FAMILY, noise, steps=4), expected) < 1e-4
    assert last_trace(patched).regional_steps == 2 and not last_trace(patched).notes
