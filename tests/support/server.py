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
from ras_pack.dev.paths import PACK, ROOT
from ras_pack.dev.server import Server, fetch
from ras_pack.dev.tree import link_pack

EXAMPLES = ROOT / "example_workflows"
# A custom node pack for the server. The live view sends at most four messages a second; a fast machine
# samples a demo model's 16 steps in less, and a test could not see the view change.
PACE_FILE = "paced_steps.py"
# It also lets plans have regional steps in images as small as those of the tests.
PACE = """
import sys
import time
from comfy.utils import ProgressBar
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
_update = ProgressBar.update_absolute
_last = 0.0


def update_absolute(self, *arguments, **keywords):
    global _last
    time.sleep(max(0.0, _last + 0.08 - time.monotonic()))
    _last = time.monotonic()
    return _update(self, *arguments, **keywords)


async def allow_small_images(app):
    for name, module in list(sys.modules.items()):
        if name.endswith("ras_core.method.small_images"):
            module.LEAST_TOKENS = 0


ProgressBar.update_absolute = update_absolute
PromptServer.instance.app.on_startup.append(allow_small_images)  # all packs are loaded by then
"""


@dataclass
class RunningServer:
    """A running server: its address, a client for it, its log."""

    url: str
    log: Path
    client: Client

    @cached_property
    def object_info(self) -> dict:
        """Every node the server knows, with its inputs."""
        return self.client.object_info()

    def workflow(self, name: str) -> dict:
        """An example workflow in the form that the browser saves."""
        return json.loads((EXAMPLES / name).read_text(encoding="utf-8"))

    def read(self, path: str) -> object:
        """The server's JSON response at a path."""
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        """The server's response at a path."""
        return fetch(f"{self.url}{path}")

    def image(self, reference: dict) -> Image.Image:
        """An image that a run has saved."""
        return Image.open(io.BytesIO(self.client.image(reference)))


@contextmanager
def running_server(comfyui: Path, install: Callable[[Path], None] = link_pack) -> Iterator[RunningServer]:
    """Start ComfyUI's main.py on the CPU, and stop it at the end; `install` adds the pack to custom_nodes.

    A sampling step takes at least 0.08 s.
    """

    def install_all(custom_nodes: Path) -> None:
        install(custom_nodes)
        (custom_nodes / PACE_FILE).write_text(PACE, encoding="utf-8")

    # The interpreter that runs the tests has ComfyUI's packages; `make test` uses that of the dev
    # environment.
    env = DevEnvironment(comfyui, Path(sys.executable), ours=is_ours(comfyui))
    with tempfile.TemporaryDirectory(prefix="ras-server-", ignore_cleanup_errors=True) as base:
        log = Path(base) / "server.log"
        flags = ("--cpu", "--preview-method", "latent2rgb", "--whitelist-custom-nodes", PACK, PACE_FILE)
        with Server(env, Path(base), log, flags, install_all) as server:
            yield RunningServer(server.url, log, Client(server.url))
