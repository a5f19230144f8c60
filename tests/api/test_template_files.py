"""The files of the templates: nodes and links of the saved workflows, notes and thumbnails."""

import json
import re
from itertools import combinations

import pytest
from PIL import Image
from ras_pack.dev.thumbnails import TILES, draw
from support.comfy import ROOT
from support.server import EXAMPLES

TEMPLATES = sorted(path.stem for path in EXAMPLES.glob("*.json"))
TITLE = 30  # height of a node's title, which is above its position
SCREEN = (1960, 1400)
"""Width and height that a window of 1440 x 1040 pixels shows at the scale of the templates."""

NODE_NAME = "Node name for S&R"
COMFYUI = "0.30.0"
"""The ComfyUI in which the templates were saved last."""

DEMOS = ("ras_1_start_here", "ras_lumina2_demo")

LOADERS = ("UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader")


def workflow(name: str) -> dict:
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def ends_of_links(nodes: list[dict], side: str) -> set[tuple]:
    """Link, node, slot and type at every end of a link, as the nodes have them."""
    found = set()
    for node in nodes:
        for slot, one in enumerate(node[side]):
            links = one["links"] if side == "outputs" else [one["link"]]
            found |= {(link, node["id"], slot, one["type"]) for link in links or () if link is not None}
    return found


def box(node: dict) -> tuple[float, float, float, float]:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


@pytest.mark.parametrize("name", TEMPLATES)
class TestWorkflow:
    def test_links_and_nodes_agree(self, name):
        given = workflow(name)
        links = given["links"]
        starts = {(link, node, slot, kind) for link, node, slot, _, _, kind in links}
        ends = {(link, node, slot, kind) for link, _, _, node, slot, kind in links}
        assert ends_of_links(given["nodes"], "outputs") == starts
        assert ends_of_links(given["nodes"], "inputs") == ends
        assert len({node["id"] for node in given["nodes"]}) == len(given["nodes"])
        assert given["last_node_id"] == max(node["id"] for node in given["nodes"])
        assert given["last_link_id"] == max(link[0] for link in links)

    def test_nodes_do_not_overlap_and_are_on_the_first_screen(self, name):
        nodes = workflow(name)["nodes"]
        for one, other in combinations(nodes, 2):
            a, b = box(one), box(other)
            is_apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert is_apart, (one["type"], other["type"])
        right, bottom = (max(box(node)[side] for node in nodes) for side in (2, 3))
        assert right <= SCREEN[0] and bottom <= SCREEN[1]

    def test_nodes_name_their_pack(self, name):
        """Without these properties, ComfyUI lists the nodes of a missing pack under "Unknown pack"."""
        version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
        for node in workflow(name)["nodes"]:
            if node["type"] != "MarkdownNote":
                ours = node["type"].startswith("RAS")
                given = {key: node["properties"].get(key) for key in (NODE_NAME, "cnr_id", "ver")}
                pack = ("multirate-ras", version) if ours else ("comfy-core", COMFYUI)
                assert given == dict(zip((NODE_NAME, "cnr_id", "ver"), (node["type"], *pack), strict=True))

    def test_the_speed_is_2x_and_no_setting_without_effect_is_changed(self, name):
        """Without ComfyUI's seed control, the values are in the order of the node's inputs."""
        for node in workflow(name)["nodes"]:
            if node["type"] in ("RASPatchModel", "RASKSampler"):
                values = [value for value in node["widgets_values"] if value != "fixed"]
                assert values[0] == "2x"
                assert values[-6:] == [0.5, 0.2, 1.0, 0, "auto", "auto"]

    def test_a_note_promises_closeness_only_where_it_is_shown(self, name):
        """It was measured for three families, whose file the front end must know."""
        (note,) = [node for node in workflow(name)["nodes"] if node["type"] == "MarkdownNote"]
        (text,) = note["widgets_values"]
        promise = "and, once your" if name not in DEMOS else "and how close its image will be"
        measured = ("ras_sd3", "ras_lumina2", "ras_flux1", *DEMOS)
        assert ("how close" in text) == (promise in text) == (name in measured)

    def test_a_note_says_in_three_steps_what_to_do(self, name):
        (note,) = [node for node in workflow(name)["nodes"] if node["type"] == "MarkdownNote"]
        (text,) = note["widgets_values"]
        assert text.splitlines()[0].startswith("## ") and "in three steps" in text.splitlines()[0]
        numbered = [line[:3] for line in text.splitlines() if line[:1].isdigit()]
        assert numbered == ["1. ", "2. ", "3. "]

    def test_a_note_has_no_code_style(self, name):
        """In the colours of a note, it can hardly be read."""
        (note,) = [node for node in workflow(name)["nodes"] if node["type"] == "MarkdownNote"]
        assert "`" not in note["widgets_values"][0]

    def test_loaders_name_the_files_and_where_to_get_them(self, name):
        for node in workflow(name)["nodes"]:
            if node["type"] in LOADERS:
                files = [value for value in node["widgets_values"] if value.endswith(".safetensors")]
                models = node["properties"]["models"]
                assert files and [model["name"] for model in models] == files
                assert all(model["url"].endswith(f"/{model['name']}") for model in models)
                assert all(model["url"].startswith("https://huggingface.co/") for model in models)

    def test_a_thumbnail(self, name):
        path = EXAMPLES / f"{name}.jpg"
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (640, 360))
        assert path.stat().st_size < (25_000 if name in TILES else 50_000)


@pytest.mark.parametrize("name", DEMOS)
def test_each_output_of_the_demo_prompt_leads_to_the_input_of_its_name(name):
    nodes = {node["type"]: node for node in workflow(name)["nodes"]}
    sources = {each["name"]: each["links"] for each in nodes["RASDemoPrompt"]["outputs"]}
    inputs = {each["name"]: [each["link"]] for each in nodes["RASKSampler"]["inputs"]}
    assert sources == {side: inputs[side] for side in ("positive", "negative")}


def test_the_first_template_to_take_is_the_first_by_name():
    """Its name is also the title that ComfyUI shows."""
    assert TEMPLATES[0] == DEMOS[0]


def test_each_thumbnail_is_of_a_template_and_differs_from_the_others():
    images = sorted(EXAMPLES.glob("*.jpg"))
    assert [path.stem for path in images] == TEMPLATES
    assert len({path.read_bytes() for path in images}) == len(images)


@pytest.mark.parametrize("name", TILES)
def test_tiles_are_drawn_from_the_plans(name):
    tile = draw(name)
    assert tile.size == (640, 360)
    assert len(tile.getcolors(2**20)) > 4  # background, text and three kinds of steps
