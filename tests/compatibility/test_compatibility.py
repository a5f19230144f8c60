"""Every cell of the compatibility table has the declared outcome, and the page shows the declarations."""

import ast

import comfy.samplers
import pytest
from support.comfy import ROOT

from .cells import check
from .page import PATH, page
from .rows import FAST
from .samplers import SAMPLERS
from .schedules import SCHEDULERS
from .table import GROUPS

CELLS = [
    pytest.param(row, family, order, id=f"{group.title}-{row.name}-{family}-{order}")
    for group in GROUPS
    for row in group.rows
    for family, order in row.cells()
]
ROWS = [row for group in GROUPS for row in group.rows]


@pytest.mark.parametrize(("row", "family", "order"), CELLS)
def test_the_outcome(row, family, order, caplog, request):
    if row.fault:
        request.applymarker(pytest.mark.xfail(strict=True, reason=row.fault))
    check(row, family, order, caplog)


def test_the_page_is_up_to_date():
    assert PATH.read_text(encoding="utf-8") == page(), "run `python -m dev compatibility`"


def test_every_sampler_and_scheduler_is_in_the_table():
    assert set(comfy.samplers.KSampler.SAMPLERS) <= set(SAMPLERS)
    assert set(comfy.samplers.KSampler.SCHEDULERS) <= set(SCHEDULERS)


def test_names_are_unique():
    names = [(group.title, row.name) for group in GROUPS for row in group.rows]
    assert len(set(names)) == len(names)


def test_a_row_that_is_not_fast_says_why():
    assert [row.name for row in ROWS if row.outcome is not FAST and not row.note] == []


@pytest.mark.parametrize("test", sorted({row.test for row in ROWS if row.test}))
def test_a_cited_test_exists(test):
    path, *names = test.split("::")
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for name in names:
        (found,) = (each for each in body if getattr(each, "name", None) == name)
        body = found.body
