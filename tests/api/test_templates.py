"""Every template of the pack, run on a real server, with small models instead of a user's checkpoints."""

import pytest
from ras_pack.dev import demo_run as demo
from ras_pack.dev.workflow import Prompt, to_api
from support import lumina_next_files
from support.server import EXAMPLES

pytestmark = pytest.mark.server

STEPS = 6
TEMPLATES = sorted(path.stem for path in EXAMPLES.glob("*.json"))
LUMINA_NEXT = "RASLuminaNextLoader"
TEXTS = ("text", "user_prompt")  # of ComfyUI's text encoders


def with_demo_model(prompt: Prompt, family: str) -> Prompt:
    """Replace the checkpoint by the pack's demo model, and ComfyUI's text encoders by the demo prompts."""
    (loader,) = demo.nodes_of(prompt, "CheckpointLoaderSimple")
    prompt[loader] = {"class_type": "RASDemoModel", "inputs": {"family": family}}
    for key, node in prompt.items():
        if node["inputs"].get("clip") == [loader, 1]:
            (text,) = [node["inputs"][name] for name in TEXTS if name in node["inputs"]]
            prompt[key] = {"class_type": "RASDemoPrompt", "inputs": {"text": text}}
        elif node["inputs"].get("vae") == [loader, 2]:
            node["inputs"]["vae"] = [loader, 1]
    return prompt


def shortened(prompt: Prompt, speed: str = "custom") -> Prompt:
    """The prompt at 256 px. If `speed` is custom: two dense steps, then four with half of the tokens."""
    settings = {"steps": STEPS, "speed": speed, "start_percent": 0.3, "sample_ratio": 0.5}
    for node in prompt.values():
        for name, value in settings.items():
            if name in node["inputs"]:
                node["inputs"][name] = value
    return demo.with_size(prompt, 256)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_generates_an_image_and_a_trace(server, name):
    prompt = to_api(server.workflow(f"{name}.json"), server.object_info)
    if loaders := demo.nodes_of(prompt, LUMINA_NEXT):
        lumina_next_files.write_folder(server.log.parent / "models" / "diffusers" / "tiny-lumina-next")
        prompt[loaders[0]]["inputs"]["folder"] = "tiny-lumina-next"
    elif not demo.nodes_of(prompt, "RASDemoModel"):
        prompt = with_demo_model(prompt, "lumina2" if "lumina2" in name else "sd3")
    result = server.client.run(shortened(prompt), timeout=120)
    (reference,) = result.images(demo.only(prompt, "SaveImage"))
    extrema = server.image(reference).convert("RGB").getextrema()
    assert any(low < high for low, high in extrema)  # not one flat colour
    (stats,) = result.ui("ras")
    assert (stats["steps"], stats["regional_steps"], stats["notes"]) == (STEPS, 4, [])


def test_a_template_at_twice_the_speed(server):
    prompt = with_demo_model(to_api(server.workflow("ras_sd3.json"), server.object_info), "sd3")
    (patch,) = demo.nodes_of(prompt, "RASPatchModel")
    assert prompt[patch]["inputs"]["speed"] == "2x"
    (stats,) = server.client.run(shortened(prompt, "2x"), timeout=120).ui("ras")
    assert (stats["steps"], stats["plan"], stats["notes"]) == (
        4,
        "2x: 4 of 6 steps, 2 dense, 86 % of tokens",
        [],
    )
