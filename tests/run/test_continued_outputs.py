"""Runs in which the denoised estimates of cached tokens are extrapolated from their last change."""

import pytest
import torch
from ras_pack.ras_core.config import RASConfig
from support.sampling import distance, sample_ras, split_prompts

SETTINGS = {
    "sample_ratio": 0.5,
    "start_step": 3,
    "error_reset_every": 0,
    "corrections": True,
    "kv_cache": "gpu",
}
HELD, CONTINUED = (RASConfig(**SETTINGS, continue_outputs=each) for each in (False, True))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_it_acts_behind_the_users_sampler(sd3, sampler):
    noise = sd3.noise(13, 19, batch=2)
    held, before = sample_ras(sd3.build(), sd3, noise, HELD, sampler=sampler)
    latent, trace = sample_ras(sd3.build(), sd3, noise, CONTINUED, sampler=sampler)
    assert trace.regional_steps == before.regional_steps == 7 and not trace.notes
    assert latent.isfinite().all() and distance(latent, held) > 1e-5


def test_samplers_without_a_multirate_form_ignore_it(sd3):
    runs = [sample_ras(sd3.build(), sd3, sd3.noise(), each, sampler="heun")[0] for each in (HELD, CONTINUED)]
    assert torch.equal(*runs)


def test_it_needs_corrections(sd3):
    plain, continued = (RASConfig(**{**vars(each), "corrections": False}) for each in (HELD, CONTINUED))
    assert torch.equal(*(sample_ras(sd3.build(), sd3, sd3.noise(), each)[0] for each in (plain, continued)))


def test_images_of_a_batch_do_not_see_each_other(family):
    noise = family.noise(batch=2)
    both, _ = sample_ras(family.build(), family, noise, CONTINUED)
    for i in range(2):
        alone, _ = sample_ras(family.build(), family, noise[i : i + 1], CONTINUED)
        assert distance(both[i : i + 1], alone) < 1e-4


def test_prompts_may_be_evaluated_one_by_one(family, monkeypatch):
    together, _ = sample_ras(family.build(), family, family.noise(), CONTINUED)
    model = family.build()
    split_prompts(monkeypatch, model)
    apart, _ = sample_ras(model, family, family.noise(), CONTINUED)
    assert distance(apart, together) < 1e-5
