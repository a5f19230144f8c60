"""The hint in the node tells of plans that RAS Calibrate has saved, in a real browser."""

import pytest
from ras_pack.dev import demo_run as demo
from ras_pack.dev.workflow import to_api
from ras_pack.nodes.model_source import source_in_prompt
from ras_pack.ras_core.method.family_plans import family_plans
from ras_pack.ras_core.method.plan import Plan
from ras_pack.ras_core.method.plan_set import PlanSet

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.parametrize(
        "nodes", ["classic"], indirect=True
    ),  # test_live_view.py looks at the hint in both kinds
]

SAMPLER = "RASKSampler"
MEASURED = "about 51\u00a0% of the time · 16 steps instead of 28 · measured on your model"


@pytest.fixture(scope="module")
def report(drive, server) -> dict:
    """The plans are those of the template's model, at the template's size."""
    workflow = demo.WORKFLOWS["sd3"]
    prompt = to_api(server.workflow(workflow.name), server.object_info)
    source = source_in_prompt(prompt.__getitem__, demo.only(prompt, SAMPLER))
    size = prompt[demo.only(prompt, "EmptySD3LatentImage")]["inputs"]
    shares = (1.0,) * 12 + (0.6,) * 4
    plan = Plan("2x", "dpmpp_2m", (0.7, 0.3), shares, speedup=1.96, closeness=21.3)
    folder = server.log.parent / "user" / "multirate_ras" / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'0' * 16}-{size['height'] // 8}x{size['width'] // 8}.json"
    path.write_text(PlanSet((plan,), source=source).to_json())
    yield drive("hinted", workflow=str(workflow), sampler=SAMPLER)
    path.unlink()


def test_plans_of_this_model_and_size(report):
    text, tooltip = report["saved"]
    assert text == MEASURED and "RAS Calibrate measured" in tooltip and "21.3 dB" in tooltip


def test_another_size_has_the_familys_plan(report):
    steps = family_plans("sd3").best("2x").steps
    told = f"about 50\u00a0% of the time · {steps} steps instead of 28 · almost the image of 250 steps"
    assert report["otherSize"][0] == told


def test_inpainting_has_dense_steps_only(report):
    assert report["inpainting"] == "about 50\u00a0% of the time · 14 steps instead of 28 (inpainting)"


def test_a_connected_calibration(report):
    assert report["notCalibrated"] == "the connected plan applies"
    assert report["connected"] == MEASURED


def test_a_sampler_in_a_subgraph(report):
    assert report["inside"] == MEASURED
    assert report["off"] == ["", ""] and report["on"] == report["promoted"]  # muted, bypassed; on again
    steps = family_plans("sd3").best("3x").steps
    assert report["promoted"].startswith(report["outside"]) and " instead of 28" in report["outside"]
    assert report["unused"] == [True, False, True]  # the input kv_cache in the subgraph's node
    assert report["promoted"].startswith(f"about 33\u00a0% of the time · {steps} steps instead of 28")
    assert [text for text in report["problems"] if "/extensions/" in text or "multirate" in text] == []
