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

RANGES: tuple[tuple[Any, Callable, str], ...] = (
    *((each, each.observe, "selection") for each in (ChangeSelector, PaperSelector)),
    *((each, each.select, "selection") for each in (ChangeSelector, PaperSelector)),
    (RunState, RunState.begin_evaluation, "bookkeeping"),
    (RunState, RunState.end_evaluation, "bookkeeping"),
    (NetworkCall, NetworkCall._with_cache, "keys and values"),
    (NetworkCall, NetworkCall._gather_hidden, "gather and scatter"),
    (NetworkCall, NetworkCall._gather_positions, "gather and scatter"),
    (NetworkCall, NetworkCall._after_final, "gather and scatter"),
    (RunHooks, RunHooks._merge, "cached output"),
    (RunHooks, RunHooks._keep_output, "cached output"),
    (sampler, sampler.multirate_step, "integrator"),
    (sampler, sampler.fresh_pixels, "integrator"),
    (NetworkGraphs, NetworkGraphs.prepare, "captured calls"),
    (NetworkGraphs, NetworkGraphs.lend, "captured calls"),
)
"""A class or module, a function of its own, and the name of the range. They are named as attributes, not as
strings: one that is renamed fails when this module is imported, which a test does.
"""

SPECIAL: tuple[tuple[Any, Callable], ...] = (
    (NetworkCall, NetworkCall.placed),
    (NetworkCall, NetworkCall._before_block),
)
"""Functions that are wrapped in ways of their own."""


class MarkingClock(Clock):
    """A clock whose marks stand in the profile too."""

    def mark(self) -> None:
        with record_function(EVALUATION):
            super().mark()


@contextmanager
def named_ranges() -> Iterator[None]:
    """RANGES and the hooks' own work are named inside."""
    before = {(of, function.__name__): function for of, function, *_ in (*RANGES, *SPECIAL)}
    try:
        for of, function, label in RANGES:
            setattr(of, function.__name__, _named(function, label))
        NetworkCall.placed = _placed_in_range(NetworkCall.placed)
        NetworkCall._before_block = _hooks_in_range(NetworkCall._before_block)
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
