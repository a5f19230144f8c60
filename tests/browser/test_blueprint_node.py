"""The pack's subgraph blueprint in a real browser: listed, added as a node, and run."""

import re

import pytest
from ras_pack.dev import demo_run as demo
from ras_pack.nodes.settings import OF_CUSTOM

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.parametrize("nodes", ["classic", "nodes2"], indirect=True),
]

NAME = "RAS sampler"
STEPS = 9  # set by the scenario in the widget of the subgraph's node


@pytest.fixture(scope="module")
def report(drive, comfyui) -> dict:
    if not (comfyui / "app" / "subgraph_manager.py").is_file():
        pytest.skip("this ComfyUI serves no subgraph blueprints yet")
    return drive("blueprint", workflow=str(demo.WORKFLOWS["sd3"]), sampler="RASKSampler", blueprint=NAME)


def test_it_is_listed_and_can_be_added_with_all_types_known(report):
    added = report["added"]
    assert added["id"].startswith("SubgraphBlueprint.") and added["category"] == "Subgraph Blueprints"
    assert added["description"].startswith("Samples with RAS")
    assert added["types"] == ["RASKSampler", "VAEDecode", "RASMaskPreview"] and added["unknown"] == []
    # The front end makes an input of each promoted widget, and leaves a seed's control inside.
    assert added["widgets"] == ["speed", "seed", "steps", "cfg"]
    assert added["inputs"] == ["model", "vae", "positive", "negative", "latent_image", *added["widgets"]]
    assert added["outputs"] == ["IMAGE", "summary"]


def test_a_promoted_widget_sets_the_sampler_inside(report):
    (sampler,) = [one for one in report["inputs"].values() if one["class_type"] == "RASKSampler"]
    assert sampler["inputs"]["steps"] == STEPS


def test_its_node_estimates_the_run(report):
    assert re.fullmatch(rf"about \d\d\u00a0% of the time · \d steps instead of {STEPS}", report["estimate"])


def test_nothing_is_estimated_before_a_model_is_connected(report):
    assert report["unconnected"] == ""


def test_custom_shows_the_settings_inside_and_says_so_outside(report):
    custom, fast = report["custom"]["custom"], report["custom"]["3x"]
    assert custom["outside"] == "custom: settings inside the node"
    assert custom["rows"] == [*OF_CUSTOM[:-1], "cuda_graphs", OF_CUSTOM[-1]]
    assert fast["outside"].startswith("about 33\u00a0% of the time") and fast["rows"] == []
    assert report["custom"]["atOnce"] == custom["rows"]


def test_a_warning_follows_the_summary_and_is_not_cut_off(report):
    panel, place = report["warned"]["panel"], report["warned"]["place"]
    assert panel["headline"] == (
        "2x: 17 steps instead of 28, 5 dense, 82\u00a0% of tokens · 1.55× speed · "
        "Less than planned: perhaps the computer was busy, or the image is small"
    )
    assert not panel["areCut"] and panel["areExplained"]
    assert min(place) > -1  # inside the node
    assert re.search(r" · \d+\u00a0%$", panel["caption"])


def test_it_generates_an_image_and_a_summary(report):
    assert report["end"] == "execution_success"
    assert report["shown"]["SaveImage"] == 1 and report["shown"]["PreviewImage"] == 1
    assert [text for text in report["problems"] if "/extensions/" in text or "multirate" in text] == []
