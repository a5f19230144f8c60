"""Plants a scenario's fault in its runs: an exception at some call, an interrupt, a memory error, or NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import comfy.model_management
import torch
from ras_pack.ras_core.kv import update as kv
from support.tape import AgainTape, BrokenTape, FrozenTape
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from .scenario import Scenario


class PlantedError(RuntimeError):
    """An exception that only the soak raises."""


class FailingOnce(FrozenTape):
    """A frozen tape whose first capture runs the work once and then fails."""

    has_failed = False

    def once(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.has_failed:
            return super().once(work)
        self.has_failed = True
        work()
        raise PlantedError("planted after the work")


CAPTURES: dict[str, type[AgainTape]] = {"failing_capture": FailingOnce, "broken_capture": BrokenTape}
"""For each fault that makes the captures fail, the tape with this fault."""


@dataclass
class Planted:
    """A planted fault.

    Attributes:
        error: the exception that the fault raises, or None.
        at: the fault raises its exception at the occasion with this number, counted from 1.
        has_struck: whether the fault has taken effect.
        callback: the callback that the sampler must call, if the fault strikes there; otherwise None.
    """

    error: BaseException | None
    at: int
    has_struck: bool = False
    callback: Callable | None = None
    _seen: int = field(default=0, init=False)

    def strike(self, *args: Any, **kwargs: Any) -> None:
        """Count an occasion for the fault, and raise the exception if the occasion has the number `at`."""
        self._seen += 1
        if self._seen == self.at:
            self.has_struck = True
            raise self.error

    def before(self, function: Callable) -> Callable:
        """A function that calls `function`; before each call, there is an occasion for the fault."""

        def called(*args: Any, **kwargs: Any) -> Any:
            self.strike()
            return function(*args, **kwargs)

        return called


@contextmanager
def planted(scenario: Scenario) -> Iterator[Planted]:
    """Plant the scenario's fault in the runs that are made in the body of the `with`."""
    kind = scenario.fault
    fault = Planted(_error(kind), scenario.at)
    with ExitStack() as stack:
        if kind in ("callback", "interrupt"):
            fault.callback = fault.strike
        elif kind.startswith("module"):
            stack.callback(register_module_forward_pre_hook(fault.strike).remove)
        elif kind.endswith("_memory"):
            name = kind.removesuffix("_memory")
            stack.enter_context(mock.patch.object(kv, name, fault.before(getattr(kv, name))))
        else:
            fault.has_struck = True
        yield fault


def spoiled(noise: Tensor, scenario: Scenario) -> Tensor:
    """The noise itself, or a copy with one NaN in it if the scenario's fault is "nan"."""
    if scenario.fault != "nan":
        return noise
    noise = noise.clone()
    noise.view(-1)[scenario.at % noise.numel()] = torch.nan
    return noise


def is_interrupt(error: BaseException | None) -> bool:
    return isinstance(error, comfy.model_management.InterruptProcessingException)


def _error(kind: str) -> BaseException | None:
    if kind == "nan":
        return None
    if "interrupt" in kind:
        return comfy.model_management.InterruptProcessingException()
    if kind.endswith("memory"):
        return comfy.model_management.OOM_EXCEPTION("planted")
    return PlantedError("planted")
