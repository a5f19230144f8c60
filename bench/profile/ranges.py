"""Names for RAS's own work in a profile, put around its functions from outside: normal runs pay nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch.profiler import record_function

from ...ras_core.graphs.session import NetworkGraphs
from ...ras_core.method.selector import ChangeSelector, PaperSelector
from ...ras_core.run import sampler
from ...ras_core.run.network_calls import RunHooks
from ...ras_core.run.partial_forward import NetworkCall
from ...ras_core.run.state import RunState
from ..common.timing import Clock
from .trace_shares import EVALUATION, PREFIX

RANGES: tuple[tuple[Any, str, str], ...] = (
    *((of, name, "selection") for of in (ChangeSelector, PaperSelector) for name in ("observe", "select")),
    (RunState, "begin_evaluation", "bookkeeping"),
    (RunState, "end_evaluation", "bookkeeping"),
    (NetworkCall, "_with_cache", "keys and values"),
    (NetworkCall, "_gather_hidden", "gather and scatter"),
    (NetworkCall, "_gather_positions", "gather and scatter"),
    (NetworkCall, "_after_final", "gather and scatter"),
    (RunHooks, "_merge", "cached output"),
    (RunHooks, "_keep_output", "cached output"),
    (sampler, "multirate_step", "integrator"),
    (sampler, "fresh_pixels", "integrator"),
    (NetworkGraphs, "prepare", "recorded calls"),
    (NetworkGraphs, "lend", "recorded calls"),
)


class MarkingClock(Clock):
    """A clock whose marks stand in the profile too."""

    def mark(self) -> None:
        with record_function(EVALUATION):
            super().mark()


@contextmanager
def named_ranges() -> Iterator[None]:
    """RANGES and the hooks' own work are named inside."""
    before = {(of, name): getattr(of, name) for of, name, _ in RANGES}
    before |= {(NetworkCall, name): getattr(NetworkCall, name) for name in ("placed", "_before_block")}
    try:
        for of, name, label in RANGES:
            setattr(of, name, _named(before[of, name], label))
        NetworkCall.placed = _placed_in_range(before[NetworkCall, "placed"])
        NetworkCall._before_block = _hooks_in_range(before[NetworkCall, "_before_block"])
        yield
    finally:
        for (of, name), original in before.items():
            setattr(of, name, original)


def _named(function: Callable, label: str) -> Callable:
    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        # A recording is replayed without its Python, and needs no ranges while it is made.
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return function(*args, **kwargs)
        with record_function(PREFIX + label):
            return function(*args, **kwargs)

    return inside


def _hooks_in_range(before_block: Callable) -> Callable:
    @wraps(before_block)
    def inside(*args: Any) -> Callable:
        return _named(before_block(*args), "hooks")

    return inside


def _placed_in_range(placed: Callable) -> Callable:
    """Placing hooks and taking them away, without what runs between."""

    @contextmanager
    def inside(call: NetworkCall) -> Iterator[None]:
        context = placed(call)
        _named(context.__enter__, "hooks")()
        try:
            yield
        except BaseException as error:
            if not context.__exit__(type(error), error, error.__traceback__):
                raise
        else:
            _named(context.__exit__, "hooks")(None, None, None)

    return inside
