"""The live view on a real server: only clients that have asked for its messages receive them."""

import asyncio
import gzip
import json
import socket
import urllib.error

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ras_pack.dev import demo_run as demo
from ras_pack.dev.server import fetch

pytestmark = pytest.mark.server

PATH, KEY_EVENT = "/multirate_ras/live", "multirate_ras.key"


@pytest.mark.parametrize("path", [PATH, f"/api{PATH}"])
def test_a_browser_announces_that_it_watches(server, path):
    async def announced() -> list[dict]:
        async with aiohttp.ClientSession() as session:
            socket = await session.ws_connect(f"{server.url}/ws?clientId=x")
            key = await key_of(server, session, socket, "x")
            bodies = [{"client_id": "x", "enabled": enabled, "key": key} for enabled in (True, False)]
            return [await (await session.post(server.url + path, json=body)).json() for body in bodies]

    assert asyncio.run(asyncio.wait_for(announced(), 60)) == [{"enabled": True}, {"enabled": False}]


async def key_of(server, session, socket, name: str) -> str:
    """The key that a client gets over its WebSocket."""
    answer = await session.post(server.url + PATH, json={"client_id": name, "enabled": True})
    assert answer.status == 202
    while True:
        message = await socket.receive(timeout=60)
        if message.type == aiohttp.WSMsgType.TEXT and json.loads(message.data)["type"] == KEY_EVENT:
            return json.loads(message.data)["data"]["key"]


@pytest.mark.parametrize("body", [b"", b"nonsense", b"\xff", b"[]", b'{"client_id": 1}', b"[" + b"0," * 2000])
def test_anything_else_is_refused(server, body):
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(server.url + PATH, body)
    assert refused.value.code == 400
    assert "Expected" in json.loads(refused.value.read())["error"]


FIELDS = {"Host": "localhost", "Content-Type": "application/json", "Connection": "close"}
GOOD = b'{"client_id": "y", "enabled": true}'


def raw(server, body: bytes, **fields: str) -> int:
    """The status of the answer to a request with exactly these bytes; names of fields have _ for a hyphen."""
    given_here = {name.replace("_", "-"): value for name, value in fields.items()}
    length = {} if "Transfer-Encoding" in given_here else {"Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**FIELDS, **length, **given_here}.items())
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + body)
        return int(connection.recv(4096).split()[1])


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"[" * 1000, {}),
        (b'{"a":' * 200, {}),
        (GOOD, {"Content_Type": "application/json; charset=unknown"}),
        (GOOD.decode().encode("utf-16"), {"Content_Type": "application/json; charset=utf-16"}),
        (GOOD, {"Content_Encoding": "gzip"}),
        (gzip.compress(GOOD)[:-9], {"Content_Encoding": "gzip"}),
        (gzip.compress(GOOD + b" " * 10**7), {"Content_Encoding": "gzip"}),
        (GOOD, {"Content_Encoding": "deflate"}),
        (chunked(GOOD, *[b" " * 500] * 4), {"Transfer_Encoding": "chunked"}),
        (b"zz\r\n" + GOOD, {"Transfer_Encoding": "chunked"}),
        (GOOD[:-1] + b', "key": "\\ud800"' + b"\xed\xa0\x80}", {}),
    ],
    ids=range(11),
)
def test_a_malformed_request_is_refused(server, body, fields):
    assert 400 <= raw(server, body, **fields) < 500
    assert raw(server, chunked(GOOD), Transfer_Encoding="chunked") == 202  # the server still answers


@given(body=st.binary(max_size=1500) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inside: st.dictionaries(st.sampled_from(["client_id", "enabled", "key", "x"]), inside, max_size=4),
    max_leaves=8,
).map(lambda each: json.dumps(each).encode()))  # fmt: skip
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_body_is_answered(server, body):
    assert raw(server, body) in (202, 400)


def test_a_client_speaks_for_itself_only(server):
    """Who knows another client's id, but not its key, changes nothing."""
    bodies = [{"client_id": "anna", "enabled": False, "key": key} for key in ("", "0" * 64, "\ud800")]
    got = watch_run(server, {"anna": True}, "anna", forged=bodies)
    assert got["anna"][-1]["finished"]


def watch_run(
    server, announced: dict[str, bool], queued_by: str, forged: tuple | list = ()
) -> dict[str, list[dict]]:
    """The live messages that each client received during a small run, which client `queued_by` queued.

    `forged` are announcements that are sent after those of the clients, and must not count.
    """
    workflow = server.workflow(demo.WORKFLOWS["sd3"].name)
    prompt = demo.with_size(demo.demo_prompt(workflow, server.object_info), 256)
    four = {"speed": "custom", "start_percent": 0.25, "steps": 4}
    prompt = demo.with_sampler(prompt, **four, seed=len(announced) + len(queued_by) + 100 * len(forged))
    return asyncio.run(asyncio.wait_for(_watch_run(server, prompt, announced, queued_by, forged), 120))


async def _watch_run(server, prompt, announced, queued_by, forged) -> dict[str, list[dict]]:
    got = {name: [] for name in announced}
    async with aiohttp.ClientSession() as session:
        sockets = {name: await session.ws_connect(f"{server.url}/ws?clientId={name}") for name in announced}
        for name, enabled in announced.items():
            key = await key_of(server, session, sockets[name], name)
            await session.post(server.url + PATH, json={"client_id": name, "enabled": enabled, "key": key})
        for body in forged:
            assert (await session.post(server.url + PATH, json=body)).status == 202
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
        if data["type"] == "multirate_ras.live":
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
