"""A subgraph's node that contains two samplers behind RAS Patch Model, in a real browser."""

import pytest
from ras_pack.dev import demo_run as demo

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(drive) -> dict:
    return drive("twoSamplers", workflow=str(demo.WORKFLOWS["sd3"]), sampler="RASKSampler")


def test_both_runs_end_without_errors_of_the_pack(report):
    assert report["ends"] == ["execution_success"] * 2
    assert [text for text in report["problems"] if "/extensions/" in text or "multirate" in text] == []


def test_its_node_shows_both_views_one_below_the_other(report):
    first, second = report["panels"]
    assert second["top"] >= first["bottom"]
    assert report["after"]["height"] > report["before"]["height"] + 200


def test_each_view_has_the_title_of_its_sampler_but_none_in_the_sampler_itself(report):
    assert [panel["title"] for panel in report["panels"]] == ["KSampler", "Second pass"]
    assert [panel["title"] for panel in report["inside"]] == ["", ""]


def test_the_estimate_and_the_views_name_samplers_of_equal_titles_alike(report):
    names = [line.rpartition(" · ")[2] for line in report["equal"]["estimate"].split("\n")]
    assert names == report["equal"]["titles"] and all(name.startswith("KSampler #") for name in names)


def test_it_has_its_former_height_after_a_run_without_ras(report):
    assert report["without"]["height"] < report["before"]["height"] + 20


def test_a_workflow_is_saved_without_the_height_of_the_views(report):
    assert report["after"]["saved"] == pytest.approx(report["before"]["saved"], abs=20)


def test_the_estimate_is_no_wider_than_the_node(report):
    (left, right), (first, last) = report["boxes"]
    assert report["estimate"] == "about 50\u00a0% of the time · KSampler\nno gain · Second pass"
    assert first <= left < right <= last
