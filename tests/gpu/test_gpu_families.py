"""Runs of the families of support/other_families.py, whose regional calls are captured as CUDA graphs."""

import pytest
import torch
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.models import adapter_for
from support.other_families import OTHERS
from support.sampling import FAST, distance, sample_ras

TOLERANCE = 0.01
"""Relative difference (L2) of two runs on a GPU, whose kernels may multiply in TF32."""


def both_runs(name: str, device: torch.device):
    """A family's adapter, and the latents and traces of a run without CUDA graphs and one with them."""
    family, runs = OTHERS[name], []
    for setting in ("off", "auto"):
        model = family.build(device=device)
        config = RASConfig(**{**vars(FAST), "cuda_graphs": setting})
        runs.append(sample_ras(model, family, family.noise(), config))
    return adapter_for(model.model.diffusion_model), *runs


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(OTHERS))
def test_captured_and_eager_runs_agree(name, cuda):
    adapter, (eager, _), (captured, trace) = both_runs(name, cuda)
    assert trace.regional_steps == 7 and not trace.notes
    assert distance(captured, eager) < TOLERANCE
    if adapter.capture_obstacle is None:
        assert trace.graphs.replayed > 0, trace.graphs.reason
    else:
        assert trace.graphs.captured == 0


def test_the_same_code_on_the_cpu(cpu):
    _, (eager, _), (captured, trace) = both_runs("qwen_image_edit", cpu)
    assert torch.equal(captured, eager) and trace.graphs is None
    assert trace.regional_steps == 7 and not trace.notes
