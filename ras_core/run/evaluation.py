"""The state of one guided evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..kv.store import Branch
from ..method.schedule import StepPlan


@dataclass
class EvaluationState:
    """One evaluation: its plan, and how often each branch was called in it.

    Attributes:
        plan: the step it belongs to.
        active_idx: (b, n_active) for a regional evaluation, None for a dense one.
        fill_cache: whether dense calls keep their K/V.
        ran_regional: at least one call processed active tokens only.
        seen: branches called so far.
    """

    plan: StepPlan
    active_idx: Tensor | None
    fill_cache: bool
    ran_regional: bool = False
    seen: set[Branch] = field(default_factory=set)
    _calls: dict[object, int] = field(default_factory=dict)

    def branches(self, uuids: list, variant: object) -> tuple[Branch, ...]:
        """The branches of a call.

        Args:
            uuids: ids of its conditionings.
            variant: which blocks are replaced. Guidance may evaluate a conditioning a second time with blocks
                skipped (skip-layer guidance), and that pass needs a cache of its own.
        """
        named = []
        for uuid in uuids:
            ordinal = self._calls.get((uuid, variant), 0)
            self._calls[uuid, variant] = ordinal + 1
            named.append((uuid, variant, ordinal))
        self.seen.update(named)
        return tuple(named)
