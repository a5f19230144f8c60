"""The live view as a user sees it: a real ComfyUI, its own front end, a real browser.

Each scenario writes screenshots to tests/browser/output for visual inspection.
"""

import base64
import re

import numpy as np
import pytest
from ras_pack.dev import demo_run as demo
from ras_pack.nodes.settings import OF_CUSTOM
from support.server import EXAMPLES

pytestmark = [pytest.mark.server, pytest.mark.slow]

SAMPLER = "RASKSampler"
STEPS = 16
SHOWN = ("added", "custom", "loaded", "again")
RESET = 8  # three dense steps and a reset every 5: steps 8 and 13
JOB = {"workflow": str(demo.WORKFLOWS["sd3"]), "sampler": SAMPLER}


def ours(problems: list[str]) -> list[str]:
    """The page's errors and warnings that concern this pack."""
    return [text for text in problems if "/extensions/" in text or "multirate" in text]


def steps_of(report: dict) -> list[dict]:
    return [message for message in report["messages"] if message["phase"] == "step"]


def active_share(message: dict) -> float:
    rows, columns = message["grid"]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(message["mask"]), np.uint8))
    return bits[: rows * columns].mean()


class TestExamples:
    @pytest.fixture(scope="class")
    def loaded(self, drive):
        return drive("load", workflows={path.stem: str(path) for path in sorted(EXAMPLES.glob("*.json"))})

    @pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.json")))
    def test_it_loads_without_unknown_nodes_or_errors_of_the_pack(self, loaded, name):
        assert loaded[name]["unknown"] == []
        assert ours(loaded[name]["problems"]) == []

    def test_search_finds_the_pack(self, loaded):
        found = loaded["found"]
        assert [word for word, types in found.items() if "RASPatchModel" not in types] == []
        for word in ("faster", "quick", "accelerate"):
            assert set(found[word][:2]) == {"RASPatchModel", "RASKSampler"}
        # The front end sorts the nodes whose name begins with a word by the length of their names.
        assert all(name.startswith(("RAS", "SubgraphBlueprint")) for name in found["ras"][:10])

    @pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.json")))
    def test_nodes_do_not_overlap(self, loaded, name):
        assert loaded[name]["overlaps"] == []
        assert loaded[name]["overlapsAdvanced"] == []


class TestRun:
    @pytest.fixture(scope="class")
    def report(self, nodes, drive):
        name = {"classic": "sd3", "nodes2": "lumina2"}[
            nodes
        ]  # a run of each model in each kind takes a minute
        return drive("run", workflow=str(demo.WORKFLOWS[name]), name=name, sampler=SAMPLER)

    def test_it_succeeds_without_errors_in_the_page(self, report, nodes):
        assert report["end"] == "execution_success"
        assert report["isNodes2"] == (nodes == "nodes2")
        assert ours(report["problems"]) == []

    def test_masks_arrive_and_change_while_it_runs(self, report):
        regional = [message for message in steps_of(report) if message["kind"] == "regional"]
        assert len({message["mask"] for message in regional}) >= 2
        for message in regional:
            assert active_share(message) == pytest.approx(message["share"], abs=1e-3)
        assert report["pictures"] >= 2  # a busy page draws only some of them

    def test_every_step_is_sent_by_itself_or_listed_in_a_later_message(self, report):
        """The server sends at most one message per quarter of a second. Each message lists the steps that
        were completed since the previous message. The last steps may be listed in the final message only.
        """
        steps = steps_of(report)
        told = {m["step"] for m in steps} | {step for m in steps for step, *_ in m["unsent"]}
        assert told == set(range(steps[-1]["step"] + 1)) and len(steps) >= 3

    def test_the_timeline_stays_and_can_be_used_by_keyboard(self, report):
        after = report["after"]
        assert after["isOver"] and after["sliderMax"] == STEPS and min(after["size"]) > 100
        assert after["caption"].startswith(f"Step {STEPS}/{STEPS} · regional · 30\u00a0%")
        first, third, last = report["scrubbed"]
        assert first["sliderText"] == f"Step 1 of {STEPS} · dense · 100\u00a0% of tokens"
        assert third["sliderText"].startswith("Step 3 of")
        assert last["caption"] == after["caption"]
        assert len({view["picture"] for view in report["scrubbed"]}) == 3

    def test_the_timeline_describes_each_step(self, report):
        end = report["messages"][-1]
        kinds = [step["kind"] for step in end["timeline"]]
        assert end["finished"] and len(kinds) == STEPS
        assert kinds[:3] == ["dense"] * 3 and kinds[3] == "regional" and kinds[RESET] == "reset"

    def test_masks_and_image_are_shown_by_their_nodes(self, report):
        assert report["shown"]["RASMaskPreview"] == 1
        assert report["shown"]["SaveImage"] == 1
        assert report["shown"]["PreviewImage"] == STEPS

    def test_the_node_shows_one_image_and_does_not_save_it(self, report):
        assert report["hostPictures"] == 0
        assert report["saved"]["widgets"] == report["before"]["widgets"]
        assert report["saved"]["inputs"] == report["before"]["inputs"]
        assert report["saved"]["height"] == report["before"]["height"]

    def test_the_timeline_is_there_again_after_a_look_at_another_workflow(self, report):
        returned, last = report["returned"], report["scrubbed"][-1]
        assert returned["away"] is None
        assert returned["back"]["isOver"] and returned["back"]["headline"] == last["headline"]
        assert returned["back"]["sliderMax"] == STEPS

    def test_another_client_gets_nothing(self, report):
        assert report["otherMessages"] == []
        assert report["otherPanel"] is None


