"""One real ComfyUI server for the tests, in a temporary directory, with the pack loaded as a custom node."""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ras_pack.demo.client import Client
from ras_pack.demo.host import ROOT, TREE, Host
from ras_pack.demo.server import Server

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


@contextmanager
def running_server(comfyui: Path) -> Iterator[RunningServer]:
    """Start ComfyUI's main.py with the pack, on the CPU, and stop it in the end."""
    # The interpreter that runs the tests has what ComfyUI needs; `make test` makes it the host's.
    host = Host(comfyui, Path(sys.executable), ours=comfyui == TREE)
    with tempfile.TemporaryDirectory(prefix="ras-server-", ignore_cleanup_errors=True) as base:
        log = Path(base) / "server.log"
        flags = ("--cpu", "--preview-method", "latent2rgb")
        with Server(host, Path(base), log, flags) as server:
            yield RunningServer(server.url, log, Client(server.url))
