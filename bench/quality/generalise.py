"""Do plans that RAS Calibrate measures on few prompts hold for other prompts?

For each speed, this measures all plans that a calibration tries, and the plan of the family, on the prompts
of the sweep. The loss of a calibration is the PSNR of the best plan that it tried minus that of the plan that
it chose.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...ras_core.host.calibration import Calibration
from ...ras_core.host.measured_runs import Task
from ...ras_core.method.family_plans import family_plans
from ...ras_core.method.plan import PLAN_SAMPLERS, PLAN_SPEEDS, Plan
from ...ras_core.method.plan_set import PlanSet
from ..common.progress import say
from .calibrated import unjudged
from .cells import Cell
from .engine import Engine
from .plan_cells import cell_of_plan
from .sampling import make_batches, noise_of

SAMPLER = PLAN_SAMPLERS[0]
CHOSEN, TRIED, FAMILY = "chosen", "tried", "family"


@dataclass(frozen=True)
class Judged:
    """A plan of one speed, and its quality on the prompts that it was not calibrated on.

    Attributes:
        role: CHOSEN by the calibration, only TRIED by it, or the plan of the FAMILY.
        psnr: in dB against the converged images, mean over the images; `sem`: its standard error.
    """

    family: str
    speed: str
    role: str
    plan: str
    psnr: float
    sem: float
    cost: float


def calibrated_plans(engine: Engine, family: str, prompts: int) -> tuple[PlanSet, float]:
    """The plans of a calibration on the first `prompts` calibration prompts, and its duration in seconds."""
    studio = engine.studio(family)
    texts = unjudged([prompt.text for prompt in engine.options.prompts])[:prompts]
    (batch,) = make_batches(studio.source.encode, texts, prompts)
    shape = studio.source.latent_shape(engine.options.size)
    noise = torch.stack([noise_of(texts[row], 0, shape) for row in batch.rows])
    task = Task(studio.source.model, batch.positive, batch.negative, noise, studio.cfg)
    start = time.perf_counter()
    with torch.inference_mode():
        plans = Calibration(task).run()
    return plans, time.perf_counter() - start


def judge(engine: Engine, family: str, plans: PlanSet) -> Iterator[Judged]:
    """Measure the plans of each speed that a calibration tried, and the family's plan."""
    for speed in PLAN_SPEEDS:
        chosen = plans.best(speed, SAMPLER)
        tried = [plan for plan in plans.plans if (plan.speed, plan.sampler) == (speed, SAMPLER)]
        roles = [(CHOSEN if plan == chosen else TRIED, plan) for plan in tried]
        for role, plan in [*roles, (FAMILY, family_plans(family).best(speed, SAMPLER))]:
            row = engine.row(_cell(family, plan))
            told = Judged(family, speed, role, plan.describe(), row["psnr"], row["psnr_sem"], row["cost_own"])
            say(f"{family} {told.plan} ({role}): {told.psnr:.2f} dB at {told.cost:.2f}x")
            yield told


def write(judged: Sequence[Judged], seconds: dict[str, float], out: Path) -> str:
    """Write all figures to out/generalise.json; returns a table with a line for each family and speed."""
    out.mkdir(parents=True, exist_ok=True)
    data = {"seconds": seconds, "judged": [vars(each) for each in judged]}
    (out / "generalise.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    lines = [
        "| family | speed | chosen, dB | best tried | loss | family's plan |",
        "|---|---|---|---|---|---|",
    ]
    for family in dict.fromkeys(each.family for each in judged):
        for speed in PLAN_SPEEDS:
            lines.append(_line([each for each in judged if (each.family, each.speed) == (family, speed)]))
    lines += [f"{family}: calibrated in {took:.0f} s" for family, took in seconds.items()]
    return "\n".join(lines)


def _line(judged: Sequence[Judged]) -> str:
    psnr = {each.role: each.psnr for each in judged}
    best = max(each.psnr for each in judged if each.role != FAMILY)
    figures = psnr[CHOSEN], best, best - psnr[CHOSEN], psnr[FAMILY]
    return f"| {judged[0].family} | {judged[0].speed} | " + " | ".join(f"{x:.2f}" for x in figures) + " |"


def _cell(family: str, plan: Plan) -> Cell:
    cell = cell_of_plan(family, plan)
    return cell if plan.is_plain else replace(cell, extra={"spread": True})
