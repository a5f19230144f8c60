"""The pack's Lumina-Next compared with that of diffusers: single calls and a whole run, with equal weights.

`tests/data/record_lumina_next.py` wrote the reference data, `tests/data/lumina_next.npz`.
"""

import comfy.sample
import comfy.samplers
import numpy as np
import pytest
import torch
from ras_pack.lumina_next.model import guide_first_channels
from support import tiny_lumina_next as tiny
from support.families import FAMILIES
from support.sampling import distance

FAMILY = FAMILIES["lumina_next"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(tiny.REFERENCE) as stored:
        return dict(stored)


def _model(watershed: float = 1.0):
    """The tiny model with the weights of the reference run."""
    model = FAMILY.build(scaling_watershed=watershed)
    network = model.model.diffusion_model
    network.load_state_dict(tiny.random_weights({k: v.shape for k, v in network.state_dict().items()}))
    return model


class TestAgainstDiffusers:
    def test_the_weights_equal_those_of_the_reference_run(self, recorded):
        state = _model().model.diffusion_model.state_dict()
        assert sum(t.double().abs().sum() for t in state.values()).item() == recorded["weights"]

    @torch.inference_mode()
    @pytest.mark.parametrize("name", tiny.CASES)
    def test_a_call_equals_the_reference(self, name, recorded):
        case = tiny.CASES[name]
        latent, caption, mask = case.inputs(list(tiny.CASES).index(name))
        sigma = torch.full((len(latent),), 1.0 - case.time)
        velocity = _model(case.watershed).model.diffusion_model(
            latent, sigma, context=caption, attention_mask=mask
        )
        assert distance(-velocity, torch.from_numpy(recorded[name])) < TOLERANCE

    def test_a_whole_run_equals_the_reference_pipeline(self, recorded):
        assert distance(_run(recorded), torch.from_numpy(recorded["run/latent"])) < TOLERANCE

    def test_the_run_needs_its_guidance_on_three_channels(self, recorded):
        latent, expected = _run(recorded, guide=False), torch.from_numpy(recorded["run/latent"])
        assert distance(latent[:, 3], expected[:, 3]) > 0.01


@torch.inference_mode()
def _run(recorded: dict[str, np.ndarray], guide: bool = True) -> torch.Tensor:
    """Repeat diffusers' stored run in ComfyUI. Returns the final latent, scaled as in the model."""
    inputs, model = tiny.run_inputs(), _model(tiny.RUN_WATERSHED)
    if guide:
        guide_first_channels(model)
    positive = [[inputs["caption"], {"attention_mask": inputs["mask"]}]]
    negative = [[inputs["negative"], {"attention_mask": inputs["negative_mask"]}]]
    latent = comfy.sample.sample_custom(
        model, inputs["noise"], tiny.RUN_GUIDANCE, comfy.samplers.sampler_object("euler"),
        torch.from_numpy(recorded["run/sigmas"]), positive, negative, torch.zeros_like(inputs["noise"]),
        disable_pbar=True, seed=0,
    )  # fmt: skip
    return model.model.process_latent_in(latent)
