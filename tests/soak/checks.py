"""Functions that check the invariants. Each returns a list of sentences that say what is wrong; the list is
empty if nothing is wrong.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import ras_pack.ras_core
import torch
from ras_pack.ras_core.kv.plain import KVRows
from ras_pack.ras_core.kv.store import KVStore
from ras_pack.ras_core.method.schedule import StepKind
from ras_pack.ras_core.run.state import RunState
from ras_pack.ras_core.run.trace import Trace
from torch import Tensor, nn

from .outside import Seen

CLOSE = 2e-3
"""Largest relative distance between the latents of two runs in float32 that count as equal up to rounding. A
larger distance is possible if rounding changes which tokens are selected, but this is rare."""

APART = "relative distance"
"""Every failure about the values of a latent contains these words, and `summary` recognises such failures by
them."""

LONGEST_NOTE = 300
"""Largest number of characters of a note in a trace."""

PACK = f"{ras_pack.ras_core.__name__}."
"""How the names of the modules of `ras_core` begin."""

LIVE_LIMIT = 2**20
"""Largest number of bytes of tensors that may be alive after a scenario."""


def same_bits(found: Tensor, wanted: Tensor, what: str) -> list[str]:
    """Check that two latents are bit-identical; NaN counts as equal to NaN."""
    if problem := same_form(found, wanted, what):
        return problem
    if torch.equal(found.nan_to_num(77.0), wanted.nan_to_num(77.0)):
        return []
    return [f"{what}: not identical, {APART} {_distance(found, wanted):.2g}"]


def close(found: Tensor, wanted: Tensor, what: str, limit: float = CLOSE) -> list[str]:
    """Check that two latents are equal up to rounding."""
    if problem := same_form(found, wanted, what):
        return problem
    apart = _distance(found, wanted)
    return [] if apart <= limit else [f"{what}: {APART} {apart:.2g}"]


def same_form(found: Tensor, wanted: Tensor, what: str) -> list[str]:
    """Check that two latents have the same shape and dtype, and that `found` is finite if `wanted` is."""
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        return [f"{what}: {tuple(found.shape)} {found.dtype}, not {tuple(wanted.shape)} {wanted.dtype}"]
    if torch.isfinite(wanted).all() and not torch.isfinite(found).all():
        return [f"{what}: not finite"]
    return []


def _distance(found: Tensor, wanted: Tensor) -> float:
    if not torch.isfinite(wanted).all():
        return 0.0
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-9))


def trace_of_run(trace: Trace, seen: Sequence[Seen], skips: bool) -> list[str]:
    """Check that a trace belongs to the observed run.

    Args:
        trace: the trace.
        seen: the evaluations that were observed without this pack.
        skips: whether code other than the network may answer some evaluations, which the trace then leaves
            out.
    """
    wrong = []
    levels, counted = [each.sigma for each in trace.evaluations], [each.sigma for each in seen]
    if not trace.evaluations and trace.notes and not trace.n_steps:
        return []  # the trace of a run that cannot use the method
    if len(levels) > len(counted) or (len(levels) < len(counted) and not skips):
        wrong.append(f"the trace has {len(levels)} evaluations, the guider was called {len(counted)} times")
    elif not skips and not all(_is_near(a, b) for a, b in zip(levels, counted, strict=True)):
        wrong.append("the trace's noise levels are not those at which the guider was called")
    return wrong + _numbers(trace) + _reasons(trace)


def _is_near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) or (math.isnan(a) and math.isnan(b))


def _numbers(trace: Trace) -> list[str]:
    """Check that the numbers in a trace are consistent."""
    wrong, values = [], trace.as_dict()
    try:
        json.dumps(values, allow_nan=False)
    except ValueError as error:
        wrong.append(f"the trace is not valid JSON: {error}")
    for each in trace.evaluations:
        counts = each.active.reshape(len(each.active), -1).sum(axis=1)
        if len(set(counts.tolist())) > 1 or not 0 < counts[0] <= trace.grid.n:
            wrong.append(f"step {each.step} has these numbers of tokens: {counts.tolist()}")
        if each.kind is StepKind.DENSE and counts[0] != trace.grid.n:
            wrong.append(f"the dense step {each.step} has {counts[0]} of {trace.grid.n} tokens")
        if not 0 <= each.step < max(trace.n_steps, 1):
            wrong.append(f"step {each.step} of {trace.n_steps}")
    regional = sum(each.kind is StepKind.REGIONAL for each in trace.steps)
    if regional != trace.regional_steps or f"{regional} of {trace.n_steps} steps" not in trace.summary():
        if not trace.plan:
            wrong.append(f"{regional} regional steps, but the summary is: {trace.summary()}")
    if trace.expected_speedup < 1 - 1e-9:
        wrong.append(f"an expected speed-up of {trace.expected_speedup}")
    return wrong


def _reasons(trace: Trace) -> list[str]:
    if len(set(trace.notes)) < len(trace.notes):
        return [f"a note occurs twice: {trace.notes}"]
    return [f"a note of {len(n)} characters: {n[:120]} ..." for n in trace.notes if len(n) > LONGEST_NOTE]


def has_reason(trace: Trace, planned: Sequence[StepKind]) -> list[str]:
    """Check that a trace has a note if a step that was planned as regional ran dense."""
    missed = [
        each.step for each in trace.evaluations
        if each.kind is StepKind.DENSE and planned[each.step] is StepKind.REGIONAL
    ]  # fmt: skip
    return [f"steps {missed} ran dense without a reason"] if missed and not trace.notes else []


def rows_as_counted(trace: Trace, seen: Sequence[Seen], frozen: int) -> list[str]:
    """Check that each regional evaluation processed as many rows in the last layer as the trace says. The
    rows that do not belong to active tokens (text and padding) must be as many as in one of the dense calls,
    less the `frozen` rows of reference images, which only dense calls process.
    """
    others: set[int] = set()
    wrong = []
    for each, counted in zip(trace.evaluations, seen, strict=False):
        active = int(each.active[0].sum())
        rest = {rows - active for _, rows in counted.rows}
        if each.kind is StepKind.DENSE:
            others |= {rows - frozen for rows in rest}
        elif not rest <= others:
            found = sorted({rows for _, rows in counted.rows})
            wrong.append(f"step {each.step}: {active} active tokens, but the last layer had {found} rows")
    return wrong


def network_state(network: nn.Module) -> dict[str, tuple]:
    """The hooks and the names of the attributes of every module. A run must not change them."""
    return {
        name: (
            tuple(map(id, module._forward_hooks.values())),
            tuple(map(id, module._forward_pre_hooks.values())),
            tuple(sorted(module.__dict__)),
        )
        for name, module in network.named_modules()
    }


def options_state(value: Any, depth: int = 6) -> Any:
    """The keys of nested model options, and the lengths of the lists in them."""
    if isinstance(value, dict) and depth:
        return {str(key): options_state(each, depth - 1) for key, each in value.items()}
    return len(value) if isinstance(value, (list, tuple)) else type(value).__name__


def same_state(before: Any, after: Any, what: str) -> list[str]:
    if before == after:
        return []
    changed = [name for name in {*before, *after} if before.get(name) != after.get(name)]
    return [f"{what} changed: {sorted(changed)[:5]}"]


def nothing_alive() -> list[str]:
    """Check that no object with the state of a run or with K/V rows is still in memory."""
    kinds = (KVRows, KVStore, RunState)
    alive = [type(each).__name__ for each in _objects() if issubclass(type(each), kinds)]
    return [f"still alive after the run: {', '.join(sorted(set(alive)))} ({len(alive)})"] if alive else []


def none_of_the_pack() -> list[str]:
    """Check that no object of a class of this pack is in memory, now that all models have been dropped."""
    found = Counter(kind.__qualname__ for each in _objects() if _is_of_the_pack(kind := type(each)))
    if not found:
        return []
    named = ", ".join(f"{count} {name}" for name, count in found.most_common(5))
    return [f"{found.total()} objects of this pack are alive after the scenario: {named}"]


def _is_of_the_pack(kind: type) -> bool:
    module = getattr(kind, "__module__", None)
    return isinstance(module, str) and module.startswith(PACK)


def live_bytes() -> int:
    """Total size in bytes of all tensors in memory; memory that several tensors share is counted once."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in _tensors()}
    return sum(storages.values())


def _objects() -> Iterable[Any]:
    """All objects that the garbage collector tracks, without those that existed at the start of the soak
    (they are frozen, see `summary.ready`).
    """
    gc.collect()
    return gc.get_objects()


def _tensors() -> list[Tensor]:
    return [each for each in _objects() if issubclass(type(each), Tensor) and each.layout is torch.strided]
