"""Every template of the pack, run on a real server, with small models instead of a user's checkpoints."""

import json
import shutil

import pytest
from ras_pack.dev import demo_run as demo
from ras_pack.dev.server import fetch
from ras_pack.dev.workflow import Prompt, to_api
from ras_pack.ras_core.method.family_plans import family_plans
from support import lumina_next_files
from support.comfy import ROOT
from support.server import EXAMPLES

pytestmark = pytest.mark.server

STEPS = 6
TEMPLATES = sorted(path.stem for path in EXAMPLES.glob("*.json"))
LUMINA_NEXT = "RASLuminaNextLoader"
TEXTS = ("text", "user_prompt", "prompt")  # of ComfyUI's text encoders
MODELS, VAES = ("CheckpointLoaderSimple", "UNETLoader"), {"CheckpointLoaderSimple": 2, "VAELoader": 0}
LOADERS = (*MODELS, "VAELoader", "CLIPLoader", "DualCLIPLoader")
IMAGE = "example.png"
"""The image that ComfyUI has as an example of an input, and that the templates for editing load."""


def needs_demo_model(prompt: Prompt) -> bool:
    return any(demo.nodes_of(prompt, loader) for loader in MODELS)


def with_demo_model(prompt: Prompt, name: str) -> Prompt:
    """Replace the loaders of a template by the demo model of the nearest family, ComfyUI's text encoders
    by the demo prompts, and sizes that only the template's own model has.
    """
    family = next((family for family in ("lumina2", "flux") if family in name), "sd3")
    (loader,) = [key for kind in MODELS for key in demo.nodes_of(prompt, kind)]
    vaes = [[key, slot] for kind, slot in VAES.items() for key in demo.nodes_of(prompt, kind)]
    changed = {loader: {"class_type": "RASDemoModel", "inputs": {"family": family}}}
    for key, node in prompt.items():
        kind, inputs = node["class_type"], node["inputs"]
        if "clip" in inputs:
            (text,) = [inputs[name] for name in TEXTS if name in inputs]
            changed[key] = {"class_type": "RASDemoPrompt", "inputs": {"text": text}}
        elif kind == "EmptyFlux2LatentImage":
            changed[key] = {"class_type": "EmptySD3LatentImage", "inputs": inputs}
        elif kind == "FluxKontextImageScale":
            size = {"width": 128, "height": 128, "upscale_method": "area", "crop": "center"}
            changed[key] = {"class_type": "ImageScale", "inputs": {**inputs, **size}}
        elif kind not in LOADERS:
            linked = {name: [loader, 1] for name, value in inputs.items() if value in vaes}
            changed[key] = {"class_type": kind, "inputs": {**inputs, **linked}}
    return changed


def with_input_image(server) -> None:
    folder = server.log.parent / "input"
    folder.mkdir(exist_ok=True)
    shutil.copy(ROOT / "assets" / "icon.png", folder / IMAGE)


def shortened(prompt: Prompt, speed: str = "custom", steps: int = STEPS) -> Prompt:
    """The prompt at 128 px. If `speed` is custom: two dense steps, then four with half of the tokens."""
    settings = {"steps": steps, "speed": speed, "start_percent": 0.3, "sample_ratio": 0.5}
    for node in prompt.values():
        for name, value in settings.items():
            if name in node["inputs"]:
                node["inputs"][name] = value
    return demo.with_size(prompt, 128)


def prompt_of(server, name: str) -> Prompt:
    """The template as a prompt; skips the test if this ComfyUI is older than one of the template's nodes."""
    workflow = server.workflow(f"{name}.json")
    kinds = {node["type"] for node in workflow["nodes"]} - {"MarkdownNote"}
    if missing := sorted(kind for kind in kinds - server.object_info.keys() if not kind.startswith("RAS")):
        pytest.skip(f"this ComfyUI does not have {', '.join(missing)}")
    return to_api(workflow, server.object_info)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_generates_an_image_and_a_trace(server, name):
    prompt = prompt_of(server, name)
    if loaders := demo.nodes_of(prompt, LUMINA_NEXT):
        lumina_next_files.write_folder(server.log.parent / "models" / "diffusers" / "tiny-lumina-next")
        prompt[loaders[0]]["inputs"]["folder"] = "tiny-lumina-next"
    elif needs_demo_model(prompt):
        prompt = with_demo_model(prompt, name)
    with_input_image(server)
    result = server.client.run(shortened(prompt), timeout=120)
    (reference,) = result.images(demo.only(prompt, "SaveImage"))
    extrema = server.image(reference).convert("RGB").getextrema()
    assert any(low < high for low, high in extrema)  # not one flat colour
    (stats,) = result.ui("ras")
    assert (stats["steps"], stats["regional_steps"], stats["notes"]) == (STEPS, 4, [])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_server_with_the_files_accepts_a_template_as_it_is(server, name):
    """ComfyUI checks names, types, ranges and choices of all inputs. The files are empty, so the prompt must
    not be run; it is taken from the queue or stopped.
    """
    prompt = prompt_of(server, name)
    if demo.nodes_of(prompt, LUMINA_NEXT):
        pytest.skip("RAS Lumina-Next Loader offers only folders with all files")
    with_input_image(server)
    files = {one["name"]: one["directory"] for node in server.workflow(f"{name}.json")["nodes"]
             for one in node["properties"].get("models", [])}  # fmt: skip
    files |= {prompt[key]["inputs"]["ckpt_name"]: "checkpoints" for key in demo.nodes_of(prompt, MODELS[0])}
    for file, folder in files.items():
        path = server.log.parent / "models" / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    answer = json.loads(fetch(f"{server.url}/prompt", json.dumps({"prompt": prompt}).encode()))
    fetch(f"{server.url}/queue", json.dumps({"clear": True}).encode())
    fetch(f"{server.url}/interrupt", b"{}")
    assert answer["prompt_id"] and answer["node_errors"] == {}


def test_a_template_at_twice_the_speed(server):
    prompt = with_demo_model(to_api(server.workflow("ras_sd3.json"), server.object_info), "ras_sd3")
    (patch,) = demo.nodes_of(prompt, "RASPatchModel")
    assert prompt[patch]["inputs"]["speed"] == "2x"
    (stats,) = server.client.run(shortened(prompt, "2x", 16), timeout=120).ui("ras")
    plan = family_plans("sd3").best("2x").resized(16)
    assert (stats["steps"], stats["notes"]) == (plan.steps, [])
    told = f"2x: {plan.steps} steps instead of 16, {len(plan.dense_steps)} dense, "
    assert stats["plan"].startswith(told) and stats["regional_steps"] > 0


def test_a_template_with_few_steps_runs_as_without_ras(server):
    prompt = with_demo_model(to_api(server.workflow("ras_sd3.json"), server.object_info), "ras_sd3")
    (stats,) = server.client.run(shortened(prompt, "2x"), timeout=120).ui("ras")
    assert (stats["steps"], stats["regional_steps"], stats["notes"]) == (STEPS, 0, [])
    assert "nothing to gain in 8 or fewer steps" in stats["reason"]
