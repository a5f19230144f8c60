"""The state of one guided evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..kv.store import Branch
from ..method.schedule import StepPlan
from .timing import Timestamp

ANSWERED = (
    "another node answered evaluations without the network, as step caches do; they count neither as dense "
    "nor as regional"
)

MISLED = (
    "a step cache that compares results may answer more evaluations than without RAS, because regions that "
    "RAS skips do not change"
)

ODD_RESULT = "the guider's results are not estimates of the whole latent, so that regions cannot be compared"


@dataclass
class EvaluationState:
    """The state of one evaluation: its step's plan, its active tokens, and the branches called in it.

    Attributes:
        plan: plan of the step that the evaluation belongs to.
        active_idx: active tokens, (b, n_active), of a regional evaluation; None for a dense one.
        started: when it started.
        fill_cache: whether dense calls of this evaluation keep their K/V.
        ran_regional: whether at least one call of the evaluation processed active tokens only.
        seen: branches called so far.
    """

    plan: StepPlan
    active_idx: Tensor | None
    fill_cache: bool
    started: Timestamp
    ran_regional: bool = False
    seen: set[Branch] = field(default_factory=set)
    _calls: dict[object, int] = field(default_factory=dict)

    def branches(self, uuids: list, variant: object) -> tuple[Branch, ...]:
        """Names of the branches of a call, one for each conditioning that the call evaluates.

        Args:
            uuids: ids of the conditionings that the call evaluates.
            variant: the network, and which of its blocks are replaced. Guidance may evaluate a conditioning a
                second time with blocks skipped (skip-layer guidance), and this second call needs a K/V cache
                of its own.
        """
        named = []
        for uuid in uuids:
            ordinal = self._calls.get((uuid, variant), 0)
            self._calls[uuid, variant] = ordinal + 1
            named.append((uuid, variant, ordinal))
        self.seen.update(named)
        return tuple(named)


def estimate_in(result: object, batch: int, size: tuple[int, ...]) -> Tensor | None:
    """The denoised estimate (b, c, *size) in what a guider returned: the result itself or, if it is several
    estimates, the first; None if there is none.
    """
    for each in result if isinstance(result, (tuple, list)) else (result,):
        if isinstance(each, Tensor) and len(each) == batch and each.shape[2:] == size:
            return each
    return None
