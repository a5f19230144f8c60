"""Derives a run's settings from the speed that the user chose: its plan, and the noise levels of this plan.

A plan has its own grid of noise levels, which replaces the sampler's noise levels except the first and the
last. As these two are kept, noise scaling, denoise below 1 and runs over a part of a schedule work as usual.
If the sampler's noise levels cannot be replaced, the run keeps all of them, and only regional steps provide
the speed-up. RAS stays out of a run that has only few steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..config import Graphs, RASConfig
from ..kv import forecast
from ..kv.formats import AUTO
from ..method.family_plans import even_steps_below
from ..method.few_steps import (
    AT_LEAST,
    FEW_STEPS_PLAN,
    LEAST_STEPS,
    NO_ROOM,
    SOLVER_OF_FEW,
    STAYS_OUT,
    has_room,
    is_few,
)
from ..method.plan import Plan, described
from ..method.plan_candidates import reached_speed, shares_of_steps
from ..method.plan_fitting import fitted_plan, fitted_to_levels
from ..method.plan_set import ELSEWHERE, PlanSet
from ..method.regional_cost import leaves_out_references
from ..method.schedule import decreases
from ..method.small_images import SMALL_IMAGE_PLAN, is_small
from ..run.trace import INPAINTING_PLAN
from .known_levels import (
    are_custom,
    begins_with_noise,
    full_steps_of_grid,
    have_few_steps,
    plan_of_grid,
    steps_of_whole,
)
from .outer_sample import OuterSample, RunSettings, is_inpainting
from .plan_files import saved_plans
from .planned_model import n_tokens_of, settings_of, shares_computed
from .plans import OTHER_MODEL, connected_plans, family_of, planned_sigmas, plans_for, plans_of_family
from .run_facts import cost_of, obstacle
from .samplers import plan_sampler, plan_solver

LEVELS_STAY = "the noise levels are kept: {}"
NOT_DECREASING = "they are not strictly decreasing"
TOO_CLOSE = "they are too close to each other"
REPLACED = "the plan's noise levels replace those that another node made"
MEASURED_GRID, EVEN_GRID = "the measured grid", "an even grid"

NEAR = 0.05
"""A speed counts as reached if the expected speed-up differs from it by at most this fraction."""


@dataclass(frozen=True)
class Speed:
    """The settings of a RAS node on which the user chose a speed: each run follows a plan of this speed.

    Attributes:
        speed: one of PLAN_SPEEDS.
        plans: the plans to choose from; None to use the plans that are saved for the model and latent size of
            a run, or the plans of the model's family if none are saved.
        cuda_graphs: as in RASConfig; plans do not contain this setting.
    """

    speed: str
    plans: PlanSet | None = None
    cuda_graphs: Graphs = "auto"

    def of_run(self, given: OuterSample, guider: Any) -> RunSettings:
        """The settings and noise levels of the run that is about to start, from the plan of its speed.

        Raises:
            RASError: `plans` has no plan for this speed and sampler.
        """
        model = guider.model_patcher
        if not decreases(given.sigmas.tolist()):
            return self._dense(given, NOT_DECREASING)
        if self._has_few_steps(given, model):
            return self._without_ras(given)
        if is_inpainting(given, guider):
            return self._inpainting(given, guider)
        if reason := obstacle(given, guider):
            return self._by_shares(given, guider, reason)
        measured = self._connected(model) or saved_plans(model, given.noise.shape[-2:])
        plans = measured or plans_of_family(model)
        best = plans.best(self.speed, plan_sampler(given.sampler))
        cost, is_measured = cost_of(given, guider), measured is not None
        if (made_by := plan_of_grid(plans, self.speed, model, given.sigmas.tolist())) is not None:
            full_steps = given.steps * best.full_steps / best.steps  # not rounded, unlike that of the plan
            plan, budget = best.on_grid(given.steps), full_steps / self._factor
            whole_steps = full_steps_of_grid(best, model, given.sigmas.tolist())
            if has_room(whole_steps, self.speed):
                plan = fitted_to_levels(plan, best, budget, cost, is_measured)
            else:
                plan = replace(plan, shares=(1.0,) * plan.steps)
            asked = made_by.on_grid(given.steps).full_steps
            return replace(self._by_plan(plan, given.sigmas, given, model, whole_steps), full_steps=asked)
        whole_steps = steps_of_whole(model, given.sigmas.tolist())
        keeps_plan = is_measured or best.is_plain or leaves_out_references(cost)
        is_too_small = not keeps_plan and is_small(n_tokens_of(model, given.noise.shape[2:]))
        all_dense = self._why_all_dense(whole_steps, is_too_small)
        choose = plans.plain_for_run if all_dense else plans.for_run
        best = choose(self.speed, plan_sampler(given.sampler), whole_steps)
        plan = best.resized(given.steps)
        if not all_dense:
            plan = fitted_plan(plan, best, given.steps / self._factor, cost, is_measured)
            plan = (plan or plans.plain(self.speed, best.sampler)).resized(given.steps)
        wanted = planned_sigmas(plan, given.sigmas, model)
        if not decreases(wanted.tolist()):
            return self._by_shares(given, guider, TOO_CLOSE)
        remark = REPLACED if are_custom(model, given.sigmas.tolist()) else ""
        settings = self._by_plan(plan, wanted, given, model, whole_steps, remark)
        said = settings.plan if all_dense is None else f"{settings.plan}{all_dense}"
        return replace(settings, plan=said, shortfall=self._bound(whole_steps))

    def _why_all_dense(self, whole_steps: float, is_too_small: bool) -> str | None:
        """How the text of a plan says why the run has no regional steps; None if it may have some."""
        if not has_room(whole_steps, self.speed):
            return FEW_STEPS_PLAN
        return SMALL_IMAGE_PLAN if is_too_small else None

    def _bound(self, whole_steps: float) -> str:
        """Why a run of so few steps, counted for the whole schedule, does not reach the speed; else empty."""
        return AT_LEAST if whole_steps / LEAST_STEPS < self._factor * (1 - NEAR) else ""

    def _has_few_steps(self, given: OuterSample, model: ModelPatcher) -> bool:
        """Whether the run has few steps. RAS Scheduler makes a plan's noise levels only for more steps."""
        levels = given.sigmas.tolist()
        if not have_few_steps(model, levels):
            return False
        plans = self.plans or plans_for(model, given.noise.shape[-2:])
        plan = plans.best(self.speed, plan_sampler(given.sampler))
        if is_few(plan.on_grid(given.steps).full_steps):  # parts of the `simple` schedule resemble even grids
            plans = PlanSet(tuple(each for each in plans.plans if not each.has_even_grid))
        return plan_of_grid(plans, self.speed, model, levels) is None

    def _without_ras(self, given: OuterSample) -> RunSettings:
        """The settings of a run in which RAS changes nothing."""
        said = described(self.speed, (1.0,) * given.steps, given.steps)
        return RunSettings(RASConfig(sample_ratio=1.0), given.sigmas, said, STAYS_OUT, shortfall=STAYS_OUT)

    def _connected(self, model: ModelPatcher) -> PlanSet | None:
        return None if self.plans is None else connected_plans(self.plans, model)

    def _inpainting(self, given: OuterSample, guider: Any) -> RunSettings:
        """As many dense steps as the speed allows, at the noise levels of a plan if they can be replaced."""
        if reason := obstacle(given, guider):
            return self._dense(given, reason)
        model = guider.model_patcher
        plans = self._connected(model) or plans_for(model, given.noise.shape[-2:])
        sampler = plan_sampler(given.sampler)
        sigmas, whole_steps = given.sigmas, steps_of_whole(model, given.sigmas.tolist())
        plan = plans.plain_for_run(self.speed, sampler, whole_steps).resized(given.steps)
        inside = float((given.denoise_mask > 0).float().mean())
        if inside < even_steps_below(family_of(model)) and begins_with_noise(model, sigmas.tolist()):
            plan = replace(plan, density=(1.0,), origin="evenly spaced steps, as the mask is small")
        shortfall = self._bound(whole_steps)
        if plan_of_grid(plans, self.speed, model, sigmas.tolist()) is not None:
            best, shortfall = plans.best(self.speed, sampler), ""
            plan = replace(best.on_grid(given.steps), shares=(1.0,) * given.steps)
            whole_steps = full_steps_of_grid(best, model, sigmas.tolist())
        elif not decreases((sigmas := planned_sigmas(plan, given.sigmas, model)).tolist()):
            return self._dense(given, TOO_CLOSE)
        settings = self._by_plan(plan, sigmas, given, model, whole_steps)
        return replace(settings, plan=f"{settings.plan}{INPAINTING_PLAN}", shortfall=shortfall)

    @property
    def _factor(self) -> float:
        return float(self.speed.removesuffix("x"))

    def _by_plan(
        self, plan: Plan, sigmas: Tensor, given: OuterSample, model: ModelPatcher, whole_steps: float,
        remark: str = "",
    ) -> RunSettings:  # fmt: skip
        config = replace(settings_of(plan), cuda_graphs=self.cuda_graphs)
        if config.kv_cache == forecast.FORMAT.name:
            # The user did not choose the format `forecast`, and less memory may be free than at calibration.
            # "auto" chooses `forecast` if there is enough memory, and otherwise a format that needs less.
            config = replace(config, kv_cache=AUTO)
        sampler = given.sampler
        solver = plan_solver(sampler, plan.solver if has_room(whole_steps, self.speed) else SOLVER_OF_FEW)
        # A plan for another sampler can be the best plain one; the run keeps the sampler's name all the same,
        # since only the plan's noise levels and its solver count.
        name = plan_sampler(sampler) or plan.sampler
        taken = name if solver in (None, name) else f"{solver} in place of {name}"
        levels = EVEN_GRID if plan.has_even_grid else MEASURED_GRID
        return RunSettings(
            config, sigmas, _told(plan, given, model), f"sampler {taken}, {plan.origin}", solver,
            remark=OTHER_MODEL if ELSEWHERE in plan.origin else remark,
            levels=levels, full_steps=plan.full_steps,
        )  # fmt: skip

    def _dense(self, given: OuterSample, reason: str) -> RunSettings:
        """The settings of a dense run with the sampler's own noise levels. These settings allow regional
        steps, but `begin_run` detects the same obstacle, makes the run dense and logs the reason.
        """
        said = described(self.speed, (1.0,) * given.steps, given.steps)
        return RunSettings(RASConfig(start_step=0), given.sigmas, said, LEVELS_STAY.format(reason))

    def _by_shares(self, given: OuterSample, guider: Any, reason: str) -> RunSettings:
        """The settings of a run that keeps the sampler's own noise levels, so that only regional steps can
        make it faster. These compute shares of tokens with which the run comes closest to the speed.
        """
        cost = cost_of(given, guider)
        wanted = self._factor
        if not has_room(steps_of_whole(guider.model_patcher, given.sigmas.tolist()), self.speed):
            settings = self._without_ras(given)
            return replace(settings, origin=NO_ROOM, shortfall=NO_ROOM)
        shares = shares_of_steps(given.steps, wanted, cost)
        origin, reached = LEVELS_STAY.format(reason), reached_speed(shares, cost)
        shortfall = f"{reached:.2f}x is all that {given.steps} steps can reach"
        shortfall = f"{shortfall}, because {origin}" if abs(reached / wanted - 1) > NEAR else ""
        config = RASConfig(shares=shares, corrections=True, cuda_graphs=self.cuda_graphs)
        computed = shares_computed(shares, guider.model_patcher, given.noise.shape[2:])
        said = described(self.speed, computed, given.steps)
        return RunSettings(config, given.sigmas, said, shortfall or origin, shortfall=shortfall)


def _told(plan: Plan, given: OuterSample, model: ModelPatcher) -> str:
    """The line about a plan, with the share of tokens that its run computes."""
    computed = shares_computed(plan.shares, model, given.noise.shape[2:])
    return described(plan.speed, computed, plan.full_steps)
