"""Mark RAS's own work in a profile. RAS's functions are wrapped from outside, only while a profile is taken,
so that normal runs have no overhead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch.profiler import record_function

from ...ras_core.graphs.network_graphs import NetworkGraphs
from ...ras_core.method.selector import ChangeSelector, PaperSelector
from ...ras_core.run import sampler
from ...ras_core.run.partial_forward import NetworkCall
from ...ras_core.run.state import RunState
from ..common.timing import Clock
from .trace_shares import EVALUATION, PREFIX

Function = Callable[..., Any]
Wrapped = tuple[Any, Function]
"""A class or module, and a function in it that gets wrapped."""


def _each(of: Any, *functions: Function) -> tuple[Wrapped, ...]:
    return tuple((of, function) for function in functions)


RANGES: dict[str, tuple[Wrapped, ...]] = {
    "selection": (
        *_each(ChangeSelector, ChangeSelector.observe, ChangeSelector.select),
        *_each(PaperSelector, PaperSelector.observe, PaperSelector.select),
    ),
    "bookkeeping": _each(RunState, RunState.begin_evaluation, RunState.end_evaluation),
    "keys and values": _each(NetworkCall, NetworkCall._with_cache),
    "gather and scatter": _each(
        NetworkCall, NetworkCall._gather_hidden, NetworkCall._gather_positions, NetworkCall._after_final
    ),
    "cached output": _each(RunState, RunState.merge, RunState.keep_output),
    "integrator": _each(sampler, sampler.multirate_step, sampler.fresh_pixels),
    "captured calls": _each(NetworkGraphs, NetworkGraphs.prepare, NetworkGraphs.lend),
}
"""The functions that each range marks, by the range's name. They are written as attributes, not as strings,
so that importing this module (as a test does) fails if one of them has been renamed.
"""

SPECIAL = _each(NetworkCall, NetworkCall.attached, NetworkCall._before_block)
"""Functions that get a special wrapper, which marks only the work of the hooks, not the network in
between."""


def wrapped() -> tuple[Wrapped, ...]:
    """Everything that `named_ranges` replaces."""
    return (*itertools.chain.from_iterable(RANGES.values()), *SPECIAL)


class MarkingClock(Clock):
    """A clock whose timestamps also appear in the profile."""

    def mark(self) -> None:
        with record_function(EVALUATION):
            super().mark()


@contextmanager
def named_ranges() -> Iterator[None]:
    """Inside the with statement, a profile shows named ranges: those of RANGES, and the range "hooks" for the
    work of the torch hooks through which RAS changes a network call.
    """
    try:
        for label, functions in RANGES.items():
            for of, function in functions:
                setattr(of, function.__name__, _named(function, label))
        NetworkCall.attached = _attached_in_range(NetworkCall.attached)
        NetworkCall._before_block = _hooks_in_range(NetworkCall._before_block)
        yield
    finally:
        for of, function in wrapped():
            setattr(of, function.__name__, function)


def _named(function: Callable, label: str) -> Callable:
    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        # No range during a capture: replays of the captured graph do not run this Python code.
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


def _attached_in_range(attached: Callable) -> Callable:
    """Mark the time in which hooks are attached and removed, but not the network call in between."""

    @contextmanager
    def inside(call: NetworkCall) -> Iterator[None]:
        context = attached(call)
        _named(context.__enter__, "hooks")()
        try:
            yield
        except BaseException as error:
            if not context.__exit__(type(error), error, error.__traceback__):
                raise
        else:
            _named(context.__exit__, "hooks")(None, None, None)

    return inside
