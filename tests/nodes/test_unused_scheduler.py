"""When RAS KSampler's scheduler has no effect: web/unused_inputs.js greys it out then, and only then."""

import json
import re

import comfy.samplers
import pytest
import torch
from ras_pack.nodes.sampler import RASKSampler
from ras_pack.ras_core.method.few_steps import FEW_STEPS
from support.families import FAMILIES
from support.node_js import web

pytestmark = pytest.mark.small_images


def constant(name: str):
    """The value of a constant in the script."""
    return json.loads(re.sub(r",\s*\]", "]", re.search(rf"const {name} = ([^;]+);", SCRIPT)[1]))


SCRIPT = re.sub(r" // .*", "", web("unused_inputs.js"))
PLANNED, FROM_NOISE = constant("PLANNED"), constant("FROM_NOISE")
KNOWN = [name for name in FROM_NOISE if name in comfy.samplers.KSampler.SCHEDULERS]


def levels(family, scheduler: str, masked: bool = False, **changes) -> tuple[float, ...]:
    """The noise levels of a run of the node."""
    latent = {"samples": torch.zeros_like(family.noise())}
    if masked:
        latent["noise_mask"] = torch.zeros(1, *latent["samples"].shape[-2:])
        latent["noise_mask"][..., :4] = 1.0
    given = {
        "seed": 1, "steps": 28, "cfg": 3.5, "sampler_name": "euler", "denoise": 1.0, "speed": "2x",
        "plan": None, "sample_ratio": 0.5, "start_percent": 0.2, "end_percent": 1.0, "error_reset_every": 0,
        **changes,
    }  # fmt: skip
    _, trace = RASKSampler.execute(
        model=family.build(), latent_image=latent, scheduler=scheduler, positive=family.conditioning(1),
        negative=family.conditioning(2), **given,
    ).result  # fmt: skip
    return tuple(round(each.sigma, 5) for each in trace.evaluations)


@pytest.mark.parametrize(
    ("name", "sampler", "speed", "steps", "masked"),
    [
        ("sd3", "euler", "2x", 28, False),
        ("sd3", "dpmpp_2m", "3x", FEW_STEPS + 1, True),
        ("lumina2", "euler", "1.5x", FEW_STEPS + 1, False),
        ("lumina2", "dpmpp_2m", "2x", 28, True),
        ("flux", "euler", "2.5x", 28, True),
        ("flux", "dpmpp_2m", "2x", FEW_STEPS + 1, False),
    ],
)
def test_schedulers_without_effect(name, sampler, speed, steps, masked):
    assert sampler in PLANNED
    given = {"masked": masked, "sampler_name": sampler, "speed": speed, "steps": steps}
    assert len({levels(FAMILIES[name], scheduler, **given) for scheduler in KNOWN}) == 1


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({}, "ddim_uniform"),
        ({"steps": FEW_STEPS}, "beta"),
        ({"denoise": 0.6}, "beta"),
        ({"sampler_name": "heun"}, "beta"),
        ({"speed": "custom"}, "beta"),
    ],
)
def test_schedulers_with_effect(changes, other):
    family = FAMILIES["sd3"]
    assert levels(family, "simple", **changes) != levels(family, other, **changes)


def test_the_script_has_the_limits_of_the_pack():
    assert constant("FEW_STEPS") == FEW_STEPS
    assert len(KNOWN) >= 7 and "ddim_uniform" not in FROM_NOISE
