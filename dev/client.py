"""A client for a ComfyUI server: run a prompt, follow its progress, download its images."""

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
from .workflow import ComfyError, Prompt


@dataclass
class Result:
    """The result of a prompt: each node's `ui` output, and the seconds that the client measured."""

    prompt_id: str
    outputs: dict[str, dict[str, list]]
    seconds: float
    node_seconds: dict[str, float] = field(default_factory=dict)

    def images(self, node_id: str) -> list[dict]:
        """References to the images that a node shows. `Client.image` downloads an image by its reference."""
        return self.outputs.get(node_id, {}).get("images", [])

    def ui(self, key: str) -> list:
        """The values that all nodes returned under the given key of their `ui` output, as one list."""
        return [item for output in self.outputs.values() for item in output.get(key, [])]


Progress = Callable[[str, int, int], None]  # node id, step, steps


class Client:
    """A ComfyUI server at an address such as http://127.0.0.1:8188."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str) -> Any:
        """GET a path of the server and parse the response as JSON."""
        return json.loads(fetch(self.url + path))

    def object_info(self) -> dict:
        """Descriptions of all node classes of the server, with their inputs."""
        return self.get("/object_info")

    def image(self, reference: dict) -> bytes:
        """The bytes of an image file, by its reference from `Result.images`."""
        return fetch(f"{self.url}/view?{urllib.parse.urlencode(reference)}")

    def queue(self, prompt: Prompt, client_id: str = "") -> str:
        """Queue a prompt and return its id. Raises ComfyError if the server rejects it."""
        body = json.dumps({"prompt": prompt, "client_id": client_id}).encode()
        try:
            return json.loads(fetch(f"{self.url}/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise ComfyError(f"The server rejected the prompt: {_rejection(error.read())}") from None

    def run(self, prompt: Prompt, progress: Progress | None = None, timeout: float = 600) -> Result:
        """Run a prompt until it ends. If a node fails, raises ComfyError with the node's own message."""
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
                raise ComfyError("The server closed the connection during a prompt; see the server's log.")
        outputs = await self._outputs(watch.prompt_id)
        return Result(watch.prompt_id, outputs, watch.clock() - watch.start, watch.node_seconds)

    async def _outputs(self, prompt_id: str) -> dict:
        # The server reports success shortly before it writes the history.
        for _ in range(200):
            history = await asyncio.to_thread(self.get, f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]["outputs"]
            await asyncio.sleep(0.05)
        raise ComfyError("The prompt succeeded, but the server has no history of it; see the server's log.")


class _Watch:
    """Follows one prompt through the messages that the server sends over the websocket."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, prompt_id: str, progress: Progress | None) -> None:
        self.prompt_id, self._progress = prompt_id, progress
        self.start = self._since = self.clock()
        self._node: str | None = None
        self.node_seconds: dict[str, float] = {}

    def see(self, message: dict) -> bool:
        """Process a message. Returns True if the prompt has succeeded; raises ComfyError if it has failed."""
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
    """The server's reasons for rejecting a prompt, one for each invalid node input."""
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
