"""Talk to a ComfyUI server: turn a saved workflow into a prompt, run it, watch it, fetch the pictures.

A workflow as the browser saves it (nodes with places, links and widget values by position) is not what the
server runs (inputs by name). The browser makes the one into the other; `to_api` does the same here.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from .server import fetch

Prompt = dict[str, dict[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}}
Link = list  # [node id, output slot]

MUTED, BYPASSED = 2, 4
DECORATION = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}


class ComfyError(Exception):
    """The server refused or failed a prompt, or a workflow cannot be turned into one."""


# --- workflow to prompt -----------------------------------------------------------------------------


def to_api(workflow: dict, object_info: dict) -> Prompt:
    """The prompt of a saved workflow; `object_info` is the server's answer of the same name."""
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
    """A saved workflow's nodes and links, in either of the two formats that the browser has written."""

    def __init__(self, workflow: dict) -> None:
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {}
        for link in workflow["links"]:
            if isinstance(link, dict):
                self.links[link["id"]] = (link["origin_id"], link["origin_slot"])
            else:
                self.links[link[0]] = (link[1], link[2])

    def linked_inputs(self, node: dict) -> dict[str, Any]:
        """The inputs of a node that come from others, by name."""
        found = {one["name"]: self._source(one.get("link")) for one in node.get("inputs", [])}
        return {name: value for name, value in found.items() if value is not None}

    def _source(self, link_id: int | None) -> Any:
        """Where a link really comes from: through reroutes and bypassed nodes; None when nothing is left."""
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
    """The link a bypassed node hands on at an output: of the input opposite, or the first of its type."""
    wanted = node["outputs"][slot]["type"]
    inputs = node.get("inputs", [])
    for one in [*inputs[slot : slot + 1], *inputs]:
        if one["type"] == wanted:
            return one.get("link")
    return None


def _widget_values(node: dict, spec: dict) -> dict[str, Any]:
    """A node's widget values by name. The file has them by position, in the order of the node's inputs."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    named, rest = {}, list(values)
    for name, (kind, options) in _inputs_in_order(spec):
        if not _is_widget(kind, options) or not rest:
            continue
        named[name] = rest.pop(0)
        # The browser adds a widget of its own after a seed, and a button after a file to upload.
        if rest and kind == "INT" and _controlled(name, options) and rest[0] in SEED_CONTROLS:
            rest.pop(0)
        elif rest and (options.get("image_upload") or options.get("audio_upload")):
            rest.pop(0)
    return named


def _inputs_in_order(spec: dict) -> list[tuple[str, tuple[Any, dict]]]:
    """Every input as (name, (type, options)), required ones first."""
    inputs = {**spec.get("required", {}), **spec.get("optional", {})}
    return [(name, (one[0], one[1] if len(one) > 1 else {})) for name, one in inputs.items()]


def _is_widget(kind: Any, options: dict) -> bool:
    """Whether an input has a value of its own in the browser; a list is a choice in the old notation."""
    return not options.get("forceInput") and (isinstance(kind, list) or kind in WIDGET_TYPES)


def _controlled(name: str, options: dict) -> bool:
    return bool(options.get("control_after_generate")) or name in ("seed", "noise_seed")


# --- running prompts --------------------------------------------------------------------------------


@dataclass
class Result:
    """What a prompt gave: each node's `ui` output, and how long it took, by this machine's clock."""

    prompt_id: str
    outputs: dict[str, dict[str, list]]
    seconds: float
    node_seconds: dict[str, float] = field(default_factory=dict)

    def images(self, node_id: str) -> list[dict]:
        """References to the pictures that a node shows, for `Client.image`."""
        return self.outputs.get(node_id, {}).get("images", [])

    def ui(self, key: str) -> list:
        """Everything that nodes put under one key of their `ui` output."""
        return [item for output in self.outputs.values() for item in output.get(key, [])]


Progress = Callable[[str, int, int], None]  # node id, step, steps


class Client:
    """A ComfyUI server at an address such as http://127.0.0.1:8188."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str) -> Any:
        """GET a path and read its JSON."""
        return json.loads(fetch(self.url + path))

    def object_info(self) -> dict:
        """Every node the server knows, with its inputs."""
        return self.get("/object_info")

    def image(self, reference: dict) -> bytes:
        """The file of a picture that a node shows."""
        return fetch(f"{self.url}/view?{urllib.parse.urlencode(reference)}")

    def queue(self, prompt: Prompt, client_id: str = "") -> str:
        """Queue a prompt and return its id; a prompt that the server rejects is a ComfyError."""
        body = json.dumps({"prompt": prompt, "client_id": client_id}).encode()
        try:
            return json.loads(fetch(f"{self.url}/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise ComfyError(f"The server rejected the prompt: {_rejection(error.read())}") from None

    def run(self, prompt: Prompt, progress: Progress | None = None, timeout: float = 600) -> Result:
        """Run a prompt to its end. Raises ComfyError with the node's own message when it fails."""
        return asyncio.run(asyncio.wait_for(self._run(prompt, progress), timeout))

    async def _run(self, prompt: Prompt, progress: Progress | None) -> Result:
        client_id = uuid.uuid4().hex
        address = f"{self.url}/ws?clientId={client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            watch = _Watch(await asyncio.to_thread(self.queue, prompt, client_id), progress)
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT and watch.see(json.loads(message.data)):
                    break
            else:
                raise ComfyError("The server closed the connection in the middle of a prompt; see its log.")
        outputs = await self._outputs(watch.prompt_id)
        return Result(watch.prompt_id, outputs, watch.clock() - watch.start, watch.node_seconds)

    async def _outputs(self, prompt_id: str) -> dict:
        # The server tells of success a moment before it writes the history.
        for _ in range(200):
            history = await asyncio.to_thread(self.get, f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]["outputs"]
            await asyncio.sleep(0.05)
        raise ComfyError("The prompt ended well, but the server has no history of it; see its log.")


class _Watch:
    """Follows one prompt through the server's messages."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, prompt_id: str, progress: Progress | None) -> None:
        self.prompt_id, self._progress = prompt_id, progress
        self.start = self._since = self.clock()
        self._node: str | None = None
        self.node_seconds: dict[str, float] = {}

    def see(self, message: dict) -> bool:
        """Take in a message; True when the prompt has ended well, ComfyError when it has not."""
        kind, data = message.get("type"), message.get("data") or {}
        if data.get("prompt_id") != self.prompt_id:
            return False
        if kind == "executing":
            self._enter(data.get("node"))
        elif kind == "progress" and self._progress:
            self._progress(str(data.get("node")), data["value"], data["max"])
        elif kind == "execution_error":
            node = f"{data.get('node_type')} (node {data.get('node_id')})"
            raise ComfyError(f"{node} failed: {data.get('exception_message')}")
        elif kind == "execution_interrupted":
            raise ComfyError("The prompt was interrupted.")
        elif kind == "execution_success":
            self._enter(None)
            return True
        return False

    def _enter(self, node: str | None) -> None:
        now = self.clock()
        if self._node is not None:
            self.node_seconds[self._node] = self.node_seconds.get(self._node, 0.0) + now - self._since
        self._node, self._since = node, now


def _rejection(body: bytes) -> str:
    """The server's reasons, one a node input."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    reasons = [
        f"{node['class_type']}: {error['message']} ({error['details']})"
        for node in (answer.get("node_errors") or {}).values()
        for error in node["errors"]
    ]
    return "; ".join(reasons) or str(answer.get("error", answer))
