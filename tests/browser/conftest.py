"""The browser, and a function that runs a scenario of scenarios.mjs in it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ras_pack.dev.browser import Browser, NoBrowser, find
from ras_pack.dev.server import fetch

HERE = Path(__file__).parent
OUTPUT = HERE / "output"
LIMIT = 300  # seconds for one scenario; a busy machine with two cores needs about 20


@pytest.fixture(scope="session")
def browser() -> Browser:
    """A Chromium and playwright-core to control it. If either is missing, the test is skipped."""
    try:
        return find()
    except NoBrowser as reason:
        pytest.skip(f"no browser to test in: {reason}")


@pytest.fixture(scope="session", params=["classic", "nodes2"])
def nodes(request: pytest.FixtureRequest) -> str:
    """Which of the two kinds of nodes the front end shows: nodes drawn on a canvas, or Nodes 2.0."""
    return request.param


@pytest.fixture(scope="session")
def drive(nodes: str, browser: Browser, server) -> Callable[..., dict]:
    """A function `drive(scenario, **job)` that runs a scenario in the browser and returns its report."""
    output = OUTPUT / nodes
    output.mkdir(parents=True, exist_ok=True)
    # Otherwise, the templates dialog would cover the canvas.
    fetch(f"{server.url}/settings/Comfy.TutorialCompleted", b"true")
    nodes2 = json.dumps(nodes == "nodes2").encode()

    def send(scenario: str, **job) -> dict:
        fetch(f"{server.url}/settings/Comfy.VueNodes.Enabled", nodes2)
        job |= {"scenario": scenario, "url": server.url, "output": str(output)}
        job |= {"chromium": browser.chromium, "playwright": str(browser.playwright)}
        command = [browser.node, str(HERE / "scenarios.mjs"), json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, f"{scenario}:\n{done.stderr}"
        return json.loads(done.stdout)

    return send
