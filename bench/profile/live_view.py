"""Measure the cost of the live view: a demo workflow runs on a real server, alternately with and without it.

    $(python3 -m dev python) -m bench live-view --pairs 8      (from the repository's root)

With `--preview-method none`, ComfyUI makes no previews, and the live view makes them.

There is one server process, and one client that stays connected and receives every message and latent
preview. Before each run, the client tells the server whether to send the live view. A run's time is taken
from the sampler's trace. The CPU time is that of the server process. Other load on the machine changes the
CPU time less than it changes the run's time. The program prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
import psutil

from ...dev import demo_run as demo
from ...dev.client import Client
from ...dev.environment import cpu_flag, current
from ...dev.server import Server

CLIENT = "bench"
SETTINGS = {"speed": "custom", "sample_ratio": 0.3}  # of the runs in bench/results
ROUTE, KEY_EVENT = "/multirate_ras/live", "multirate_ras.key"


async def key_of_client(
    session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse, url: str
) -> str:
    """The key that the server sends to this client, with which it may turn its live view on and off."""
    await session.post(url + ROUTE, json={"client_id": CLIENT, "enabled": False})
    while True:
        event = json.loads((await socket.receive(timeout=60)).data)
        if event["type"] == KEY_EVENT:
            return event["data"]["key"]


async def one_run(client: Client, socket: aiohttp.ClientWebSocketResponse, prompt: dict) -> tuple[float, int]:
    """Run once; returns the sampler's seconds from the trace, and the number of live messages received."""
    await asyncio.to_thread(client.queue, prompt, CLIENT)
    seconds, messages = 0.0, 0
    async for message in socket:
        if message.type != aiohttp.WSMsgType.TEXT:
            continue
        event = json.loads(message.data)
        messages += event["type"] == "multirate_ras.live"
        if event["type"] == "executed":
            for stats in event["data"]["output"].get("ras", []):
                seconds = stats["seconds"]
        elif event["type"] == "execution_error":
            raise RuntimeError(event["data"]["exception_message"])
        elif event["type"] == "execution_success":
            return seconds, messages
    raise RuntimeError("the server closed the connection")


async def measure(url: str, pid: int, pairs: int, size: int, steps: int) -> dict[str, list]:
    """Lists with one figure per run, separately for runs with the live view on and off. Of each pair of runs,
    one has it on and one off; which of them comes first alternates from pair to pair.
    """
    client, server = Client(url), psutil.Process(pid)
    info = client.object_info()
    base = demo.with_size(demo.to_api(json.loads(demo.WORKFLOWS["sd3"].read_text()), info), size)
    found = {f"{kind}_{way}": [] for kind in ("seconds", "cpu", "messages") for way in ("on", "off")}
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"{url}/ws?clientId={CLIENT}", max_msg_size=0)
        flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
        await socket.send_json(flags)
        key = await key_of_client(session, socket, url)
        for run in range(-2, 2 * pairs):  # the first two are warm-up runs
            on = (run + run // 2) % 2 == 0
            await session.post(url + ROUTE, json={"client_id": CLIENT, "enabled": on, "key": key})
            before = sum(server.cpu_times()[:2])
            prompt = demo.with_sampler(base, **SETTINGS, steps=steps, seed=run + 1000)
            seconds, messages = await one_run(client, socket, prompt)
            cpu = sum(server.cpu_times()[:2]) - before
            if run >= 0:
                for kind, value in (("seconds", seconds), ("cpu", cpu), ("messages", messages)):
                    found[f"{kind}_{'on' if on else 'off'}"].append(round(value, 4))
    return found


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench live-view", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--preview-method", default="latent2rgb", choices=("none", "latent2rgb"))
    options = parser.parse_args(argv)
    env = current()
    with tempfile.TemporaryDirectory() as base:
        flags = (*cpu_flag(env), "--preview-method", options.preview_method)
        with Server(env, Path(base), Path(base) / "server.log", flags) as server:
            found = asyncio.run(measure(server.url, server.pid, options.pairs, options.size, options.steps))
    overhead = {
        kind: round(statistics.median(found[f"{kind}_on"]) / statistics.median(found[f"{kind}_off"]) - 1, 4)
        for kind in ("seconds", "cpu")
    }
    machine = f"{platform.machine()}, {os.cpu_count()} processors"
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), "machine": machine, **vars(options), **found,
                      "overhead": overhead}, indent=1))  # fmt: skip
    return 0
