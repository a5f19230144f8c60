"""Which samplers web/samplers.js finds behind a node, also in subgraphs, and what it knows of their runs.

The script runs in Node.js, with a stand-in for the module of ComfyUI's front end that it imports.
"""

import pytest
from support.node_js import run_page

PAGE = """
import { readFileSync } from "node:fs";
import { app } from "./scripts/app.js";
import { idOf } from "./extensions/pack/graph.js";
import { isInpainting, samplersOf, sizeOf, stepsOf } from "./extensions/pack/samplers.js";
const given = JSON.parse(readFileSync(0, "utf8"));
const graphs = given.map(({ nodes, links, slots }) => ({
  ...slots, nodes,
  links: Object.fromEntries(links.map(([id, origin_id, origin_slot, target_id, target_slot]) =>
    [id, { origin_id, origin_slot, target_id, target_slot }])),
  getNodeById: (id) => nodes.find((one) => one.id === id),
}));
for (const graph of graphs) {
  for (const node of graph.nodes) {
    node.graph = graph;
    if (node.inside) node.subgraph = graphs[node.inside];
  }
}
app.graph = graphs[0];
const all = graphs.flatMap(({ nodes }) => nodes);
const found = samplersOf(all.find((one) => one.comfyClass === "RASPatchModel"));
console.log(JSON.stringify(found.map((one) => [idOf(one), stepsOf(one), isInpainting(one), sizeOf(one)])));
"""
INPUT, OUTPUT = -10, -20
TYPES = {"model": "MODEL", "latent_image": "LATENT", "samples": "LATENT", "steps": "INT"}


class Graph:
    """A graph of the page. Its nodes have the slots that its links name."""

    def __init__(self):
        self.nodes, self.links = {}, []
        self.slots = {"inputs": [], "outputs": []}

    def add(self, number, kind, **changes):
        self.nodes[number] = {"id": number, "comfyClass": kind, "inputs": [], "outputs": [], **changes}
        widgets = changes.get("widgets", {})
        self.nodes[number]["widgets"] = [{"name": name, "value": value} for name, value in widgets.items()]

    def link(self, origin, target, name="model"):
        """Link new slots of two nodes, or of the subgraph itself (INPUT, OUTPUT).

        Args:
            origin, target: the number of a node, or a pair of it and of a slot that it already has.
        """
        number = len(self.links) + 1
        ends = [
            self._slot(origin, "outputs" if origin != INPUT else "inputs", "links", name, number),
            self._slot(target, "inputs" if target != OUTPUT else "outputs", "link", name, number),
        ]
        self.links.append([number, *ends[0], *ends[1]])

    def _slot(self, end, side, key, name, link):
        node, slot = end if isinstance(end, tuple) else (end, None)
        slots = self.slots[side] if node in (INPUT, OUTPUT) else self.nodes[node][side]
        if slot is None:
            slots.append({"name": name, "type": TYPES[name], "linkIds": [], "links": [], "link": None})
        one = slots[-1 if slot is None else slot]
        one["linkIds"].append(link)
        one[key] = link if key == "link" else [*one["links"], link]
        return node, len(slots) - 1 if slot is None else slot


def samplers(tmp_path, *graphs):
    """The samplers behind RAS Patch Model: of each the id, the steps, whether it inpaints, and the size."""
    given = [{"nodes": list(one.nodes.values()), "links": one.links, "slots": one.slots} for one in graphs]
    return run_page(tmp_path, PAGE, ("graph.js", "samplers.js"), given)


def patched(*kinds):
    """A graph with RAS Patch Model (2), and as many nodes of these kinds from 3 on that get its model."""
    graph = Graph()
    graph.add(2, "RASPatchModel")
    for number, (kind, changes) in enumerate(kinds, 3):
        graph.add(number, kind, **changes)
        graph.link((2, 0) if number > 3 else 2, number)
    return graph


def with_sampler(steps=20, number=7):
    """A subgraph with a sampler, which gets its model from the subgraph's first input."""
    graph = Graph()
    graph.add(number, "KSampler", widgets={"steps": steps})
    graph.link(INPUT, number)
    return graph


