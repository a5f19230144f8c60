"""The pack's subgraph blueprint, as the server sends it to the front end's node library."""

import json

import pytest
from ras_pack.dev.paths import PACK, ROOT
from ras_pack.dev.server import fetch

pytestmark = pytest.mark.server

NAME = "RAS sampler"
INPUTS = {
    "model": "MODEL",
    "vae": "VAE",
    "positive": "CONDITIONING",
    "negative": "CONDITIONING",
    "latent_image": "LATENT",
}
OUTPUTS = {"IMAGE": "IMAGE", "summary": "IMAGE"}
PROMOTED = ["speed", "seed", "control_after_generate", "steps", "cfg"]
CONTROL = "control_after_generate"  # a widget that the front end puts behind a seed


@pytest.fixture(scope="module")
def entry(server, comfyui) -> dict:
    """What the server sends for the pack's subgraph blueprint, with the blueprint's text."""
    if not (comfyui / "app" / "subgraph_manager.py").is_file():
        pytest.skip("this ComfyUI serves no subgraph blueprints yet")
    listed = json.loads(fetch(f"{server.url}/global_subgraphs"))
    (key,) = [key for key, one in listed.items() if one["name"] == NAME]
    assert listed[key]["source"] == "custom_node"
    assert listed[key]["info"]["node_pack"] == f"custom_nodes.{PACK}"
    return json.loads(fetch(f"{server.url}/global_subgraphs/{key}"))


@pytest.fixture(scope="module")
def blueprint(entry) -> dict:
    return json.loads(entry["data"])


@pytest.fixture(scope="module")
def subgraph(blueprint) -> dict:
    (definition,) = blueprint["definitions"]["subgraphs"]
    return definition


def types_of(slots: list[dict]) -> dict[str, str]:
    return {slot["name"]: slot["type"] for slot in slots}


def widgets_of(info: dict) -> list[str]:
    """A node's widgets in the order in which a workflow stores their values."""
    names = []
    for name, (kind, options) in {**info["input"]["required"], **info["input"].get("optional", {})}.items():
        if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            names += [name, CONTROL] if options.get(CONTROL) else [name]
    return names


def test_the_server_serves_the_file(entry):
    text = (ROOT / "subgraphs" / f"{NAME}.json").read_text(encoding="utf-8")
    assert entry["name"] == NAME and entry["data"] == text
    assert "path" not in entry


def test_it_is_one_subgraph_node_as_the_front_end_requires(blueprint, subgraph):
    (node,) = blueprint["nodes"]
    assert node["type"] == subgraph["id"] and subgraph["name"] == node["title"] == NAME
    assert blueprint["links"] == [] and blueprint["extra"]["BlueprintDescription"]


def test_the_node_and_its_subgraph_have_the_same_slots(blueprint, subgraph):
    (node,) = blueprint["nodes"]
    assert types_of(node["inputs"]) == types_of(subgraph["inputs"]) == INPUTS
    assert types_of(node["outputs"]) == types_of(subgraph["outputs"]) == OUTPUTS
    assert list(types_of(node["inputs"])) == list(types_of(subgraph["inputs"]))


def test_its_nodes_exist_and_have_the_slots_that_it_stores(server, subgraph):
    assert [node["type"] for node in subgraph["nodes"]] == ["RASKSampler", "VAEDecode", "RASMaskPreview"]
    for node in subgraph["nodes"]:
        info = server.object_info[node["type"]]
        known = {**info["input"]["required"], **info["input"].get("optional", {})}
        assert {slot["name"] for slot in node["inputs"]} <= set(known)
        assert [slot["type"] for slot in node["outputs"]] == info["output"]


def test_its_values_are_the_defaults(server, subgraph):
    (sampler,) = [node for node in subgraph["nodes"] if node["type"] == "RASKSampler"]
    info = server.object_info["RASKSampler"]
    names, inputs = widgets_of(info), {**info["input"]["required"], **info["input"]["optional"]}
    values = dict(zip(names, sampler["widgets_values"], strict=True))
    assert values.pop(CONTROL) == "randomize"
    for name, value in values.items():
        assert value == inputs[name][1]["default"], name


def test_the_promoted_widgets_belong_to_the_sampler(server, blueprint, subgraph):
    (sampler,) = [node for node in subgraph["nodes"] if node["type"] == "RASKSampler"]
    promoted = blueprint["nodes"][0]["properties"]["proxyWidgets"]
    assert promoted == [[str(sampler["id"]), name] for name in PROMOTED]
    assert set(PROMOTED) <= set(widgets_of(server.object_info["RASKSampler"]))


def test_every_link_joins_slots_of_its_type(subgraph):
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    first, last = subgraph["inputNode"]["id"], subgraph["outputNode"]["id"]
    joined = set()
    for link in subgraph["links"]:
        source, target = link["origin_id"], link["target_id"]
        origin = (subgraph["inputs"] if source == first else nodes[source]["outputs"])[link["origin_slot"]]
        end = (subgraph["outputs"] if target == last else nodes[target]["inputs"])[link["target_slot"]]
        assert origin["type"] == end["type"] == link["type"]
        joined.add((nodes[source]["type"] if source in nodes else "", origin["name"], end["name"]))
    outside = {("", name, name) for name in INPUTS}
    inside = {("RASKSampler", "latent", "samples"), ("RASKSampler", "trace", "trace")}
    given = {("VAEDecode", "IMAGE", "IMAGE"), ("RASMaskPreview", "summary", "summary")}
    assert joined == outside | inside | given | {("VAEDecode", "IMAGE", "images")}
