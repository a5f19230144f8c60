"""Every sampler of ComfyUI, and samplers of other packs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from ras_pack.ras_core.method.schedule import step_of_sigma
from support.families import Family
from torch import Tensor

from .cells import Result
from .rows import CONFIG, DENSE_STEPS, SOME, Group, Row, Run, percent

SAMPLERS = (
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2",
    "exp_heun_2_x0", "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive",
    "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m",
    "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm", "ipndm_v", "deis", "res_multistep",
    "res_multistep_cfg_pp", "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp",
    "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver",
    "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
"""ComfyUI 0.30.0's. A test fails if ComfyUI has another one."""

MOST = replace(CONFIG, sample_ratio=0.95)
"""61 of 64 tokens: noise that samplers add makes small differences larger."""

CLOSE = 0.25

QUICK = ("sd3", "lumina_next", "sd35_large", "flux", "lumina2", "sd35_medium")
NOTES = {
    "dpm_adaptive": "It chooses its own noise levels, so the number of steps differs from that of the node.",
    "dpm_fast": "It chooses its own noise levels, so the number of steps differs from that of the node.",
}
SHORT = {"dpm_adaptive": {"denoise": 0.2, "has_image": True}}
"""It makes many evaluations."""

CORRECTED = "Skipped regions are corrected when they are computed again."


def follows_its_plan(found: Result) -> None:
    """An evaluation belongs to the step whose noise levels enclose that of the evaluation. Consecutive
    evaluations of one step compute the same tokens.
    """
    sigmas = comfy.samplers.KSampler(
        found.model, found.run.steps, torch.device("cpu"), found.run.sampler, found.run.scheduler
    ).sigmas.tolist()
    evaluations = found.trace.evaluations
    for each in evaluations:
        assert each.step == step_of_sigma(sigmas, each.sigma)
        assert each.active_share == (1 if each.step < DENSE_STEPS else 61 / 64)
    for before, after in pairwise(evaluations):
        assert before.step != after.step or (before.active == after.active).all()


def custom(sampler: Any) -> Any:
    """Samples with a SAMPLER object, as SamplerCustom does."""

    def sample(model: Any, family: Family, run: Run) -> Tensor:
        noise, sampling = family.noise(*run.size), model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, run.scheduler, run.steps)
        return comfy.sample.sample_custom(
            model, noise, run.cfg, sampler(), sigmas, family.conditioning(1), family.conditioning(2),
            torch.zeros_like(noise), disable_pbar=True, seed=5,
        )  # fmt: skip

    return sample


class OwnKSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER whose class another node pack derives from ComfyUI's class KSAMPLER."""


def of_another_pack() -> Any:
    return OwnKSampler(comfy.k_diffusion.sampling.sample_euler)


def _row(number: int, name: str) -> Row:
    note = CORRECTED if name in ("euler", "dpmpp_2m") else NOTES.get(name, "")
    own_levels = name in ("dpm_fast", "dpm_adaptive")
    return Row(
        f"`{name}`",
        families=(QUICK[number % len(QUICK)],) if name != "dpm_adaptive" else ("sd3",),
        run=Run(sampler=name, config=MOST, **SHORT.get(name, {})),
        regional=SOME if own_levels else None,
        near=CLOSE,
        note=note,
        check=None if own_levels else follows_its_plan,
    )


GUIDERS = "tests/host/test_guiders.py"

GROUP = Group(
    "Samplers",
    (
        *(_row(number, name) for number, name in enumerate(SAMPLERS)),
        Row(
            "a sampler with options (`dpmpp_2m_sde` with eta 0)",
            run=Run(sample=custom(lambda: comfy.samplers.ksampler("dpmpp_2m_sde", {"eta": 0.0}))),
        ),
        Row(
            "`euler` with s_churn",
            near=CLOSE,
            run=Run(sample=custom(lambda: comfy.samplers.ksampler("euler", {"s_churn": 1.0}))),
            note="Skipped regions are not corrected.",
        ),
        Row(
            "a sampler of another pack",
            run=Run(sample=custom(of_another_pack)),
            note="Skipped regions are not corrected.",
        ),
        Row(
            "a sampler that shifts noise levels (for example Detail Daemon)",
            test=f"{GUIDERS}::TestShiftedLevels::test_every_step_is_as_planned",
        ),
        Row(
            "a sampler that skips steps",
            test=f"{GUIDERS}::TestShiftedLevels::test_a_schedule_of_its_own_is_read_from_the_levels",
        ),
        Row(
            "a node that samples twice in one run",
            note="Both passes are fast, unless the number of steps of a plan does not fit one of them.",
            test=f"{GUIDERS}::TestSamplingTwice::test_both_times_are_accelerated",
        ),
        Row(
            "RAS Multirate Sampler",
            test="tests/nodes/test_nodes.py::TestSampling::test_multirate_equals_patch_and_custom_sampler",
        ),
    ),
    "All samplers of ComfyUI 0.30.0 work. With `euler` and `dpmpp_2m`, skipped regions are corrected when "
    f"they are computed again; this needs no setting. In this table, latents differ by less than "
    f"{percent(CLOSE)} when each regional step computes {percent(MOST.sample_ratio)} of the tokens, because "
    "noise that a sampler adds makes small differences larger.",
    CLOSE,
)