def test_an_interrupt_clears_the_view(drive):
    report = drive("interrupt", **JOB)
    assert report["end"] == "execution_interrupted"
    assert report["during"]["caption"]
    assert report["panel"] is None
    assert report["saved"]["size"] == report["before"]["size"]
    assert report["messages"][-1]["finished"] is False
    assert ours(report["problems"]) == []


def test_if_disabled_nothing_is_sent_and_comfyuis_preview_is_shown(drive):
    report = drive("turnedOff", **JOB)
    assert report["off"] == {"messages": [], "panel": None, "hostPictures": 1}
    assert report["on"]["messages"] and report["on"]["panel"]
    assert report["on"]["hostPictures"] == 0
    assert ours(report["problems"]) == []


def test_the_view_is_removed_with_its_node_and_with_its_workflow(drive):
    report = drive("leave", **JOB)
    assert report["panels"] == [None, None, None]  # the last: of a prompt queued before the workflow was left
    assert report["stepsOfSecond"] >= 2
    assert ours(report["problems"]) == []


class TestPatchModel:
    """RAS Patch Model in front of ComfyUI's KSampler."""

    @pytest.fixture(scope="class")
    def report(self, drive):
        return drive("downstream", **JOB)

    def test_comfyuis_ksampler_shows_the_live_view(self, report):
        assert report["end"] == "execution_success"
        assert report["widgets"][-1] == "multirate_ras_live"
        assert report["panel"]["isOver"] and report["messages"][-1]["finished"]
        assert ours(report["problems"]) == []

    def test_it_shows_its_speed_and_little_more(self, report, nodes):
        added, custom, loaded, again = (report["compact"][key] for key in SHOWN)
        assert added["rows"] == 1 and loaded["rows"] == 7
        if nodes == "classic":  # Nodes 2.0 leaves showing and hiding to its button
            assert again["rows"] == 1 and custom["rows"] == 7
            assert added["height"] == again["height"] <= 170
            assert loaded["height"] == custom["height"]

    def test_inputs_without_effect_are_greyed_out(self, report, nodes):
        added, custom, loaded, again = (report["compact"][key] for key in SHOWN)
        assert added["off"] == again["off"] == list(OF_CUSTOM)
        assert custom["off"] == loaded["off"] == []
        if nodes == "nodes2":  # all inputs are shown since the workflow was loaded; kv_cache is no number
            assert loaded["usable"] == again["usable"] + len(OF_CUSTOM) - 1

    def test_it_says_before_the_run_what_the_run_will_do(self, report, nodes):
        added, custom = report["compact"]["added"], report["compact"]["custom"]
        told = "about 50\u00a0% of the time · 10 steps instead of 16 · few steps: closeness unknown"
        assert added["hint"] == told
        applied = "custom: the advanced inputs apply"
        assert custom["hint"] == applied + " (Show advanced inputs)" * (nodes == "nodes2")
        assert not added["isCut"] and not custom["isCut"]
        assert report["compact"]["loaded"]["hint"] == applied  # with these inputs shown

    def test_a_graph_runs_with_any_node_turned_off(self, report):
        """RAS Patch Model and RAS Trace pass their inputs on, bypassed or muted; ComfyUI's own nodes take the
        places of RAS Multirate Sampler and RAS Scheduler.
        """
        found = report["turnedOff"]
        assert len(found["prompts"]) == 8
        for prompt in found["prompts"]:
            off = prompt["off"]
            model = "RASDemoModel" if off == "RASPatchModel" else "RASPatchModel"
            solver = "KSamplerSelect" if off == "RASSampler" else "RASSampler"
            levels = "BasicScheduler" if off == "RASScheduler" else "RASScheduler"
            assert prompt["model"] == prompt["levels"] == model
            assert prompt["samples"] == ("KSampler" if off == "RASTrace" else "RASTrace")
            assert prompt["custom"] == [model, solver, levels]
        assert found["end"] == "execution_success"
        assert found["shown"]["SaveImage"] == found["shown"]["RASMaskPreview"] == 1
        assert found["panel"] is None

    def test_the_view_is_removed_with_the_patch(self, report):
        found = report["unpatched"]
        assert found["before"]["isOver"] and found["after"] is None

    def test_compare_shows_a_slider_over_both_images(self, report):
        found = report["compared"]
        assert found["end"] == "execution_success"
        told = {headline.partition(" · ")[0] for headline in found["during"]}
        assert told >= {"1 of 3: without RAS", "2 of 3: with RAS", "3 of 3: fewer steps (8)"}
        dark = {headline.partition(" · ")[0] for headline in found["during"] if "dark:" in headline}
        assert dark <= {"2 of 3: with RAS"}  # the other runs compute everything
        after = found["after"]
        runs = [after["left"], *after["buttons"]]
        assert [re.sub(r"\d+\.\d", "0.0", run) for run in runs] == [
            "without RAS · 0.0 s", "with RAS · 0.0 s", "fewer steps (8) · 0.0 s",
        ]  # fmt: skip
        assert after["right"] == after["buttons"][1]
        # How fast such a small run is depends on what else the machine does.
        speed = r"(about )?\d\.\d× faster|slower than without RAS \(\d\.\d× the speed\)"
        assert re.match(rf"({speed}) .*similarity to the image without RAS: \d\.\d\d", after["figures"])
        assert after["clip"] == "inset(0px 0px 0px 0%)" and after["sizes"] == [320, 320]
        assert min(after["shown"]) > 350  # large enough to see something
        assert found["inPanel"] == ["denoise"]  # the side panel lists the inputs only
        assert found["selected"] == after["shown"]

    def test_compare_shows_one_result_and_does_not_save_it(self, report):
        found = report["compared"]
        assert found["after"]["panel"] is None and found["after"]["hostPictures"] == 0
        assert "multirate_ras_live" not in found["after"]["widgets"]
        for key in ("widgets", "inputs", "height"):
            assert found["saved"][key] == found["before"][key]


