"""Measures which noise levels need the most steps, tries plans for each speed, and saves the plans.

The work in order:

1. Measure the error of one long Euler step over each twelfth of a fine schedule. The larger the error in a
   twelfth, the larger the share of a run's steps in it. These shares are the measured density.
2. Compute reference latents with many steps of dpmpp_2m.
3. For each speed, sample with dense steps on four grids of noise levels:
   - the grid of the measured density;
   - the grid of the mean of the measured density and the even density (the same share in each twelfth);
   - a fixed grid: the first `a` levels of a schedule of `n` levels, then every `k`-th level;
   - the `simple` schedule.
4. On the grid whose result is closest to the reference latents, sample runs with regional steps. Each of them
   has as many FLOPs as the dense run on that grid.

For each seed, a calibration samples 42 runs with 630 steps in total; 190 of these steps are in runs with
regional steps. For SD3-medium at 1024 px, the FLOPs of all runs equal those of 599 dense steps; those of the
runs with regional steps equal 159. The following estimate is for two seeds. It assumes that a dense step of
one image with the positive and the negative prompt takes 64 ms, as measured on an H100 (another measurement
gave 58 ms, see conditionings.py). It also assumes that runs with regional steps take a tenth more time than
their FLOPs suggest. Then a calibration takes 2 x (599 + 15.9) x 64 ms = 79 s.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import comfy.model_management
import comfy.samplers
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import RASError
from ..method.integrator import Solver
from ..method.plan import (
    FULL_STEPS,
    PLAN_SAMPLERS,
    PLAN_SPEEDS,
    Plan,
    PlanSpeed,
    plain_steps,
)
from ..method.plan_candidates import candidates
from ..method.plan_set import HERE, PlanSet
from ..method.regional_cost import RegionalCost
from ..method.sigma_grid import even_density, front_loaded_density, step_density
from ..models import network_of
from .fingerprint import fingerprint
from .measured_runs import Task, block_costs, block_evaluations, closeness
from .outer_sample import is_image
from .plan_files import save_plans
from .planned_model import ran_as_planned, regional_cost, with_plan, without_ras
from .plans import FINE_LEVELS, adapter_of
from .samplers import multirate_sampler

logger = logging.getLogger(__name__)

FINE_STEPS = 24
BLOCKS = 12
REFERENCE_STEPS = 72

# (n, a, k) by speed, for the fixed grid: of a schedule of n levels, take the first a, then every k-th.
FRONT_LOADED = {"1.5x": (40, 8, 3), "2x": (32, 5, 3), "2.5x": (24, 4, 3), "3x": (24, 4, 4)}
GRIDS = 4
"""Number of sigma grids that calibration tries for each speed."""
SEEDS = 2
KV_CACHE = "forecast"
"""K/V format of the measured runs. Runs with this format give results closer to those of a dense run than
runs with any other format. It takes twice the memory of the format `gpu`."""


def calibrate(
    model: ModelPatcher,
    conditionings: tuple[list, list],
    latent: Tensor,
    cfg: float,
    seeds: int = SEEDS,
    source: str = "",
) -> PlanSet:
    """Measure a model, save its plans in ComfyUI's user folder, and return them.

    Args:
        model: the MODEL to measure; RAS settings on it are ignored.
        conditionings: positive and negative CONDITIONING.
        latent: (b, c, H, W); only its size matters.
        cfg: guidance scale.
        seeds: number of images to measure with, in one batch.
        source: identifies the nodes from which the model comes; see `PlanSet`.

    Raises:
        RASError: the latent is not that of an image.
        InterruptProcessingException: the user pressed stop; nothing is saved.
    """
    if not is_image(latent):
        raise RASError(
            f"a latent of shape {tuple(latent.shape)}.",
            "the latent of an image, (batch, channels, height, width).",
            "connect an empty latent of your usual image size.",
        )
    fingerprint(model)  # plans are saved under it: if it fails, it must fail before minutes of sampling
    task = Task.of(without_ras(model), conditionings, latent, cfg, seeds)
    plans = replace(Calibration(task).run(), source=source)
    try:
        saved = f"saved as {save_plans(plans, model, latent.shape[-2:]).name}"
    except OSError as error:  # the measurements of minutes are not lost with the file
        logger.warning("Multirate RAS: the plans are not saved (%s); connect the output plan.", error)
        saved = "not saved"
    logger.info("Multirate RAS: %s; %s.\n%s", plans.note, saved, plans.describe())
    return plans


class Calibration:
    """One calibration of one model at one latent size."""

    def __init__(self, task: Task):
        self._task = task
        self._fine = task.levels(FINE_LEVELS)
        self._cost = step_cost(task)
        self._tried = {
            speed: candidates(plain_steps(speed), self._cost) if self._cost else [] for speed in PLAN_SPEEDS
        }
        self._progress = comfy.utils.ProgressBar(self.evaluations)

    @property
    def evaluations(self) -> int:
        """Total number of steps of all runs of the calibration, for each seed."""
        regional = sum(len(shares) for tried in self._tried.values() for shares in tried)
        plain = GRIDS * sum(plain_steps(speed) for speed in self._tried)
        return block_evaluations(FINE_STEPS, BLOCKS) + REFERENCE_STEPS + plain + regional

    def run(self) -> PlanSet:
        """Do all measurements and return the plans. Plans without regional steps come first in the list, so
        that they are preferred to plans with regional steps that are equally close to the reference.
        """
        height, width = self._task.pixels
        self._origin = f"{HERE} at {width}x{height}"
        logger.info("Multirate RAS: calibration takes %d sampling steps for each seed.", self.evaluations)
        levels = self._task.levels(FINE_STEPS)
        costs = block_costs(self._task, "euler", levels, BLOCKS, self._advance)
        self._reference = self._sample("dpmpp_2m", self._task.levels(REFERENCE_STEPS))
        measured = [plan for speed in self._tried for plan in self._of_a_speed(speed, costs)]
        found = [replace(plan, sampler=sampler) for sampler in PLAN_SAMPLERS for plan in measured]
        found.sort(key=lambda plan: not plan.is_plain)
        seeds = len(self._task.noise)
        note = f"{self._origin}, {seeds} seed{'s' * (seeds > 1)}, cfg {self._task.cfg:g}"
        return PlanSet(tuple(found), note, fingerprint(self._task.model))

    def _of_a_speed(self, speed: PlanSpeed, costs: Sequence[float]) -> list[Plan]:
        """Measured plans of a speed: dense plans on all grids, regional ones on the best grid."""
        steps = plain_steps(speed)
        plain = [
            Plan(
                speed, PLAN_SAMPLERS[0], density, (1.0,) * steps,
                speedup=FULL_STEPS / steps, origin=f"{name}, {self._origin}",
            )
            for name, density in densities_to_try(costs, speed).items()
        ]  # fmt: skip
        plain = self._measured_ones(plain)
        best = max(plain, key=lambda plan: plan.closeness)
        regional = [
            replace(best, shares=shares, kv_cache=KV_CACHE, speedup=self._speedup(shares))
            for shares in self._tried[speed]
        ]
        return [*plain, *self._measured_ones(regional)]

    def _measured_ones(self, plans: Sequence[Plan]) -> list[Plan]:
        measured = (self._measured(plan) for plan in plans)
        return [plan for plan in measured if plan is not None]

    def _speedup(self, shares: tuple[float, ...]) -> float:
        return FULL_STEPS / sum(1.0 if share == 1 else self._cost(share) for share in shares)

    def _measured(self, plan: Plan) -> Plan | None:
        """The plan, with the measured closeness of the run's latents to the reference added; None if the run
        did not follow the plan.
        """
        model = self._task.model if plan.is_plain else with_plan(self._task.model, plan)
        try:
            found = self._sample(plan.solver, plan.levels(self._fine), model)
        except comfy.model_management.OOM_EXCEPTION:
            if plan.is_plain:
                raise
            found = None  # the K/V cache did not fit (plans without regional steps need no cache)
        if found is None or not (plan.is_plain or ran_as_planned(model, plan)):
            logger.info("Multirate RAS: plan not saved, as its run did not follow it: %s.", plan.describe())
            return None
        return replace(plan, closeness=round(closeness(found, self._reference), 3))

    def _sample(self, solver: Solver, levels: tuple[float, ...], model: ModelPatcher | None = None) -> Tensor:
        """The latents of a run; with ComfyUI's own sampler if it has one of this name."""
        is_ours = solver not in PLAN_SAMPLERS
        sampler = multirate_sampler(solver) if is_ours else comfy.samplers.sampler_object(solver)
        return self._task.sample(sampler, levels, model, self._advance)

    def _advance(self, step: int) -> None:
        self._progress.update(1)


def densities_to_try(costs: Sequence[float], speed: PlanSpeed) -> dict[str, tuple[float, ...]]:
    """The step densities to compare, as a dict by name. There are several, because the measured density does
    not always give the best grid.
    """
    n, first, every = FRONT_LOADED[speed]
    return {
        "measured density, half-way to even": step_density(costs, multistep=True),
        "measured density": step_density(costs, multistep=False),
        f"first {first} of {n}, then every {every}": front_loaded_density(n, first, every),
        "simple schedule": even_density(len(costs)),
    }


def step_cost(task: Task) -> RegionalCost | None:
    """The cost of a regional step as a function of its share of tokens; None if RAS does not support the
    model.
    """
    adapter = adapter_of(task.model)
    if adapter is None:
        logger.info(
            "Multirate RAS: RAS does not support this model's architecture, so only the noise levels are"
            " calibrated, without regional steps."
        )
        return None
    network = network_of(task.model.get_model_object("diffusion_model"))
    return regional_cost(network, adapter, task.noise.shape[2:], task.conds)
