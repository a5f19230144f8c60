"""Runs a cell of the table and checks its outcome."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.run.trace import Trace
from support.families import Family
from support.sampling import distance
from torch import Tensor

from .rows import CONFIG, DENSE_STEPS, FAST, REFUSED, SOME, Row, Run, family_of, usual_prompts

LONGEST = 300
"""Largest number of characters of a reason or an error."""

CLOSER = 0.8
"""If the other node changes the latent, the distance to the run with it is at most this share of the distance
to the run without it.
"""


@dataclass(frozen=True)
class Result:
    """The result of a cell.

    Attributes:
        run: the run.
        family: its family.
        latent: the latent with RAS.
        dense: the latent without RAS.
        trace: the trace.
        model: the model with RAS.
    """

    run: Run
    family: Family
    latent: Tensor
    dense: Tensor
    trace: Trace
    model: Any


def check(row: Row, family_name: str, order: str, log: pytest.LogCaptureFixture) -> None:
    """Assert that a cell has the outcome that its row declares."""
    family = family_of(family_name)
    if row.cell is not None:
        row.cell(family)
        return
    if row.outcome is REFUSED:
        _check_refused(row, family, order)
        return
    dense = without_ras(family, row.run)
    latent, model = with_ras(family, row.run, order)
    result = Result(row.run, family, latent, dense, last_trace(model), model)
    assert latent.shape == dense.shape and latent.dtype == dense.dtype
    (_check_fast if row.outcome is FAST else _check_dense)(row, result)
    _check_notes(row, result.trace, log)
    if row.check is not None:
        row.check(result)


def _check_fast(row: Row, found: Result) -> None:
    steps = found.trace.n_steps - DENSE_STEPS if row.regional is None else row.regional
    assert found.trace.regional_steps > 0 and steps in (found.trace.regional_steps, SOME)
    apart = distance(found.latent, found.dense)
    assert apart < row.near
    if row.acts:
        plain = without_ras(found.family, replace(found.run, patch=None, prompts=usual_prompts))
        assert distance(plain, found.dense) > 0.01
        assert apart < CLOSER * distance(found.latent, plain)


def _check_dense(row: Row, found: Result) -> None:
    assert found.trace.regional_steps == 0
    assert torch.equal(found.latent.nan_to_num(77.0), found.dense.nan_to_num(77.0))


def _check_notes(row: Row, trace: Trace, log: pytest.LogCaptureFixture) -> None:
    """There is one reason, and it is logged once; or none, if none is expected."""
    warnings = [record.getMessage() for record in log.records if record.levelname == "WARNING"]
    if not row.reason:
        assert trace.notes == () and not any("Multirate RAS" in line for line in warnings)
        return
    note, *others = trace.notes
    assert all(row.also and row.also in other for other in others)
    assert row.reason in note and len(note) <= LONGEST
    assert sum(row.reason in line for line in warnings) == 1, warnings


def _check_refused(row: Row, family: Family, order: str) -> None:
    with pytest.raises(RASError) as caught:
        with_ras(family, row.run, order)
    message = str(caught.value)
    assert row.reason in message and len(message) <= LONGEST
    assert "Expected: " in message and "What to do: " in message


def without_ras(family: Family, run: Run) -> Tensor:
    """The latent without RAS."""
    return _without_ras(family, replace(run, config=CONFIG))


@lru_cache(maxsize=256)
def _without_ras(family: Family, run: Run) -> Tensor:
    with torch.inference_mode(), run.around():
        model = run.build(family)
        return _sampled(model if run.patch is None else run.patch(model, family), family, run)


def with_ras(family: Family, run: Run, order: str = "before") -> tuple[Tensor, Any]:
    """The latent with RAS, and the model with which it was sampled. The other node is before or after
    RAS Patch Model.
    """
    with torch.inference_mode(), run.around():
        model = run.build(family)
        patches = [lambda model, family: patch_model(model, run.config)]
        if run.patch is not None:
            patches.insert(0 if order == "before" else 1, run.patch)
        for patch in patches:
            model = patch(model, family)
        return _sampled(model, family, run), model


def _sampled(model: Any, family: Family, run: Run) -> Tensor:
    torch.manual_seed(5)  # some samplers draw from the global generator
    return run.sample(model, family, run)
