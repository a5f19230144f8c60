"""Plans in files with any content: they are used as they are, or ignored with the reason."""

import json
import math

import folder_paths
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ras_pack.nodes.plans import RASScheduler
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.host import calibration
from ras_pack.ras_core.host.plan_files import last_change, plans_folder, save_plans, saved_plans
from ras_pack.ras_core.host.plans import levels_of
from ras_pack.ras_core.method.plan import Plan
from ras_pack.ras_core.method.plan_set import PlanSet

PLAN = Plan("2x", "euler", (0.75, 0.25), (1.0,) * 10, origin="calibrated on this model")
PLANS = PlanSet((PLAN,), "note")
SIZE = (16, 12)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inside: st.lists(inside, max_size=4),
    max_leaves=6,
)
NUMBERS = st.lists(st.integers(-1, 2**1100) | st.floats() | st.just(1.0), max_size=5)


@pytest.fixture
def kept(sd3, tmp_path, monkeypatch):
    """A model, and the file of its plans."""
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    model = sd3.build()
    return model, save_plans(PLANS, model, SIZE)


def scheduled(model) -> torch.Tensor:
    return RASScheduler.execute(model, "2x", 28, 1.0, "euler").args[0]


@given(content=st.binary(max_size=80) | ANY.map(json.dumps).map(str.encode))
@settings(max_examples=60)
def test_any_text(content):
    try:
        PlanSet.from_json(content.decode("utf-8", "surrogateescape"))
    except RASError as error:
        assert len(str(error)) <= 300


@given(name=st.sampled_from(["version", *PLAN.as_dict()]), value=ANY | NUMBERS)
@settings(max_examples=60)
def test_any_field_of_a_plan(sd3_model, name, value):
    """A plan that is read gives finite levels that decrease to 0."""
    text = json.dumps({"version": 1, "note": "", "plans": [{**PLAN.as_dict(), name: value}]})
    try:
        (plan,) = PlanSet.from_json(text).plans
    except RASError as error:
        assert "Expected:" in str(error) and len(str(error)) <= 300
        return
    levels = levels_of(sd3_model, plan, 12)
    assert len(levels) <= 13 and levels[-1] == 0 and all(map(math.isfinite, levels))
    assert all(a > b for a, b in zip(levels, levels[1:], strict=False))


@pytest.fixture(scope="module")
def sd3_model():
    from support.families import FAMILIES

    return FAMILIES["sd3"].build()


@pytest.mark.parametrize(
    "changes",
    [
        {"full_steps": 10**4000}, {"shares": [1.0] * 20_000}, {"density": [1.0] * 20_000},
        {"shares": [1.0] * 29}, {"density": [1e308, 1e308]}, {"closeness": math.nan}, {"speedup": math.inf},
        {"origin": ["x"]}, {"kv_cache": "x" * 10**5},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_values_of_an_edited_file(kept, caplog, changes):
    model, path = kept
    plan = {**PLAN.as_dict(), **changes}
    path.write_text(json.dumps({"version": 1, "note": "", "plans": [plan]}))
    assert saved_plans(model, SIZE) is None
    assert path.name in caplog.text and len(caplog.text) < 1000
    assert scheduled(model)[-1] == 0


@pytest.mark.parametrize("damage", ["folder", "deep", "huge", "link"])
def test_files_that_cannot_be_read(kept, caplog, damage):
    model, path = kept
    expected = scheduled(model)
    path.unlink()
    before = scheduled(model)
    assert not torch.equal(before, expected)
    if damage == "folder":
        path.mkdir()
    elif damage == "deep":
        path.write_text("[" * 10**5)
    elif damage == "huge":
        path.write_text(PlanSet((PLAN,), "x" * 2**21).to_json())
    else:
        path.symlink_to(path)
    assert torch.equal(scheduled(model), before)
    assert damage == "link" or path.name in caplog.text
    assert damage != "link" or last_change() is None


def test_a_calibration_is_not_lost_if_it_cannot_be_saved(sd3, tmp_path, monkeypatch, caplog):
    (tmp_path / "multirate_ras").write_text("a file where the folder belongs")
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    monkeypatch.setattr(calibration.Calibration, "run", lambda self: PLANS)
    conds = (sd3.conditioning(1), sd3.conditioning(2))
    assert calibration.calibrate(sd3.build(), conds, torch.zeros(1, 16, *SIZE), 4.0, 1) == PLANS
    assert "the plans are not saved" in caplog.text and plans_folder().exists() is False
