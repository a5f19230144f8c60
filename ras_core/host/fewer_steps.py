"""The strongest alternative to a run with RAS: a run without RAS that costs the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .known_levels import steps_of_whole
from .outer_sample import OuterSample, RunSettings, is_inpainting
from .plans import planned_sigmas, plans_for
from .speed import Speed


@dataclass(frozen=True)
class FewerSteps(Speed):
    """The settings of a run without RAS in fewer steps. It has the noise levels and the solver of the best
    plan without regional steps for a speed. It is compared with a run with the settings `Speed`, in which the
    noise levels of a plan replaced the sampler's own.

    Attributes:
        steps: number of steps of the run.
    """

    steps: int = 1

    def of_run(self, given: OuterSample, guider: Any) -> RunSettings:
        """The settings of the run that is about to start. `given` holds the arguments of the run with RAS."""
        if is_inpainting(given, guider):
            return super().of_run(given, guider)  # it has no regional steps
        plans = self.plans or plans_for(guider.model_patcher, given.noise.shape[-2:])
        # A solver other than that of the sampler can be chosen too, so plans for any sampler count.
        plan = plans.plain(self.speed)
        plan = replace(plan, shares=(1.0,) * self.steps, full_steps=given.steps)
        model = guider.model_patcher
        whole_steps = steps_of_whole(model, given.sigmas.tolist())
        return self._by_plan(plan, planned_sigmas(plan, given.sigmas, model), given, model, whole_steps)
