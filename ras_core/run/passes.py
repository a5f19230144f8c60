"""Prepares a run for each of its passes. A pass is one call of the sampler. A run has more than one pass if a
wrapper of another pack calls the sampler more than once.
"""

from __future__ import annotations

from dataclasses import replace

from ..method.schedule import StepKind, StepPlan, decreases, plan_steps
from .state import RunState

CHANGED_STEPS = (
    "another node changed the number of steps from {} to {}, but the plan of the chosen speed was made for "
    "the number before the change"
)
OTHER_LEVELS = (
    "; the result may have another noise level than without RAS, as the plan's levels replaced the sampler's "
    "(which speed custom keeps)"
)
NOT_DECREASING = "the noise schedule is not strictly decreasing"


class Passes:
    """Prepares a run's state for each pass.

    Most runs have one pass, over the noise levels that the run was given. A wrapper of another pack may
    change the noise levels, or call the sampler again. The steps of a further pass are planned like those of
    the first pass, and their numbers continue those of the pass before.

    Attributes:
        has_plan_levels: whether a plan's noise levels have replaced those of the sampler node.
    """

    def __init__(self, run: RunState):
        self.has_plan_levels = False
        self._run = run
        self._begun = 0

    def begin(self, sigmas: list[float]) -> None:
        """Prepare the run for a pass with these noise levels, one more than the pass has steps."""
        run, self._begun = self._run, self._begun + 1
        if self._begun == 1 and sigmas == run.sigmas:
            return
        done = () if self._begun == 1 else run.plan
        planned = len(run.sigmas) - 1
        run.follow(sigmas, len(done))
        steps = self._plan(len(sigmas) - 1, planned)
        run.plan = done + tuple(replace(step, index=len(done) + step.index) for step in steps)
        # Memory for the K/V cache was only planned if the run had regional steps from the beginning. So a run
        # without regional steps does not get any in a later pass.
        run.any_regional = run.any_regional and any(step.kind is StepKind.REGIONAL for step in run.plan)
        run.kv.drop(tuple(run.cached_output))
        run.cached_output.clear()
        run.active_idx = None
        if not run.is_dense and not decreases(sigmas):
            run.go_dense(NOT_DECREASING)

    def _plan(self, n_steps: int, planned: int) -> tuple[StepPlan, ...]:
        run = self._run
        if run.config.shares and n_steps != planned:
            if not run.is_dense:
                more = OTHER_LEVELS if self.has_plan_levels else ""
                run.go_dense(CHANGED_STEPS.format(planned, n_steps) + more)
            return tuple(StepPlan(step, StepKind.DENSE) for step in range(n_steps))
        return plan_steps(n_steps, run.config)
