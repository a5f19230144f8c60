"""Measures which noise levels need the most steps, tries plans for each speed, and saves the plans.

The work in order:

1. Measure the error of one long Euler step over each twelfth of a fine schedule. The larger the error in a
   twelfth, the larger the share of a run's steps in it. These shares are the measured density.
2. Compute reference latents with many steps of dpmpp_2m.
3. Sample with dense steps on several grids of noise levels, and choose one for all speeds. The grids are
   those of the measured density, of the density that was measured on the family, of means of both, and of a
   mean of the measured density and the even density (the same share in each twelfth).
4. For each speed, sample with dense steps on the `simple` schedule.
5. For each speed, sample runs with regional steps on the chosen grid: with the token shares of the family's
   plan, and with others. Each run has as many FLOPs as the dense run of the speed. A plan is chosen instead
   of the expected one only if every image gains enough: one image may be 4 dB closer by chance.

For SD3, these are about 615 steps for each seed. The following estimate is for SD3-medium at 1024 px with two
seeds. It assumes that a dense step of one image with the positive and the negative prompt takes 64 ms, as
measured on an H100 (another measurement gave 58 ms, see conditionings.py), that regional steps take as long,
and that other work adds a tenth. Then a calibration takes 615 x 2 x 1.1 x 64 ms = 87 s.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import comfy.model_management
import comfy.samplers
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import RASError
from ..method.calibrating import GRID_SPEEDS, best_grid, densities_to_try, expected_shares, shares_to_try
from ..method.integrator import Solver
from ..method.plan import FULL_STEPS, PLAN_SAMPLERS, PLAN_SPEEDS, Plan, PlanSpeed, plain_steps
from ..method.plan_set import HERE, MARGIN, PlanSet
from ..method.regional_cost import RegionalCost
from ..method.sigma_grid import even_density
from ..method.small_images import is_small
from ..models import network_of
from .fingerprint import fingerprint
from .measured_runs import Task, block_costs, block_evaluations, closeness
from .outer_sample import is_image
from .plan_files import save_plans
from .planned_model import n_tokens_of, ran_as_planned, regional_cost, with_plan, without_ras
from .plans import FINE_LEVELS, adapter_of, family_of
from .samplers import multirate_sampler

logger = logging.getLogger(__name__)

FINE_STEPS = 24
BLOCKS = 12
REFERENCE_STEPS = 72

SIMPLE = "simple schedule"
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
        self._family = family_of(task.model)
        self._tried = {speed: self._shares_to_try(speed) for speed in PLAN_SPEEDS}
        self._of_images: dict[Plan, tuple[float, ...]] = {}  # by measured plan: closeness of each image, dB
        self._grid_speeds = [speed for speed in GRID_SPEEDS if speed in PLAN_SPEEDS]
        self._progress = comfy.utils.ProgressBar(self.evaluations)

    @property
    def evaluations(self) -> int:
        """Total number of steps of all runs of the calibration, for each seed."""
        grids = len(densities_to_try((1.0,) * BLOCKS, self._family))
        plain = sum(
            plain_steps(speed) * (grids if speed in self._grid_speeds else 1) for speed in self._tried
        )
        simple = sum(map(plain_steps, self._tried))
        regional = sum(len(shares) for tried in self._tried.values() for shares in tried)
        return block_evaluations(FINE_STEPS, BLOCKS) + REFERENCE_STEPS + plain + simple + regional

    def run(self) -> PlanSet:
        """Do all measurements and return the plans. The first plan of each speed is the expected one."""
        height, width = self._task.pixels
        self._origin = f"{HERE} at {width}x{height}"
        logger.info("Multirate RAS: calibration takes %d sampling steps for each seed.", self.evaluations)
        levels = self._task.levels(FINE_STEPS)
        costs = block_costs(self._task, "euler", levels, BLOCKS, self._advance)
        self._reference = self._sample("dpmpp_2m", self._task.levels(REFERENCE_STEPS))
        measured = self._measured_plans(costs)
        found = [replace(plan, sampler=sampler) for sampler in PLAN_SAMPLERS for plan in measured]
        seeds = len(self._task.noise)
        note = f"{self._origin}, {seeds} seed{'s' * (seeds > 1)}, cfg {self._task.cfg:g}"
        return PlanSet(tuple(found), note, fingerprint(self._task.model))

    def _measured_plans(self, costs: Sequence[float]) -> list[Plan]:
        """The measured plans of all speeds, for one sampler."""
        densities, measured = densities_to_try(costs, self._family), []
        on_grids = {
            name: {speed: self._plain(speed, name, density) for speed in self._grid_speeds}
            for name, density in densities.items()
        }
        closeness = {name: [plan.closeness for plan in found.values()] for name, found in on_grids.items()}
        name = best_grid(closeness)
        for speed in self._tried:
            best = on_grids[name].get(speed) or self._plain(speed, name, densities[name])
            simple = self._plain(speed, SIMPLE, even_density(len(costs)))
            others = [found[speed] for other, found in on_grids.items() if other != name and speed in found]
            expected, *tried = [*self._in_order(best, self._regional(best)), simple, *others]
            measured += [expected, *(self._cautious(plan, expected) for plan in tried)]
        return measured

    def _shares_to_try(self, speed: PlanSpeed) -> list[tuple[float, ...]]:
        return [] if self._cost is None else shares_to_try(speed, self._family, self._cost)

    def _plain(self, speed: PlanSpeed, name: str, density: tuple[float, ...]) -> Plan:
        """The measured plan of a speed with dense steps only, on the grid of a density."""
        steps = plain_steps(speed)
        return self._measured(
            Plan(
                speed, PLAN_SAMPLERS[0], density, (1.0,) * steps,
                speedup=FULL_STEPS / steps, origin=f"{name}, {self._origin}",
            )
        )  # fmt: skip

    def _regional(self, best: Plan) -> list[Plan]:
        """The measured plans of a speed with regional steps, on the grid of its best plain plan."""
        plans = [
            replace(best, shares=shares, kv_cache=KV_CACHE, speedup=self._speedup(shares))
            for shares in self._tried[best.speed]
        ]
        return self._measured_ones(plans)

    def _in_order(self, plain: Plan, regional: list[Plan]) -> list[Plan]:
        """The plans of a speed on the best grid, the expected one first: that with the shares of the family's
        plan, or the plain one if the family's plan is plain or the image is small.
        """
        shares = None
        if self._cost and not is_small(n_tokens_of(self._task.model, self._task.noise.shape[2:])):
            shares = expected_shares(plain.speed, self._family, self._cost)
        expected = [plan for plan in regional if plan.shares == shares]
        return [*expected, plain, *(plan for plan in regional if plan.shares != shares)]

    def _cautious(self, plan: Plan, expected: Plan) -> Plan:
        """The plan. If not every image gains more than MARGIN over the expected plan, the closeness of the
        plan is limited so that `PlanSet.best` does not choose it.
        """
        pairs = zip(self._of_images[plan], self._of_images[expected], strict=True)
        if min(own - other for own, other in pairs) > MARGIN:
            return plan
        return replace(plan, closeness=min(plan.closeness, round(expected.closeness + MARGIN, 3)))

    def _measured_ones(self, plans: Sequence[Plan]) -> list[Plan]:
        measured = (self._measured(plan) for plan in plans)
        return [plan for plan in measured if plan is not None]

    def _speedup(self, shares: tuple[float, ...]) -> float:
        return FULL_STEPS / sum(1.0 if share == 1 else self._cost(share) for share in shares)

    def _measured(self, plan: Plan) -> Plan | None:
        """The plan, with the measured closeness of its run; None if the run did not follow the plan."""
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
        of_images = closeness(found, self._reference)
        measured = replace(plan, closeness=round(fmean(of_images), 3))
        self._of_images[measured] = of_images
        return measured

    def _sample(self, solver: Solver, levels: tuple[float, ...], model: ModelPatcher | None = None) -> Tensor:
        """The latents of a run; with ComfyUI's own sampler if it has one of this name."""
        is_ours = solver not in PLAN_SAMPLERS
        sampler = multirate_sampler(solver) if is_ours else comfy.samplers.sampler_object(solver)
        return self._task.sample(sampler, levels, model, self._advance)

    def _advance(self, step: int) -> None:
        self._progress.update(1)


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
