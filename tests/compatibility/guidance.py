"""Guidance: how the outputs for several prompts are combined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from support.families import Family
from torch import Tensor

from .rows import DENSE, Group, Row, Run, node, part_of, small

GUIDERS = "comfy_extras.nodes_custom_sampler"
EVERY = (
    "sd3", "sd35_large", "sd35_medium", "lumina2", "z_image", "lumina_next", "flux", "flux_fill",
    "flux_kontext",
)  # fmt: skip


def by_guider(make: Callable[[Any, Family], Any]) -> Callable[[Any, Family, Run], Tensor]:
    """Samples as SamplerCustomAdvanced does, with the guider that `make` makes for a model."""

    def sample(model: Any, family: Family, run: Run) -> Tensor:
        noise = family.noise(*run.size, batch=run.batch)
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, run.scheduler, run.steps)
        return make(model, family).sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object(run.sampler), sigmas,
            disable_pbar=True, seed=5,
        )  # fmt: skip

    return sample


def basic(model: Any, family: Family) -> Any:
    guider = part_of(GUIDERS, "Guider_Basic")(model)
    guider.set_conds(family.conditioning(1))
    return guider


def perp_neg(model: Any, family: Family) -> Any:
    guider = part_of("comfy_extras.nodes_perpneg", "Guider_PerpNeg")(model)
    guider.set_conds(family.conditioning(1), family.conditioning(2), family.conditioning(3))
    guider.set_cfg(4.0, 1.0)
    return guider


def dual_cfg(is_nested: bool) -> Callable[[Any, Family], Any]:
    def make(model: Any, family: Family) -> Any:
        guider = part_of(GUIDERS, "Guider_DualCFG")(model)
        guider.set_conds(family.conditioning(1), family.conditioning(3), family.conditioning(2))
        guider.set_cfg(3.0, 2.0, nested=is_nested)
        return guider

    return make


def dual_model(model: Any, family: Family) -> Any:
    guider = part_of(GUIDERS, "Guider_DualModel")(model, small(family, seed=7))
    guider.set_conds(family.conditioning(1), family.conditioning(2))
    guider.set_cfg(4.0)
    return guider


def slg(layers: str = "1", start: float = 0.01, end: float = 0.6) -> Any:
    return node(
        "comfy_extras.nodes_slg", "SkipLayerGuidanceDiT", 3.0, start, end, double_layers=layers,
        single_layers="",
    )  # fmt: skip


def _acting(name: str, module: str, kind: str, *inputs: Any, families: tuple[str, ...], **more: Any) -> Row:
    """A row of one of ComfyUI's guidance nodes, in both orders."""
    run = Run(node(f"comfy_extras.{module}", kind, *inputs))
    return Row(name, families=families, run=run, orders=("before", "after"), acts=True, **more)


IN_GUIDERS = "tests/host/test_guiders.py"

