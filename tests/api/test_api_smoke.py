"""The pack, loaded by a real ComfyUI server: what its HTTP API sends to a browser, and one whole run."""

import pytest
from ras_pack.dev import demo_run as demo
from ras_pack.dev.demo_options import shipped_families
from ras_pack.dev.workflow import ComfyError

pytestmark = pytest.mark.server

NODES = (
    "RASPatchModel", "RASKSampler", "RASPaperSettings", "RASTrace", "RASMaskPreview", "RASDemoModel",
    "RASDemoPrompt",
)  # fmt: skip
STEPS = 6
TWO_DENSE = {"speed": "custom", "start_percent": 0.3, "error_reset_every": 0}  # of six steps


def inputs_of(info: dict) -> dict[str, list]:
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


@pytest.mark.parametrize("name", NODES)
def test_the_server_lists_the_node_with_a_tooltip_on_every_input(server, name):
    assert name in server.object_info, server.log.read_text(errors="replace")
    info = server.object_info[name]
    untold = [key for key, spec in inputs_of(info).items() if not spec[1].get("tooltip")]
    assert untold == []
    assert info["description"]


def test_the_pack_loads_without_warnings(server):
    """ComfyUI's log ends its start with one line per node pack: the import time, and any import failure."""
    lines = server.log.read_text(errors="replace").splitlines()
    told = [line for line in lines if line.endswith("multirate-ras") and " seconds" in line]
    assert len(told) == 1
    assert "FAILED" not in told[0]


# sd3 is never skipped: a checkout without its weights is broken and must fail here.
@pytest.fixture(scope="module", params=sorted({"sd3", *shipped_families()}))
def small_run(request, server):
    """Run the example workflow at 256 px with six steps, of which two are dense and the others regional."""
    workflow = server.workflow(demo.WORKFLOWS[request.param].name)
    prompt = demo.with_size(demo.demo_prompt(workflow, server.object_info), 256)
    prompt = demo.with_sampler(prompt, steps=STEPS, **TWO_DENSE, sample_ratio=0.25)
    seen = []
    result = server.client.run(prompt, lambda node, step, steps: seen.append((step, steps)), timeout=120)
    return server, result, seen


def test_an_example_generates_an_image(small_run):
    server, result, _ = small_run
    (reference,) = result.images(demo.PICTURE)
    image = server.image(reference).convert("RGB")
    assert image.size == (256, 256)
    assert any(low < high for low, high in image.getextrema())  # not one flat colour


def test_an_example_generates_a_mask_frame_per_step_and_a_summary(small_run):
    server, result, _ = small_run
    assert len(result.images(demo.FRAMES)) == STEPS
    (summary,) = result.images(demo.SUMMARY)
    assert min(server.image(summary).size) > 0


def test_an_example_reports_its_numbers(small_run):
    _, result, seen = small_run
    # The preview's trace: 2 dense steps, then 4 regional ones with a quarter of the tokens: (2 + 4 / 4) / 6.
    (stats,) = result.ui("ras")
    assert (stats["steps"], stats["regional_steps"]) == (STEPS, 4)
    assert stats["token_share"] == pytest.approx(0.5, abs=0.01)
    assert stats["expected_speedup"] > 1 and stats["seconds"] > 0
    assert seen[-1] == (STEPS, STEPS)


def test_a_wrong_value_is_refused_with_the_name_of_its_input(server):
    prompt = {
        "1": {"class_type": "RASDemoPrompt", "inputs": {"text": ""}},
        "2": {"class_type": "RASMaskPreview", "inputs": {"trace": ["1", 0]}},
    }
    with pytest.raises(ComfyError, match="RASMaskPreview.*trace"):
        server.client.run(prompt, timeout=30)


def test_a_prompt_that_still_sets_the_papers_method_by_an_input_is_refused(server):
    """ComfyUI itself would ignore the removed input `method`, and sample with multirate instead. So the node
    has to refuse such a prompt.
    """
    prompt = demo.demo_prompt(server.workflow(demo.WORKFLOWS["sd3"].name), server.object_info)
    with pytest.raises(ComfyError, match="method = 'paper'.*Expected.*What to do.*RASPaperSettings"):
        server.client.run(demo.with_sampler(prompt, method="paper"), timeout=60)


def test_the_papers_method_can_be_set_by_its_node(server):
    prompt = demo.demo_prompt(server.workflow(demo.WORKFLOWS["sd3"].name), server.object_info)
    settings = {"metric": "l2norm", "high_ratio": 1, "starvation_scale": 0.1, "ratio_end": 0.25}
    prompt["paper"] = {
        "class_type": "RASPaperSettings",
        "inputs": {**settings, "error_reset_steps": "4"},
    }
    prompt = demo.with_sampler(demo.with_size(prompt, 256), steps=STEPS, **TWO_DENSE, paper=["paper", 0])
    (stats,) = server.client.run(prompt, timeout=120).ui("ras")
    # Dense: 0, 1 and 4; regional: 2, 3 and 5.
    assert (stats["regional_steps"], stats["notes"]) == (3, [])
