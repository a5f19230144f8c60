"""Notices that a guider samples with a patched model that is not its own model. ComfyUI calls only the
wrappers of a guider's own model, so RAS settings on any further model have no effect.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..run.state import RunState

logger = logging.getLogger(__name__)

NO_EFFECT = (
    "a guider used this model only as a second model, where RAS settings have no effect; patch the guider's "
    "first model to sample with RAS"
)
IGNORED = "the RAS settings of the guider's second model were ignored: those of its first model apply to both"


class Presence:
    """What a patched model knows about the runs in which it takes part.

    Args:
        settings: the model's RAS settings, to compare with those of other models.

    Attributes:
        run: state of the model's current run; None if the run computes nothing with RAS.
    """

    def __init__(self, settings: Any):
        self.run: RunState | None = None
        self._settings, self._has_warned = settings, False

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """The body of the `with` is a run with this model as the guider's own model."""
        token = _SAMPLING.set((*_SAMPLING.get(), self))
        try:
            yield
        finally:
            self.run = None
            _SAMPLING.reset(token)

    def is_without_ras(self) -> bool:
        """Whether sampling starts with this model, but no run of a patched model is under way. If a run of
        another patched model is under way, its trace gets a remark if the settings differ. Both are logged
        once.
        """
        under_way = _SAMPLING.get()
        if not under_way and not self._has_warned:
            self._has_warned = True
            logger.warning("Multirate RAS: %s.", NO_EFFECT)
        if not under_way or self in under_way:
            return not under_way
        run, settings = under_way[-1].run, under_way[-1]._settings
        if run is not None and settings != self._settings and run.recorder.remark(IGNORED):
            logger.warning("Multirate RAS: %s.", IGNORED)
        return False


_SAMPLING: ContextVar[tuple[Presence, ...]] = ContextVar("multirate_ras_sampling", default=())
"""The models of the runs that are under way in this thread, the innermost last. A callback of a run may
sample with another model."""