GROUP = Group(
    "Guidance",
    (
        Row("CFG, both prompts in one call of the model", families=EVERY),
        Row(
            "CFG, each prompt in its own call, in all steps or in some",
            families=EVERY,
            note="ComfyUI decides this at each step according to the free memory.",
            test="tests/models/test_proofs.py::TestReality::test_conditionings_in_separate_calls_equal_one_call",
        ),
        Row("cfg 1", families=("sd35_medium", "lumina2", "flux"), run=Run(cfg=1.0)),
        Row("BasicGuider", families=("flux",), run=Run(sample=by_guider(basic))),
        Row(
            "CFG Override: cfg 1 after 30 % of the run",
            families=("sd3", "lumina_next"),
            run=Run(node(GUIDERS, "CFGOverride", 1.0, 0.3, 1.0)),
            orders=("before", "after"),
            acts=True,
        ),
        Row(
            "CFG Override: another cfg in the first half",
            run=Run(node(GUIDERS, "CFGOverride", 2.0, 0.0, 0.5)),
            orders=("after",),
            acts=True,
        ),
        Row(
            "guidance that leaves the negative prompt out of some steps",
            note="If the negative prompt starts late, one more step is dense.",
            test=f"{IN_GUIDERS}::TestGuidanceThatChanges::test_the_negative_prompt_stops_and_returns",
        ),
        Row(
            "prompts that alternate from step to step",
            note="One more step is dense.",
            test=f"{IN_GUIDERS}::TestGuidanceThatChanges::test_prompts_that_take_turns",
        ),
        Row("PerpNegGuider", families=("sd3", "lumina2"), run=Run(sample=by_guider(perp_neg))),
        Row("DualCFGGuider, regular", families=("sd3",), run=Run(sample=by_guider(dual_cfg(False)))),
        Row("DualCFGGuider, nested", families=("flux",), run=Run(sample=by_guider(dual_cfg(True)))),
        Row(
            "DualModelGuider, two models of one family",
            families=("sd3", "lumina_next"),
            run=Run(sample=by_guider(dual_model)),
        ),
        Row(
            "DualModelGuider, models of different families",
            DENSE,
            ("sd3", "lumina2", "flux"),
            note="The other model belongs to another family.",
            test=f"{IN_GUIDERS}::TestGuidersOfComfyUI::test_two_models_of_different_families_run_dense",
        ),
        Row(
            "DualModelGuider, with RAS Patch Model on its second model only",
            DENSE,
            ("sd3",),
            note="RAS settings have no effect on a guider's second model; the log says so.",
            test=f"{IN_GUIDERS}::TestRASOnASecondModel::test_the_first_model_has_no_ras",
        ),
        Row(
            "DualModelGuider, with other RAS settings on its second model",
            families=("sd3",),
            note="The settings of the first model apply to both; the log says so.",
            test=f"{IN_GUIDERS}::TestRASOnASecondModel::test_both_models_have_ras",
        ),
        Row(
            "guider of another pack that gives two results for a step",
            test=f"{IN_GUIDERS}::TestResults::test_two_estimates",
        ),
        Row(
            "guider of another pack whose result is not an image",
            DENSE,
            note="RAS cannot choose regions from such a result.",
            test=f"{IN_GUIDERS}::TestResults::test_no_estimate_of_the_latent",
        ),
        _acting("RescaleCFG", "nodes_model_advanced", "RescaleCFG", 0.7, families=("sd3", "flux")),
        _acting("Adaptive Projected Guidance (APG)", "nodes_apg", "APG", 1.0, 5.0, 0.0, families=("sd3",)),
        _acting("CFGZeroStar", "nodes_cfg", "CFGZeroStar", families=("sd35_large", "lumina2")),
        _acting("CFGNorm", "nodes_cfg", "CFGNorm", 1.0, families=("lumina_next",)),
        _acting("Tangential Damping CFG (TCFG)", "nodes_tcfg", "TCFG", families=("sd3", "lumina2")),
        _acting("Mahiro", "nodes_mahiro", "Mahiro", families=("sd3",)),
        _acting("FreSca", "nodes_fresca", "FreSca", 1.0, 1.25, 4, families=("sd3",)),
        _acting("RenormCFG", "nodes_lumina2", "RenormCFG", 100.0, 1.0, families=("lumina2",)),
        _acting("Epsilon Scaling", "nodes_eps", "EpsilonScaling", 1.3, families=("sd3",)),
        _acting(
            "Temporal Score Rescaling", "nodes_eps", "TemporalScoreRescaling", 3.0, 1.0, families=("sd3",)
        ),
        Row(
            "Normalized Attention Guidance (NAG), on Flux",
            DENSE,
            ("flux",),
            Run(node("comfy_extras.nodes_nag", "NAGuidance", 5.0, 0.5, 1.5)),
            orders=("before", "after"),
            reason="another node patches the attentions",
            note="NAG changes the result of every attention, and may need all tokens to do so.",
        ),
        Row(
            "Normalized Attention Guidance (NAG), on other families",
            families=("sd3", "lumina2"),
            run=Run(node("comfy_extras.nodes_nag", "NAGuidance", 5.0, 0.5, 1.5)),
            orders=("before", "after"),
            note="NAG itself has no effect on these models.",
        ),
        Row(
            "Perturbed-Attention Guidance (PAG)",
            families=("sd3",),
            run=Run(node("comfy_extras.nodes_pag", "PerturbedAttentionGuidance", 2.0)),
            orders=("before", "after"),
            note="PAG itself has no effect on these models.",
        ),
        Row(
            "Skip Layer Guidance (SLG)",
            families=("sd3", "sd35_medium"),
            run=Run(slg()),
            orders=("before", "after"),
            acts=True,
        ),
        Row(
            "two kinds of Skip Layer Guidance, one after the other",
            note="One more step is dense.",
            test="tests/host/test_combinations.py::TestOtherPatches::"
            "test_two_kinds_of_skip_layer_guidance_do_not_share_a_cache",
        ),
        Row(
            "Skip Layer Guidance (SLG), simple",
            families=("sd35_large",),
            run=Run(node("comfy_extras.nodes_slg", "SkipLayerGuidanceDiTSimple", 0.0, 1.0, "1", "")),
            acts=True,
        ),
    ),
)
