"""Schedules, numbers of steps, and parts of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from ras_pack.ras_core.host.patch import last_trace
from support.families import Family
from support.sampling import distance
from torch import Tensor

import nodes as host_nodes

from .cells import Result, with_ras, without_ras
from .guidance import EVERY
from .rows import DENSE, DENSE_STEPS, Group, Row, Run, part_of

SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
)  # fmt: skip
"""ComfyUI 0.30.0's. A test fails if ComfyUI has another one."""

FAMILIES = ("sd3", "flux", "lumina_next", "lumina2")
IN_SPEED = "tests/host/test_speed_setting.py"


def at_levels(make: Callable[[Any, Run], Tensor], sampler: str = "euler") -> Any:
    """Samples at the noise levels that `make` returns, as SamplerCustom does."""

    def sample(model: Any, family: Family, run: Run) -> Tensor:
        noise = family.noise(*run.size)
        return comfy.sample.sample_custom(
            model, noise, run.cfg, comfy.samplers.sampler_object(sampler), make(model, run),
            family.conditioning(1), family.conditioning(2), torch.zeros_like(noise), disable_pbar=True,
            seed=5,
        )  # fmt: skip

    return sample


def by_node(name: str, *inputs: Any, takes_model: bool = False) -> Any:
    """Noise levels from one of ComfyUI's scheduler nodes."""

    def make(model: Any, run: Run) -> Tensor:
        kind = part_of("comfy_extras.nodes_custom_sampler", name)
        first = (model,) if takes_model else ()
        result = (
            kind.execute(*first, *inputs)
            if hasattr(kind, "define_schema")
            else kind().get_sigmas(*first, *inputs)
        )
        return getattr(result, "args", result)[0]

    return at_levels(make)


def halves(model: Any, family: Family, run: Run) -> Tensor:
    """KSampler (Advanced) twice: the first half returns its latent with noise."""
    latent = {"samples": torch.zeros_like(family.noise(*run.size))}
    middle = run.steps // 2
    for start, end in ((0, middle), (middle, run.steps)):
        latent = host_nodes.KSamplerAdvanced().sample(
            model, "disable" if start else "enable", 3, run.steps, run.cfg, run.sampler, run.scheduler,
            family.conditioning(1), family.conditioning(2), latent, start, end,
            "disable" if start else "enable",
        )[0]  # fmt: skip
    return latent["samples"]


def split(model: Any, family: Family, run: Run) -> Tensor:
    """SplitSigmas: the second sampler gets the low noise levels and no noise."""
    noise, sampling = family.noise(*run.size), model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, run.scheduler, run.steps)
    latent, middle = torch.zeros_like(noise), run.steps // 2
    for part, given in ((sigmas[: middle + 1], noise), (sigmas[middle:], torch.zeros_like(noise))):
        latent = comfy.sample.sample_custom(
            model, given, run.cfg, comfy.samplers.sampler_object(run.sampler), part, family.conditioning(1),
            family.conditioning(2), latent, disable_pbar=True, seed=5,
        )  # fmt: skip
    return latent


def _second_half_is_planned_alone(found: Result) -> None:
    """The trace is that of the second run, which has its own dense steps."""
    kinds = [step.kind.value for step in found.trace.steps]
    half = found.run.steps - found.run.steps // 2
    assert kinds == ["dense"] * DENSE_STEPS + ["regional"] * (half - DENSE_STEPS)


def _all_steps_run(found: Result) -> None:
    """With denoise below 1, ComfyUI's KSampler runs as many steps, the last ones of a longer schedule."""
    assert [step.step for step in found.trace.steps] == list(range(found.run.steps))


def _rising(model: Any, run: Run) -> Tensor:
    return torch.linspace(0.1, 0.9, run.steps + 1)


def _steps(number: int, families: tuple[str, ...] = ("sd3",), **more: Any) -> Row:
    return Row(f"{number} steps", families=families, run=Run(steps=number), **more)


