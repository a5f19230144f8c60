"""Captured regional calls of the families of support/other_families.py, on stand-ins for CUDA graphs."""

import pytest
from graphs.test_graphs import test_captured_and_eager_runs_agree_and_graphs_serve_the_next_run as agree
from ras_pack.ras_core.models import adapter_for
from support.other_families import OTHERS
from support.sampling import sample_ras
from support.tape import FrozenTape, capture_on


@pytest.mark.parametrize("name", list(OTHERS))
def test_captured_and_eager_runs_agree(name):
    family = OTHERS[name]
    model, tape = family.build(), FrozenTape()
    obstacle = adapter_for(model.model.diffusion_model).capture_obstacle
    if obstacle is None:
        agree(family)
        return
    capture_on(model, tape)
    _, trace = sample_ras(model, family, family.noise())
    assert trace.regional_steps == 7 and not trace.notes and tape.captured == 0
    assert obstacle in trace.summary()
