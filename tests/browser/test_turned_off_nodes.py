"""A graph whose samplers are turned off, in a real browser: ComfyUI's own nodes take their places.

tests/api/test_turned_off.py has the nodes whose place no other node needs to take.
"""

import pytest
from ras_pack.dev import demo_run as demo

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.parametrize(
        "nodes", ["classic"], indirect=True
    ),  # a prompt does not depend on the kind of nodes
]

LATENT = "EmptySD3LatentImage"


@pytest.fixture(scope="module")
def report(drive) -> dict:
    return drive("standIns", workflow=str(demo.WORKFLOWS["sd3"]), sampler="RASKSampler")


@pytest.mark.parametrize("way", ["muted", "bypassed"])
def test_a_sampler_is_replaced(report, way):
    assert report["prompts"][way] == ["KSampler", LATENT]


def test_a_second_pass_is_left_out_or_replaced(report):
    assert report["prompts"]["secondBypassed"] == ["RASKSampler", LATENT]
    assert report["prompts"]["secondMuted"] == ["KSampler", "RASKSampler", LATENT]


def test_a_branch_that_is_muted_as_a_whole_stays_off(report):
    assert report["prompts"]["branch"] == []


@pytest.mark.parametrize("way", ["compareMuted", "compareBypassed"])
def test_the_images_of_a_comparison_are_one_without_ras(report, way):
    assert report["prompts"][way] == ["VAEDecode", "KSampler", LATENT]


def test_a_model_comes_through_nodes_that_are_bypassed(report):
    assert report["prompts"]["model"] == "RASDemoModel"


def test_a_sampler_in_a_subgraph_is_replaced_and_runs(report):
    assert report["prompts"]["inside"] == ["KSampler", LATENT]
    assert report["end"] == "execution_success" and report["shown"]["SaveImage"] == 1
    assert [text for text in report["problems"] if "/extensions/" in text or "multirate" in text] == []
