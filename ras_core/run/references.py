"""Notices that reference images, or the weights that process them, have changed during a run.

Regional calls do not process the rows of reference images: their keys and values are those of the last dense
call. If something that they depend on has changed since then, the next call must be dense.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..kv.store import Branch
from ..method.editing import uses_outdated
from ..method.schedule import StepKind, StepPlan
from .call import Call

CHANGED = (
    "reference images, or the strength of a LoRA, changed during the run; the rows of reference images were "
    "computed again"
)

DENSE_ONLY = "reference images were computed in dense steps only"

OUTDATED = (
    "reference images were computed in dense steps only, so successive regional steps used outdated ones, "
    "which costs quality; with a speed other than custom, there are no such steps"
)
"""Said with speed custom: plans for runs with reference images have no successive regional steps."""

State = tuple[Hashable, list[Tensor]]


def remark_on(plan: Sequence[StepPlan]) -> str:
    """What to say of a run with reference images and these steps."""
    return OUTDATED if uses_outdated([step.kind is StepKind.REGIONAL for step in plan]) else DENSE_ONLY


class References:
    """The reference images of each branch in its last dense call."""

    def __init__(self) -> None:
        self._known: dict[Branch, State] = {}

    def keep(self, call: Call, n_rows: int) -> None:
        """Remember the reference images of a dense call, which have `n_rows` rows in all."""
        for branch in call.branches:
            self._known.pop(branch, None)
        if n_rows:
            for branch, (settings, images) in _states(call).items():
                self._known[branch] = settings, [image.clone() for image in images]

    def have_changed(self, call: Call, n_rows: int) -> bool:
        """Whether a call's reference images, which have `n_rows` rows in all, differ from those of the last
        dense calls. If there are reference images, the CPU waits for the device.
        """
        if not n_rows:
            return any(branch in self._known for branch in call.branches)
        return any(not _are_same(self._known.get(branch), now) for branch, now in _states(call).items())


def _states(call: Call) -> dict[Branch, State]:
    """By branch: settings that can be compared with ==, and the reference images."""
    settings, images = call.forward.references
    n = len(call.branches)
    parts = [image.chunk(n) if len(image) % n == 0 else (image,) * n for image in images]
    return {branch: (settings, [part[i] for part in parts]) for i, branch in enumerate(call.branches)}


def _are_same(known: State | None, now: State) -> bool:
    if known is None:
        return False
    (settings, images), (settings_now, images_now) = known, now
    is_alike = settings == settings_now and _traits(images) == _traits(images_now)
    return is_alike and all(map(torch.equal, images, images_now))


def _traits(images: list[Tensor]) -> list[tuple]:
    """What must be the same for `torch.equal`, which raises an error for other dtypes or devices."""
    return [(image.shape, image.dtype, image.device) for image in images]
