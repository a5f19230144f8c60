"""Notices that reference images, or the weights that process them, have changed during a run.

Regional calls do not process the rows of reference images: their keys and values are those of the last dense
call. If something that they depend on has changed since then, the next call must be dense.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from ..kv.store import Branch
from .call import Call

CHANGED = "reference images, or a LoRA that processes them, changed during the run: they were computed again"

State = tuple[Hashable, list[Tensor]]


class References:
    """The reference images of each branch in its last dense call."""

    def __init__(self) -> None:
        self._known: dict[Branch, State] = {}

    def keep(self, call: Call, n_rows: int) -> None:
        """Remember the reference images of a dense call, which have `n_rows` rows in all."""
        for branch, (settings, images) in _states(call).items():
            if n_rows:
                self._known[branch] = settings, [image.clone() for image in images]
            else:
                self._known.pop(branch, None)

    def have_changed(self, call: Call, n_rows: int) -> bool:
        """Whether a call's reference images, which have `n_rows` rows in all, differ from those of the last
        dense calls. If there are reference images, the CPU waits for the device.
        """
        if not n_rows and not self._known:
            return False
        return any(not _are_same(self._known.get(branch), now) for branch, now in _states(call).items())


def _states(call: Call) -> dict[Branch, State]:
    """By branch: settings that can be compared with ==, and the reference images."""
    settings, images = call.forward.references
    n = len(call.branches)
    parts = [image.chunk(n) if len(image) % n == 0 else (image,) * n for image in images]
    return {branch: (settings, [part[i] for part in parts]) for i, branch in enumerate(call.branches)}


def _are_same(known: State | None, now: State) -> bool:
    if known is None:
        return not now[1]
    (settings, images), (settings_now, images_now) = known, now
    return (
        settings == settings_now
        and len(images) == len(images_now)
        and all(map(torch.equal, images, images_now))
    )
