"""Prompts with areas, masks and ranges; inpainting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from ras_pack.ras_core.host.patch import last_trace
from ras_pack.ras_core.run.recorder import UNCACHED_ONCE
from support.families import Family
from torch import Tensor

import nodes as host_nodes

from .cells import Result, with_ras
from .rows import DENSE, Group, Row, Run, node, usual_prompts

INPAINTING = "tests/host/test_inpainting.py"
FEATURES = "tests/models/test_features_of_families.py"
FEW = ("sd3", "lumina2", "flux")


def second(make: Callable[[], dict[str, Any]]) -> Callable[[Family], dict[str, list]]:
    """A second positive prompt with these entries."""

    def prompts(family: Family) -> dict[str, list]:
        more = family.conditioning(3)
        more[0][1].update(make())
        return {"positive": family.conditioning(1) + more}

    return prompts


def right_half() -> dict[str, Any]:
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1.0
    return {"mask": mask}


def of_length(family: Family, positive: int, negative: int) -> dict[str, list]:
    return {
        "positive": family.conditioning(1, rows=positive),
        "negative": family.conditioning(2, rows=negative),
    }


def averaged(family: Family) -> dict[str, list]:
    """ConditioningAverage of two prompts."""
    pair = (family.conditioning(1), family.conditioning(3))
    return {"positive": host_nodes.ConditioningAverage().addWeighted(*pair, 0.6)[0]}


def zeroed(family: Family) -> dict[str, list]:
    """ConditioningZeroOut as the negative prompt."""
    return {"negative": host_nodes.ConditioningZeroOut().zero_out(family.conditioning(2))[0]}


def flux_guidance(family: Family) -> dict[str, list]:
    """The guidance that Flux dev's network reads, for both prompts."""
    prompts = {"positive": family.conditioning(1), "negative": family.conditioning(2)}
    for prompt in prompts.values():
        prompt[0][1]["guidance"] = 1.5
    return prompts


def four_in_turn(family: Family) -> dict[str, list]:
    """Each of four prompts applies to a quarter of the run."""
    prompts = []
    for i in range(4):
        prompts += family.conditioning(10 + i)
        prompts[-1][1].update(start_percent=i / 4, end_percent=(i + 1) / 4)
    return {"positive": prompts}


def _frees_what_has_ended(found: Result) -> None:
    """K/V data are kept for at most three prompts at once: the negative one, and the previous and the current
    positive one.
    """
    _, model = with_ras(found.family, replace(found.run, prompts=usual_prompts))
    assert found.trace.kv_bytes <= 2 * last_trace(model).kv_bytes


def inside(value: float) -> Callable[[Tensor], Tensor]:
    """A noise mask with a square in the middle of the image."""

    def mask(noise: Tensor) -> Tensor:
        made = torch.zeros(1, 1, *noise.shape[2:])
        made[..., 4:12, 4:12] = value
        return made

    return mask


def gradient(noise: Tensor) -> Tensor:
    return torch.linspace(0, 1, noise.shape[3]).expand(1, 1, *noise.shape[2:]).clone()


def whole(noise: Tensor) -> Tensor:
    return torch.ones(1, 1, *noise.shape[2:])


def _range(start: float, end: float) -> Callable[[Family], dict[str, list]]:
    return second(lambda: {"start_percent": start, "end_percent": end})


INPAINT = {"reason": "inpainting", "note": "The cached results outside the mask would become too outdated."}

GROUP = Group(
    "Prompts, areas, masks and inpainting",
    (
        Row("two positive prompts (Conditioning Combine)", families=FEW, run=Run(prompts=second(dict))),
        Row(
            "prompts of different length",
            families=("sd3", "lumina2", "z_image", "flux", "lumina_next"),
            run=Run(prompts=partial(of_length, positive=11, negative=4)),
        ),
        Row("Conditioning Average", run=Run(prompts=averaged)),
        Row("Conditioning Zero Out", families=("flux",), run=Run(prompts=zeroed)),
        Row(
            "a prompt with a mask",
            families=("sd3", "lumina2", "z_image", "lumina_next", "flux"),
            run=Run(prompts=second(right_half)),
        ),
        Row(
            "FluxGuidance",
            families=("flux",),
            run=Run(prompts=flux_guidance),
        ),
        Row(
            "a prompt with an area",
            DENSE,
            ("sd3", "sd35_medium", "lumina2", "z_image", "lumina_next", "flux"),
            Run(prompts=second(lambda: {"area": (8, 8, 4, 4)})),
            reason="area conditioning",
            note="The model gets a part of the image, not the whole image.",
        ),
        Row(
            "a prompt with an area in percent",
            DENSE,
            run=Run(prompts=second(lambda: {"area": ("percentage", 0.5, 0.5, 0.25, 0.25)})),
            reason="area conditioning",
            note="The model gets a part of the image, not the whole image.",
        ),
        Row("a prompt that ends during the run", families=FEW, run=Run(prompts=_range(0.0, 0.5), steps=6)),
        Row(
            "a prompt that starts during the run",
            families=FEW,
            run=Run(prompts=_range(0.5, 1.0), steps=8),
            regional=5,
            reason=UNCACHED_ONCE,
            note="One more step is dense.",
        ),
        Row(
            "four prompts, one after the other",
            families=("lumina_next", "sd3"),
            run=Run(prompts=four_in_turn, steps=12),
            regional=7,
            reason="conditioning without cached data ran dense",
            check=_frees_what_has_ended,
            note="One more step is dense for each prompt that starts.",
        ),
        Row(
            "reference images (models that edit images)",
            families=(),
            note="Only dense steps compute reference images; the log says so. If the network modulates them "
            "by the noise level (Flux.1 Kontext, Mage-Flow, the method `index`), regional steps that follow "
            "each other add a large error; with a speed other than custom, there are none "
            "([measured](quality.md#editing)).",
            test=f"{FEATURES}::test_the_log_says_when_reference_images_were_computed",
        ),
        Row(
            "inpainting with a noise mask",
            DENSE,
            ("sd3", "lumina2", "lumina_next", "flux", "flux_fill"),
            Run(mask=inside(1.0), has_image=True),
            **INPAINT,
        ),
        Row("inpainting with a soft mask", DENSE, run=Run(mask=inside(0.5), has_image=True), **INPAINT),
        Row("inpainting of an empty latent", DENSE, run=Run(mask=inside(1.0)), **INPAINT),
        Row(
            "a noise mask of the whole image",
            families=("sd3", "z_image", "lumina2"),
            run=Run(mask=whole, has_image=True),
        ),
        Row(
            "Differential Diffusion",
            DENSE,
            ("sd3", "flux"),
            Run(
                node("comfy_extras.nodes_differential_diffusion", "DifferentialDiffusion"),
                mask=gradient,
                has_image=True,
            ),
            orders=("before", "after"),
            **INPAINT,
        ),
        Row(
            "inpainting with a speed (`1.5x` to `3x`)",
            DENSE,
            note="With `euler` and `dpmpp_2m`, the plan saves time by fewer steps.",
            test=f"{INPAINTING}::TestSpeed::test_it_is_plain_sampling_on_the_plans_grid",
        ),
        Row(
            "InpaintModelConditioning without a noise mask (Flux Fill)",
            families=("flux_fill", "sd3"),
            test=f"{INPAINTING}::TestMasks::test_inpaint_model_conditioning",
        ),
    ),
)
