"""Observes a run without using this pack's code: its evaluations, their noise levels, and the numbers of rows
in the network. Only `traces_kept` observes this pack: which traces its runs leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import comfy.samplers
from ras_pack.ras_core.host.traces import Traces
from ras_pack.ras_core.run.trace import Trace
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

LAST = {"LuminaNextDiT": "norm_out.linear_2"}
"""By class of the network, the name of its last layer, if that is not "final_layer.linear"."""


@dataclass
class Seen:
    """One guided evaluation, as it was observed.

    Attributes:
        sigma: noise level of the evaluation.
        rows: for each call of the network's last layer in this evaluation, the first two sizes of its input:
            the batch size and the number of rows.
    """

    sigma: float
    rows: list[tuple[int, int]] = field(default_factory=list)


@contextmanager
def traces_kept() -> Iterator[list[Trace]]:
    """Yield a list, to which the trace of each run with RAS in the body of the `with` is added."""
    found: list[Trace] = []
    add = Traces.add

    def added(self: Traces, trace: Trace, latents: Iterable[Any]) -> None:
        found.append(trace)
        add(self, trace, latents)

    with mock.patch.object(Traces, "add", added):
        yield found


@contextmanager
def watched(network: nn.Module) -> Iterator[list[Seen]]:
    """Yield a list, to which each guided evaluation in the body of the `with` is added."""
    found: list[Seen] = []
    plain = comfy.samplers.CFGGuider.__call__
    last = network.get_submodule(LAST.get(type(network).__name__, "final_layer.linear"))

    def evaluated(self: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(Seen(float(timestep.flatten()[0])))
        return plain(self, x, timestep, *args, **kwargs)

    def called(module: nn.Module, args: tuple) -> None:
        if module is last and found:
            found[-1].rows.append(tuple(args[0].shape[:2]))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(comfy.samplers.CFGGuider, "__call__", evaluated))
        stack.callback(register_module_forward_pre_hook(called).remove)
        yield found
