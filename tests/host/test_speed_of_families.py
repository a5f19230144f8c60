"""The `speed` setting with every family of support/other_families.py, in runs by ComfyUI's KSampler and by
RASKSampler. Their latents come from nodes that know no time axis.
"""

import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from ras_pack.nodes.patch_model import RASPatchModel
from ras_pack.nodes.sampler import RASKSampler
from ras_pack.ras_core.host.patch import last_trace
from support.families import Family
from support.other_families import OTHERS

import nodes as host_nodes

STEPS, SPEED = 28, 2.0
SETTINGS = {
    "speed": "2x", "plan": None, "sample_ratio": 0.5, "start_percent": 0.2, "end_percent": 1.0,
    "error_reset_every": 0, "cuda_graphs": "off", "kv_cache": "auto",
}  # fmt: skip
LONG_TEXT = ("flux2",)
"""Families whose text has far more rows than the tiny image, so that no regional step is worth its cost."""


@pytest.fixture(autouse=True)
def _own_user_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))


@pytest.fixture(params=list(OTHERS))
def family(request: pytest.FixtureRequest) -> Family:
    return OTHERS[request.param]


@torch.inference_mode()
def test_a_speed_is_reached_by_both_nodes(family, caplog):
    side = 8 * family.patch
    given = {
        "seed": 3, "steps": STEPS, "cfg": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "simple",
        "positive": family.conditioning(1), "negative": family.conditioning(2), "denoise": 1.0,
        "latent_image": {"samples": torch.zeros(1, family.channels, side, side)},
    }  # fmt: skip
    model = family.build()
    with caplog.at_level("INFO"):
        latent, trace = RASKSampler.execute(model=model, **SETTINGS, **given).result
    gain = trace.expected_speedup * STEPS / trace.n_steps
    assert (trace.notes, trace.regional_steps > 0) == ((), family.name not in LONG_TEXT)
    assert gain == pytest.approx(SPEED, rel=0.05)
    assert caplog.text.count("that was measured") == 1
    assert latent["samples"].shape == family.noise(side, side).shape and latent["samples"].isfinite().all()
    patched = RASPatchModel.execute(model, **SETTINGS).result[0]
    behind = host_nodes.KSampler().sample(patched, **given)[0]["samples"]
    assert torch.equal(behind, latent["samples"])
    assert last_trace(patched).regional_steps == trace.regional_steps


@torch.inference_mode()
@pytest.mark.parametrize(("steps", "found"), [(20, 10), (4, 4)])
def test_the_scheduler_of_flux2_makes_way_unless_its_steps_are_few(steps, found):
    """Flux.2 Klein, distilled, needs 4 steps; each of them is then the user's own."""
    nodes = pytest.importorskip("comfy_extras.nodes_flux")
    if not hasattr(nodes, "Flux2Scheduler"):
        pytest.skip("this ComfyUI does not have Flux2Scheduler")
    family = OTHERS["flux2"]
    sigmas = nodes.Flux2Scheduler.execute(steps, 1024, 1024).result[0]
    plain = family.build()
    patched = RASPatchModel.execute(plain, **SETTINGS).result[0]
    latents = [
        comfy.sample.sample_custom(
            model, family.noise(16, 16), 1.0, comfy.samplers.sampler_object("euler"), sigmas,
            family.conditioning(1), family.conditioning(2), torch.zeros_like(family.noise(16, 16)),
            disable_pbar=True, seed=5,
        )
        for model in (plain, patched)
    ]  # fmt: skip
    assert last_trace(patched).n_steps == found
    assert torch.equal(*latents) == (steps == found)