def _hundred(family: Family) -> None:
    """In a long run, errors of skipped regions do not grow."""
    run = Run(steps=100, size=(8, 8), cfg=2.0)
    latent, model = with_ras(family, run)
    assert last_trace(model).regional_steps == 98 and not last_trace(model).notes
    assert distance(latent, without_ras(family, run)) < 0.2


FEW = {
    "outcome": DENSE,
    "reason": "no regional step fits",
    "note": "The first steps of a run are dense, and no others are left.",
}
GROUP = Group(
    "Schedules, steps and parts of a run",
    (
        *(
            Row(
                f"scheduler `{name}`",
                families=(FAMILIES[number % len(FAMILIES)],),
                run=Run(scheduler=name),
            )
            for number, name in enumerate(SCHEDULERS)
        ),
        Row(
            "BasicScheduler with denoise 0.6",
            run=Run(sample=by_node("BasicScheduler", "simple", 5, 0.6, takes_model=True)),
        ),
        Row("KarrasScheduler", run=Run(sample=by_node("KarrasScheduler", 5, 1.0, 0.03, 7.0))),
        Row("ExponentialScheduler", run=Run(sample=by_node("ExponentialScheduler", 5, 1.0, 0.03))),
        Row(
            "BetaSamplingScheduler",
            families=("flux",),
            run=Run(sample=by_node("BetaSamplingScheduler", 5, 0.6, 0.6, takes_model=True)),
        ),
        Row("ManualSigmas", run=Run(sample=by_node("ManualSigmas", "1.0, 0.9, 0.7, 0.5, 0.2, 0.0"))),
        Row(
            "noise levels that rise (unsampling, FlipSigmas)",
            DENSE,
            run=Run(sample=at_levels(_rising)),
            reason="not strictly decreasing",
            note="The noise levels do not decrease at every step.",
        ),
        Row(
            "noise levels that repeat (a very low denoise)",
            DENSE,
            run=Run(denoise=0.004, has_image=True, steps=5),
            reason="not strictly decreasing",
            note="The noise levels do not decrease at every step.",
        ),
        Row("1 step", run=Run(steps=1), **FEW),
        Row("2 steps", run=Run(steps=2), **FEW),
        _steps(3, ("flux",)),
        _steps(20, ("lumina_next",)),
        Row("100 steps", cell=_hundred),
        Row(
            "img2img (denoise 0.5)",
            families=("sd3", "lumina2", "flux"),
            run=Run(denoise=0.5, has_image=True),
            check=_all_steps_run,
            note="Steps are counted from the first step of this run.",
        ),
        Row(
            "denoise 0",
            DENSE,
            note="There is no step to run. The latent is passed on unchanged.",
            test="tests/nodes/test_trace.py::TestWhoseTrace::test_no_step_to_run",
        ),
        Row(
            "KSampler (Advanced) in two halves",
            families=("sd3", "lumina2"),
            run=Run(sample=halves, steps=8),
            regional=2,
            check=_second_half_is_planned_alone,
            note="With speed `custom`, each half starts with its own dense steps.",
        ),
        Row(
            "SplitSigmas and two samplers",
            families=("flux",),
            run=Run(sample=split, steps=8),
            regional=2,
            check=_second_half_is_planned_alone,
            note="With speed `custom`, each part starts with its own dense steps.",
        ),
        Row(
            "two halves with a speed (`1.5x` to `3x`)",
            note="Both halves together follow the plan of the whole run.",
            test=f"{IN_SPEED}::TestLevels::test_halves_have_the_levels_of_the_whole",
        ),
        Row(
            "a speed and any scheduler",
            note="With `euler` and `dpmpp_2m`, the plan's noise levels replace those of the scheduler.",
            test=f"{IN_SPEED}::TestLevels::test_any_scheduler_of_comfyui_makes_way",
        ),
        Row(
            "a speed and another sampler",
            families=EVERY,
            note="The noise levels and the number of steps stay as they are.",
            test=f"{IN_SPEED}::TestCost::test_other_samplers_keep_their_grid",
        ),
    ),
)