def test_in_a_subgraph(tmp_path):
    root = patched(("Subgraph", {"inside": 1}))
    assert samplers(tmp_path, root, with_sampler()) == [["3:7", 20, False, {}]]


def test_in_a_subgraph_that_shows_the_steps(tmp_path):
    root = patched(("Subgraph", {"inside": 1, "widgets": {"steps": 6}}))
    root.nodes[3]["inputs"].append({"name": "steps", "type": "INT", "link": None})
    inner = with_sampler()
    inner.link(INPUT, 7, "steps")
    assert samplers(tmp_path, root, inner) == [["3:7", 6, False, {}]]


def test_in_a_subgraph_of_a_subgraph_behind_reroutes(tmp_path):
    root = patched(("Reroute", {"isVirtualNode": True}))
    root.add(4, "Subgraph", inside=1)
    root.link(3, 4)
    outer = Graph()
    outer.add(5, "Reroute", isVirtualNode=True)
    outer.add(6, "Subgraph", inside=2)
    outer.link(INPUT, 5)
    outer.link(5, 6)
    assert samplers(tmp_path, root, outer, with_sampler()) == [["4:6:7", 20, False, {}]]


def test_behind_a_subgraph(tmp_path):
    """The subgraph changes the model, as with a LoRA."""
    root = patched(("Subgraph", {"inside": 1}), ("KSampler", {"widgets": {"steps": 9}}))
    root.link(3, 4)
    del root.links[1]  # that of the patch to the sampler
    inner = Graph()
    inner.add(5, "LoraLoaderModelOnly")
    inner.link(INPUT, 5)
    inner.link(5, OUTPUT)
    assert samplers(tmp_path, root, inner) == [["4", 9, False, {}]]


def test_outside_of_the_patchs_own_subgraph(tmp_path):
    root = Graph()
    root.add(1, "Subgraph", inside=1)
    root.add(4, "KSampler", widgets={"steps": 9})
    root.link(1, 4)
    inner = patched()
    inner.link(2, OUTPUT)
    assert samplers(tmp_path, root, inner) == [["4", 9, False, {}]]


def test_two_nodes_with_the_same_subgraph(tmp_path):
    """Each shows its own number of steps; the one that is linked first runs last."""
    shown = {"inside": 1, "widgets": {"steps": 6}}
    root = patched(("Subgraph", shown), ("Subgraph", shown | {"widgets": {"steps": 20}}))
    for number in (3, 4):
        root.nodes[number]["inputs"].append({"name": "steps", "type": "INT", "link": None})
    inner = with_sampler()
    inner.link(INPUT, 7, "steps")
    inner.link(INPUT, 7, "latent_image")
    inner.link(7, OUTPUT, "samples")
    root.link(4, 3, "latent_image")
    assert samplers(tmp_path, root, inner) == [["4:7", 20, False, {}], ["3:7", 6, False, {}]]


@pytest.mark.parametrize("mode", [2, 4], ids=["muted", "bypassed"])
def test_in_a_subgraph_that_is_turned_off(tmp_path, mode):
    root = patched(("Subgraph", {"inside": 1, "mode": mode}), ("KSampler", {"widgets": {"steps": 9}}))
    assert samplers(tmp_path, root, with_sampler()) == [["4", 9, False, {}]]


def test_its_latent_is_outside(tmp_path):
    root = patched(("Subgraph", {"inside": 1}))
    root.add(8, "EmptySD3LatentImage", widgets={"width": 512, "height": 768})
    root.link(8, 3, "latent_image")
    inner = with_sampler()
    inner.link(INPUT, 7, "latent_image")
    size = {"width": 512, "height": 768}
    assert samplers(tmp_path, root, inner) == [["3:7", 20, False, size]]
    root.nodes[8] |= {"comfyClass": "SetLatentNoiseMask"}
    assert samplers(tmp_path, root, inner) == [["3:7", 20, True, {}]]


def test_none(tmp_path):
    assert samplers(tmp_path, patched(("PreviewAny", {}))) == []
