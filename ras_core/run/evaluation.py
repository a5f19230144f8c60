"""The state of one guided evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..kv.store import Branch
from ..method.schedule import StepPlan
from .timing import Timestamp


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
