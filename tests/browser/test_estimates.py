"""What RAS Patch Model tells before a run, of samplers in subgraphs and of RAS Compare, in a real browser."""

import re

import pytest
from ras_pack.dev import demo_run as demo

pytestmark = [pytest.mark.server, pytest.mark.slow]
OWN = "its own settings apply, not those of the RAS node before it"


@pytest.fixture(scope="module")
def report(drive, server) -> dict:
    before = server.log.read_text().count(OWN)
    found = drive("estimates", workflow=str(demo.WORKFLOWS["sd3"]), sampler="RASKSampler")
    return found | {"logged": server.log.read_text().count(OWN) - before}


def test_it_ends_without_errors_of_the_pack(report):
    assert [text for text in report["problems"] if "/extensions/" in text or "multirate" in text] == []


def test_samplers_in_a_subgraph_of_a_subgraph(report):
    text, _ = report["inside"]
    assert text.startswith("about 50\u00a0% of the time") and "28" not in text
    assert text.partition(" steps instead of ")[2].startswith("20")


def test_few_steps_in_one_of_them_or_in_both(report):
    assert "no gain" in report["few"][0] and "about 50\u00a0%" in report["few"][0]
    assert report["bothFew"][0] == "no gain with so few steps: the run is the same as without RAS"


def test_inpainting(report):
    """The first sampler passes the mask on."""
    assert report["mask"][0] == "about 50\u00a0% of the time · 10 steps instead of 20 (inpainting)"


def test_the_tooltip_names_samplers_of_equal_titles(report):
    *lines, note = report["few"][1].split("\n")
    names = [re.match(r"KSampler #\d+(?=: )", line)[0] for line in lines]
    assert note.startswith("RAS Calibrate") and len({*names}) == 2
    assert report["few"][0].split("\n")[0].endswith(names[0])


def test_without_a_sampler_it_tells_only_the_time(report):
    assert report["unknown"][0] == "about 50\u00a0% of the time" and "dB" not in report["unknown"][1]


def test_compare_has_settings_of_its_own(report):
    assert report["replaced"][0] == "no effect: RAS Compare has its own settings"
    assert report["end"] == "execution_success" and report["logged"] == 1
