"""The live view on a real server: only clients that have asked for its messages receive them."""

import asyncio
import json
import urllib.error

import aiohttp
import pytest
from ras_pack.dev import demo_run as demo
from ras_pack.dev.server import fetch

pytestmark = pytest.mark.server

PATH = "/multirate_ras/live"


@pytest.mark.parametrize("path", [PATH, f"/api{PATH}"])
def test_a_browser_announces_that_it_watches(server, path):
    for enabled in (True, False):
        body = json.dumps({"client_id": "x", "enabled": enabled}).encode()
        assert json.loads(fetch(server.url + path, body)) == {"enabled": enabled}


@pytest.mark.parametrize("body", [b"", b"nonsense", b"\xff", b"[]", b'{"client_id": 1}', b"[" + b"0," * 2000])
def test_anything_else_is_refused(server, body):
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(server.url + PATH, body)
    assert refused.value.code == 400
    assert "Expected" in json.loads(refused.value.read())["error"]


def watch_run(server, announced: dict[str, bool], queued_by: str) -> dict[str, list[dict]]:
    """The live messages that each client received during a small run, which client `queued_by` queued."""
    workflow = server.workflow(demo.WORKFLOWS["sd3"].name)
    prompt = demo.with_size(demo.demo_prompt(workflow, server.object_info), 256)
    settings = {"speed": "custom", "start_percent": 0.25, "steps": 4}
    prompt = demo.with_sampler(prompt, **settings, seed=len(announced) + len(queued_by))
    return asyncio.run(asyncio.wait_for(_watch_run(server, prompt, announced, queued_by), 120))


async def _watch_run(server, prompt, announced, queued_by) -> dict[str, list[dict]]:
    got = {name: [] for name in announced}
    async with aiohttp.ClientSession() as session:
        sockets = {name: await session.ws_connect(f"{server.url}/ws?clientId={name}") for name in announced}
        for name, enabled in announced.items():
            await session.post(server.url + PATH, json={"client_id": name, "enabled": enabled})
        await asyncio.to_thread(server.client.queue, prompt, queued_by)
        await _listen(sockets[queued_by], got[queued_by])
        for name, socket in sockets.items():
            if name != queued_by:
                await _listen(socket, got[name], patience=0.5)
    return got


async def _listen(socket, got: list[dict], patience: float = 60) -> None:
    """Collect live messages until the prompt has ended, or none has arrived for a while."""
    while True:
        try:
            message = await socket.receive(timeout=patience)
        except asyncio.TimeoutError:
            return
        if message.type != aiohttp.WSMsgType.TEXT:
            continue
        data = json.loads(message.data)
        if data["type"].startswith("multirate_ras"):
            got.append(data["data"])
        if data["type"] in ("execution_success", "execution_error"):
            return


def test_only_the_client_that_queued_the_run_gets_messages(server):
    got = watch_run(server, {"anna": True, "ben": True}, "anna")
    assert got["ben"] == []
    assert got["anna"][0]["phase"] == "step" and got["anna"][0]["node"] == "5"
    assert got["anna"][-1]["finished"] and len(got["anna"][-1]["timeline"]) == 4


def test_a_client_that_does_not_watch_gets_nothing(server):
    assert watch_run(server, {"carla": False}, "carla") == {"carla": []}
