"""A graph still gives its image if a node of the pack is bypassed or muted, as in a comparison without RAS.

The prompts are those that the front end makes from such a graph. The links that web/turned_off.js adds are
tested in browser/test_turned_off_nodes.py.
"""

import pytest
from api.test_templates import needs_demo_model, prompt_of, with_demo_model, with_input_image
from ras_pack.dev import demo_run as demo
from ras_pack.dev.workflow import BYPASSED, MUTED, ComfyError, Prompt, to_api
from support.server import EXAMPLES

pytestmark = pytest.mark.server

TEMPLATES = sorted(path.stem for path in EXAMPLES.glob("*.json") if "next" not in path.stem)
SOURCES = {"RASDemoModel", "RASDemoPrompt"}
"""Without them there is nothing to sample, as without ComfyUI's own loader and text encoder."""

NO_IMAGE = {(name, mode) for name in SOURCES for mode in (BYPASSED, MUTED)} | {
    ("RASKSampler", MUTED),  # in the browser, web/turned_off.js lets a KSampler take its place
    ("RASPatchModel", MUTED), ("RASTrace", MUTED),  # in the browser, web/turned_off.js passes their inputs on
}  # fmt: skip


def shortened(prompt: Prompt, seed: int) -> Prompt:
    """Two steps at 128 px, with the demo model."""
    for node in prompt.values():
        node["inputs"] |= {"steps": 2} if "steps" in node["inputs"] else {}
        node["inputs"] |= {"seed": seed} if "seed" in node["inputs"] else {}
    return demo.with_size(prompt, 128)


def turned_off(workflow: dict, node_id: int, mode: int) -> dict:
    nodes = [{**node, "mode": mode} if node["id"] == node_id else node for node in workflow["nodes"]]
    return {**workflow, "nodes": nodes}


@pytest.mark.parametrize("mode", [BYPASSED, MUTED], ids=["bypassed", "muted"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_its_image_without_any_one_node_of_the_pack(server, name, mode):
    workflow = server.workflow(f"{name}.json")
    prompt_of(server, name)  # skips templates for a later ComfyUI
    with_input_image(server)
    for node in [node for node in workflow["nodes"] if node["type"].startswith("RAS")]:
        prompt = to_api(turned_off(workflow, node["id"], mode), server.object_info)
        if needs_demo_model(prompt):
            prompt = with_demo_model(prompt, name)
        prompt = shortened(prompt, seed=node["id"])
        if (node["type"], mode) in NO_IMAGE:
            assert "RAS Mask Preview" not in str(refusal(server, prompt))
            continue
        result = server.client.run(prompt, timeout=60)
        assert result.images(demo.only(prompt, "SaveImage")), node["type"]
        for stats in result.ui("ras"):
            assert bool(stats["steps"]) != bool(stats["notes"])  # a trace of the run, or the reason for none


def refusal(server, prompt: Prompt) -> ComfyError | None:
    """The server's error for a prompt from which a source of the image is missing."""
    try:
        result = server.client.run(prompt, timeout=60)
    except ComfyError as error:
        return error
    assert result.images(demo.only(prompt, "SaveImage")) == []
    return None


class TestSayWhy:
    @pytest.fixture(scope="class")
    def prompt(self, server) -> Prompt:
        workflow = server.workflow("ras_1_start_here.json")
        return shortened(to_api(workflow, server.object_info), seed=9)

    def test_a_trace_of_a_model_without_ras(self, server, prompt):
        sampler = demo.only(prompt, "RASKSampler")
        names = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "model", "positive",
                 "negative", "latent_image")  # fmt: skip
        inputs = {name: prompt[sampler]["inputs"][name] for name in names}
        trace = {"model": inputs["model"], "latent": [sampler, 0]}
        changed = {**prompt, sampler: {"class_type": "KSampler", "inputs": inputs}}
        changed["trace"] = {"class_type": "RASTrace", "inputs": trace}
        preview, decode = demo.only(prompt, "RASMaskPreview"), demo.only(prompt, "VAEDecode")
        vae = prompt[decode]["inputs"]["vae"]
        changed[decode] = {"class_type": "VAEDecode", "inputs": {"samples": ["trace", 0], "vae": vae}}
        images = prompt[preview]["inputs"]["images"]
        shown = {"trace": ["trace", 1], "images": images}
        changed[preview] = {"class_type": "RASMaskPreview", "inputs": shown}
        result = server.client.run(changed, timeout=60)
        assert result.images(demo.only(prompt, "SaveImage")) and result.images(preview)
        (stats,) = result.ui("ras")
        assert stats["steps"] == 0 and "no RAS node has patched the connected model" in stats["notes"][0]

    def test_a_preview_without_a_trace(self, server, prompt):
        preview = demo.only(prompt, "RASMaskPreview")
        changed = {**prompt, preview: {"class_type": "RASMaskPreview", "inputs": {}}}
        (stats,) = server.client.run(changed, timeout=60).ui("ras")
        assert stats["steps"] == 0 and "there is no trace" in stats["notes"][0]
