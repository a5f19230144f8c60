"""Convert a saved workflow to a prompt.

ComfyUI's browser page saves a workflow: nodes with positions, links between them, and lists of widget values.
The server runs a prompt: nodes whose inputs have names. The page converts a workflow to a prompt before it
queues the prompt; `to_api` does the same conversion without a browser.
"""

from __future__ import annotations

from typing import Any

Prompt = dict[str, dict[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}}
Link = list  # [node id, output slot]

MUTED, BYPASSED = 2, 4
DECORATION = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}


class ComfyError(Exception):
    """A prompt was rejected or failed, or a workflow cannot be converted to a prompt."""


def to_api(workflow: dict, object_info: dict) -> Prompt:
    """Convert a saved workflow to a prompt. `object_info` is the server's response to GET /object_info."""
    graph = _Graph(workflow)
    prompt: Prompt = {}
    for node in graph.nodes.values():
        if node.get("mode", 0) in (MUTED, BYPASSED) or node["type"] in DECORATION | {
            "Reroute",
            "PrimitiveNode",
        }:
            continue
        if node["type"] not in object_info:
            raise ComfyError(
                f"The workflow has a node {node['type']} (id {node['id']}) that the server does not know. "
                "Expected: nodes of ComfyUI and of this pack, and no subgraphs. "
                "See the server's log for a pack that failed to load, or save the workflow without that node."
            )
        spec = object_info[node["type"]]["input"]
        inputs = {**_widget_values(node, spec), **graph.linked_inputs(node)}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


class _Graph:
    """Nodes and links of a saved workflow. Some workflows save a link as an object, others as a list."""

    def __init__(self, workflow: dict) -> None:
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {}
        for link in workflow["links"]:
            if isinstance(link, dict):
                self.links[link["id"]] = (link["origin_id"], link["origin_slot"])
            else:
                self.links[link[0]] = (link[1], link[2])

    def linked_inputs(self, node: dict) -> dict[str, Any]:
        """The linked inputs of a node: [node id, output slot] or a primitive's value, by input name."""
        found = {one["name"]: self._source(one.get("link")) for one in node.get("inputs", [])}
        return {name: value for name, value in found.items() if value is not None}

    def _source(self, link_id: int | None) -> Any:
        """Where a link starts, traced back through reroutes and bypassed nodes; None if there is no start."""
        if link_id is None or link_id not in self.links:
            return None
        origin, slot = self.links[link_id]
        node = self.nodes[origin]
        mode = node.get("mode", 0)
        if mode == MUTED:
            return None
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute":
            return self._source(node["inputs"][0].get("link"))
        if mode == BYPASSED:
            return self._source(_passed_through(node, slot))
        return [str(origin), slot]


def _passed_through(node: dict, slot: int) -> int | None:
    """The id of the input link that a bypassed node passes on to its output `slot`.

    It is the link of the input at the same position, if that input has the output's type, else the link of
    the first input of that type.
    """
    wanted = node["outputs"][slot]["type"]
    inputs = node.get("inputs", [])
    for one in [*inputs[slot : slot + 1], *inputs]:
        if one["type"] == wanted:
            return one.get("link")
    return None


def _widget_values(node: dict, spec: dict) -> dict[str, Any]:
    """A node's widget values by input name. The workflow lists them without names, in the order of inputs."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    named, rest = {}, list(values)
    for name, (kind, options) in _inputs_in_order(spec):
        if not _is_widget(kind, options) or not rest:
            continue
        named[name] = rest.pop(0)
        # The browser saves another value after a seed (the change after each run) or an upload (a button).
        if rest and kind == "INT" and _controlled(name, options) and rest[0] in SEED_CONTROLS:
            rest.pop(0)
        elif rest and (options.get("image_upload") or options.get("audio_upload")):
            rest.pop(0)
    return named


def _inputs_in_order(spec: dict) -> list[tuple[str, tuple[Any, dict]]]:
    """Every input as (name, (type, options)), required inputs first."""
    inputs = {**spec.get("required", {}), **spec.get("optional", {})}
    return [(name, (one[0], one[1] if len(one) > 1 else {})) for name, one in inputs.items()]


def _is_widget(kind: Any, options: dict) -> bool:
    """Whether an input has a widget in the browser. A type that is a list is an old-style choice (COMBO)."""
    return not options.get("forceInput") and (isinstance(kind, list) or kind in WIDGET_TYPES)


def _controlled(name: str, options: dict) -> bool:
    return bool(options.get("control_after_generate")) or name in ("seed", "noise_seed")
