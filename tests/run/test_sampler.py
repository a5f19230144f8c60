"""The multirate integrator in ComfyUI's place: dense steps are ComfyUI's own to the last bit."""

import comfy.model_management
import pytest
import torch
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.kv import update as kv
from support.sampling import sample, sample_ras

CORRECTED = RASConfig(sample_ratio=0.5, start_step=2, error_reset_every=0, corrections=True)


def _area(family):
    area = family.conditioning(3)
    area[0][1]["area"] = (4, 4, 0, 0)
    return family.conditioning(1) + area


def _out_of_memory(*args):
    raise comfy.model_management.OOM_EXCEPTION("planted")


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
class TestDenseSteps:
    """Corrections replace euler and dpmpp_2m. If no step is regional after all, the result is theirs."""

    @pytest.mark.parametrize("fails", ["area", "fill", "update"])
    def test_a_run_that_turns_dense_equals_the_dense_run(self, sd3, sampler, fails, monkeypatch):
        model, noise = sd3.build(), sd3.noise(8, 8)
        prompts = {"positive": _area(sd3) if fails == "area" else sd3.conditioning(1)}
        dense = sample(model, sd3, noise, sampler=sampler, steps=6, **prompts)
        if fails != "area":
            monkeypatch.setattr(kv, fails, _out_of_memory)
        latent, trace = sample_ras(model, sd3, noise, CORRECTED, sampler=sampler, steps=6, **prompts)
        assert trace.regional_steps == 0 and len(trace.notes) == 1
        assert torch.equal(latent, dense)

    def test_the_callback_is_called_once_for_each_step(self, sd3, sampler):
        steps = []
        patched = patch_model(sd3.build(), CORRECTED)
        sample(patched, sd3, sd3.noise(8, 8), sampler=sampler, callback=lambda i, *rest: steps.append(i))
        assert steps == list(range(10)) and len(last_trace(patched).evaluations) == 10
