"""One real ComfyUI server for the tests, in a temporary directory, with the pack loaded as a custom node."""

import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from ras_pack.dev.client import Client
from ras_pack.dev.environment import DevEnvironment, is_ours
from ras_pack.dev.paths import ROOT
from ras_pack.dev.server import Server, fetch
from ras_pack.dev.tree import link_pack

EXAMPLES = ROOT / "example_workflows"


@dataclass
class RunningServer:
    """A server that answers: its address, a client for it, its log."""

    url: str
    log: Path
    client: Client

    @cached_property
    def object_info(self) -> dict:
        """Every node the server knows, with its inputs."""
        return self.client.object_info()

    def workflow(self, name: str) -> dict:
        """An example workflow as the browser saved it."""
        return json.loads((EXAMPLES / name).read_text(encoding="utf-8"))

    def read(self, path: str) -> object:
        """What the server answers at a path, from its JSON."""
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        """What the server answers at a path."""
        return fetch(f"{self.url}{path}")

    def picture(self, reference: dict) -> Image.Image:
        """A picture that a run has made."""
        return Image.open(io.BytesIO(self.client.image(reference)))


@contextmanager
def running_server(comfyui: Path, install: Callable[[Path], None] = link_pack) -> Iterator[RunningServer]:
    """Start ComfyUI's main.py on the CPU, stop it in the end; `install` puts the pack into custom_nodes."""
    # The interpreter that runs the tests has what ComfyUI needs; `make test` takes the dev environment's.
    env = DevEnvironment(comfyui, Path(sys.executable), ours=is_ours(comfyui))
    with tempfile.TemporaryDirectory(prefix="ras-server-", ignore_cleanup_errors=True) as base:
        log = Path(base) / "server.log"
        flags = ("--cpu", "--preview-method", "latent2rgb")
        with Server(env, Path(base), log, flags, install) as server:
            yield RunningServer(server.url, log, Client(server.url))