def test_it_is_shown_after_switching_to_the_other_kind_of_nodes(drive):
    """The live view is shown after the user switches from one kind of nodes to the other (Nodes 2.0, or
    nodes drawn on a canvas).
    """
    report = drive("otherNodes", **JOB)
    assert report["panel"]["isOver"] and min(report["panel"]["size"]) > 100
    assert report["panel"]["colours"] > 1000  # an image, although ComfyUI makes no previews in this scenario
    assert report["short"]["headline"].startswith("Not accelerated: no regional step fits")
    assert not report["short"]["areCut"] and report["short"]["areExplained"]  # in a narrow node
    assert report["saved"]["height"] == report["before"]["height"] < report["saved"]["size"][1]
    assert max(report["bands"]) < 45  # nothing but margins, however often the speed was changed
    assert ours(report["problems"]) == []


def test_a_subgraph_node_shows_it_and_does_not_save_it(drive):
    report = drive("subgraph", **JOB)
    assert report["ends"] == ["execution_success"] * 2
    assert report["outside"]["isOver"] and min(report["outside"]["size"]) > 100
    assert report["nested"] == report["before"]
    assert min(report["place"]) > -1  # below the slots and widgets, and inside the node
    assert len(report["back"]) == 1 and min(report["back"]) > 50  # after a look into the subgraph
    assert min(report["placeBack"]) > -1
    assert report["offered"] == ["cuda_graphs"]  # neither the hint nor the live view
    before, high, without = report["heights"]
    assert high > before + 100 and without < before + 60  # no empty space after a run without RAS
    assert ours(report["problems"]) == []
