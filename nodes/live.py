"""Server side of the live view.

Keeps a list of the browsers that watch the live view, and sends the steps of runs to these browsers.

A browser that wants to watch posts its client id to ROUTE. The server sends the key of this client id over
the client's WebSocket, so that nobody else gets it, and the browser posts again, with the key. The messages
of a run are sent only to the browser that queued the run. If that browser does not watch, no message is
built.
"""

from __future__ import annotations

import base64
import hmac
import io
import json
import logging
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np
from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError
from PIL import Image

from ..ras_core.errors import quoted
from ..ras_core.host.previews import LatentImages, Transfer, has_previewer, images_of, makes_previews
from ..ras_core.run.live import Estimate, LiveStep, View, kind_name
from ..ras_core.run.trace import Evaluation, Trace

logger = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.Response]]

EVENT, KEY_EVENT = "multirate_ras.live", "multirate_ras.key"
ROUTE = "/multirate_ras/live"
MIN_INTERVAL = 0.25  # seconds between two messages of a run
MAX_BODY, MAX_CLIENT_ID = 1024, 128
JPEG_QUALITY = 90

SMALL = 1024  # tokens; 512 px with most models
SMALL_IMAGE = "perhaps the computer was busy, or the image is small"
"""Said if an image of at most SMALL tokens gained clearly less than the expected speed-up."""

_secret = secrets.token_bytes(32)  # of this server's lifetime; keys are made from it
_watchers: set[str] = set()  # client ids of browsers that want to watch; kept until the server stops


_part: ContextVar[tuple[int, int, str] | None] = ContextVar("part", default=None)


@contextmanager
def part_of_node(number: int, total: int, name: str = "") -> Iterator[None]:
    """While this context is open, the live view says that a run is run `number` of `total` of its node, and
    what it is, by its name in web/words.js. Runs with number 0, such as a warm-up, are not shown.
    """
    token = _part.set((number, total, name))
    try:
        yield
    finally:
        _part.reset(token)


def open_view(grid: Any, latent_format: Any = None) -> View | None:
    """The live view of a run that starts now, for the browser that queued the run; None if this browser does
    not watch, or if the view cannot be opened.

    Args:
        grid: the run's TokenGrid.
        latent_format: ComfyUI's latent format of the model.
    """
    try:
        return _open_view(grid, latent_format)
    except Exception:
        _give_up()
        return None


def _open_view(grid: Any, latent_format: Any) -> View | None:
    server = _server()
    client = getattr(server, "client_id", None)
    if server is None or not _is_watching(server, client):
        return None
    node = _executing_node(server)
    part = _part.get()
    if node is None or (part and part[0] == 0):
        return None
    about = {
        "node": node,
        "prompt_id": getattr(server, "last_prompt_id", None),
        "grid": list(grid.shape[-2:]),
        "latent": list(grid.size[-2:]),
        "patch": list(grid.patch[-2:]),
    } | ({"part": part} if part else {})
    images = None if makes_previews() else images_of(latent_format)
    if images is None and not makes_previews() and has_previewer(latent_format):
        about["no_preview"] = True
    return LiveView(
        about,
        partial(server.send_sync, EVENT, sid=client),
        partial(_is_watching, server, client),
        previews=None if images is None else Previews(images),
    )


class LiveView:
    """Sends the steps of a run to one browser as small messages.

    After an error, the view sends no more messages, because an error in the live view must never make the
    run fail.

    Args:
        about: fields that every message of the run contains, such as the node's id and the size of the grid.
        send: sends one message, given as a dict, to the browser.
        is_watched: whether the browser still watches.
        clock: returns the time in seconds.
        previews: images of the run's estimates; None if ComfyUI sends previews or none can be made.
    """

    def __init__(
        self,
        about: dict[str, Any],
        send: Callable[[dict], None],
        is_watched: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.perf_counter,
        previews: Previews | None = None,
    ):
        self._about = about
        self._send = send
        self._is_watched = is_watched
        self._clock = clock
        self._previews = previews
        self._sent_at = float("-inf")
        self._last_step = -1
        self._unsent: list[list] = []  # steps since the last message
        self._is_broken = False

    def step(self, step: LiveStep) -> None:
        """Send the message about a new step.

        If the last message was sent less than MIN_INTERVAL ago, send nothing now. The next message then lists
        this step too, in its field `unsent` and without a mask.
        """
        if step.index == self._last_step:
            return
        self._last_step = step.index
        now = self._clock()
        if now - self._sent_at < MIN_INTERVAL:
            self._unsent.append([step.index, step.kind, round(step.active_share, 4)])
            return
        self._sent_at, unsent, self._unsent = now, self._unsent, []
        self._try_send(lambda: {**self._with_preview(step), "unsent": unsent})

    def end(self, trace: Trace | None) -> None:
        """Send the message about the end of the run; it contains all steps if the run finished."""
        preview = self._previews.last if self._previews is not None and trace is not None else dict
        self._try_send(lambda: {**end_message(trace), **preview()})

    def _with_preview(self, step: LiveStep) -> dict[str, Any]:
        if self._previews is None:
            return step_message(step)
        self._previews.start(step.read_estimate)
        message = step_message(step)  # reading the mask waits for the device, and so for the image
        return {**message, **self._previews.arrived()}

    def _try_send(self, build: Callable[[], dict]) -> None:
        if self._is_broken:
            return
        try:
            if self._is_watched():
                self._send({**self._about, **build()})
        except Exception:
            self._is_broken = True
            _give_up()


class Previews:
    """The previews that the live view sends if ComfyUI sends none: one image at a time is on its way from the
    device to the CPU, so that no step waits for an image.

    Args:
        images: makes the images.
    """

    def __init__(self, images: LatentImages):
        self._images = images
        self._read: Callable[[], Estimate | None] = lambda: None
        self._sent = -1  # index of the step whose image was sent last
        self._on_its_way: tuple[int, Transfer] | None = None

    def start(self, read_estimate: Callable[[], Estimate | None]) -> None:
        """Start to make the image of the latest estimate, unless another image is on its way."""
        self._read = read_estimate
        estimate = None if self._on_its_way else read_estimate()
        if estimate is not None and estimate.index != self._sent:
            self._on_its_way = estimate.index, self._images.start(estimate.latent)

    def arrived(self, wait: bool = False) -> dict[str, Any]:
        """The message's field with the image that has arrived; no field if none has."""
        if self._on_its_way is None:
            return {}
        index, transfer = self._on_its_way
        image = transfer.read(wait)
        if image is None:
            return {}
        self._sent, self._on_its_way = index, None
        return {"preview": [index, pack_image(image)]}

    def last(self) -> dict[str, Any]:
        """The field with the image of the run's last estimate. Waits for the device; the run has ended."""
        self._on_its_way = None
        self.start(self._read)
        self._read = lambda: None  # frees the estimate
        return self.arrived(wait=True)


def _give_up() -> None:
    logger.warning("Multirate RAS: the live view of this run failed.", exc_info=True)


def step_message(step: LiveStep) -> dict[str, Any]:
    """The message about a step of the running sampler."""
    return {
        "phase": "step",
        "step": step.index,
        "steps": step.n_steps,
        "plan": step.plan,
        "kind": step.kind,
        "share": round(step.active_share, 4),
        "mask": pack_mask(step.read_mask()),
    }


def end_message(trace: Trace | None) -> dict[str, Any]:
    """The message about the end of a run, with all its steps; without steps if the run did not finish."""
    if trace is None:
        return {"phase": "end", "finished": False}
    return {
        "phase": "end",
        "finished": True,
        "steps": trace.n_steps,
        "plan": trace.plan,
        "regional_steps": trace.regional_steps,
        "share": round(trace.token_share, 4),
        "speedup": trace.measured_gain or (trace.expected_gain if trace.plan else None),
        "busy": trace.is_disturbed and trace.measured_gain is not None,
        "accelerated": trace.is_accelerated,
        "reason": trace.reason or small_image_reason(trace),
        "timeline": [_timeline_entry(step) for step in trace.steps],
    }


def small_image_reason(trace: Trace) -> str:
    """Why a run as planned took clearly more time than its FLOPs, if its image is small; empty otherwise."""
    if trace.grid.n > SMALL or not trace.regional_steps or trace.is_disturbed:
        return ""
    return SMALL_IMAGE if trace.gained_clearly_less else ""


def _timeline_entry(step: Evaluation) -> dict[str, Any]:
    kind = kind_name(step.kind, step.is_reset)
    mask = step.active[0] if kind == "regional" else None
    return {
        "step": step.step, "kind": kind, "share": round(step.active_share, 4), "mask": pack_mask(mask)
    }  # fmt: skip


def pack_mask(mask: np.ndarray | None) -> str | None:
    """A mask of tokens, (h, w) bool, as base64: eight tokens per byte, row by row, the first token in the
    highest bit.

    For a mask with frames, (t, h, w), only the first latent frame is packed, because ComfyUI's previews show
    that frame.
    """
    if mask is None:
        return None
    frame = mask.reshape(-1, *mask.shape[-2:])[0]
    return base64.b64encode(np.packbits(frame.ravel()).tobytes()).decode("ascii")


def pack_image(image: np.ndarray) -> str:
    """An image, (H, W, 3) uint8, as a JPEG file in base64."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return base64.b64encode(file.getvalue()).decode("ascii")


# --- the server -------------------------------------------------------------------------------------


def register_route() -> None:
    """Register ROUTE with ComfyUI's server; do nothing if no server runs or ROUTE is already registered."""
    add_route("post", ROUTE, announce)


def add_route(method: str, path: str, handler: Handler) -> None:
    """Register a route with ComfyUI's server; do nothing if no server runs or the path is already registered.

    Args:
        method: "get" or "post".
    """
    server = _server()
    if server is None or any(getattr(route, "path", None) == path for route in server.routes):
        return
    getattr(server.routes, method)(path)(handler)


async def announce(request: web.Request) -> web.Response:
    """POST {"client_id": str, "enabled": bool, "key": str}: a browser starts or stops watching.

    Without the client's key, nothing changes: the answer has status 202, and the key is on its way.
    """
    try:
        client, enabled, key = read_announcement(await _read_json(request))
    except ValueError:
        return web.json_response(
            {"error": 'Expected JSON such as {"client_id": "name", "enabled": true, "key": ""}.'}, status=400
        )
    if not hmac.compare_digest(key.encode("utf-8", "replace"), key_of(client).encode()):
        await _server().send_json(KEY_EVENT, {"key": key_of(client)}, client)  # if the client is connected
        return web.json_response({"error": "Expected the client's key."}, status=202)
    if enabled:
        # Drop clients that have disconnected, so that the set stays small.
        _watchers.intersection_update(_server().sockets)
        _watchers.add(client)
    else:
        _watchers.discard(client)
    return web.json_response({"enabled": enabled})


def key_of(client: str) -> str:
    """The key with which a client shows that it receives the messages of its client id."""
    return hmac.digest(_secret, client.encode("utf-8", "surrogatepass"), "sha256").hex()


async def _read_json(request: web.Request) -> Any:
    """The JSON of a request's body, read up to MAX_BODY bytes, whatever length its header states.

    Raises:
        ValueError: the body is longer, compressed, damaged, or no JSON in UTF-8.
    """
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise ValueError("the body is compressed")
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise ValueError("the body is not in UTF-8")
    body = b""
    try:
        while piece := await request.content.read(MAX_BODY + 1 - len(body)):
            body += piece
            if len(body) > MAX_BODY:
                raise ValueError("the body is too long")
        return json.loads(body.decode("utf-8"))
    except (RecursionError, ClientError, HttpProcessingError) as error:
        raise ValueError("the body is damaged") from error


def read_announcement(body: Any) -> tuple[str, bool, str]:
    """Client id, whether this client wants to watch, and the key that it sent ("" if none), from the body of
    a request.

    Raises:
        ValueError: the body does not have the form that `announce` describes.
    """
    fields = body if isinstance(body, dict) else {}
    client, enabled, key = fields.get("client_id"), fields.get("enabled"), fields.get("key", "")
    if not isinstance(client, str) or not 0 < len(client) <= MAX_CLIENT_ID:
        raise ValueError(f"not an announcement: {quoted(body)}")
    if not isinstance(enabled, bool) or not isinstance(key, str):
        raise ValueError(f"not an announcement: {quoted(body)}")
    return client, enabled, key


def _server() -> Any:
    """ComfyUI's running server; None if its module was not imported, in which case no browser can watch."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _is_watching(server: Any, client: str | None) -> bool:
    return client is not None and client in _watchers and client in server.sockets


def _executing_node(server: Any) -> str | None:
    """Id of the node that the browser shows as executing. ComfyUI shows its latent previews on this node."""
    if server.last_node_id is not None:
        return str(server.last_node_id)
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return None if context is None else str(context.node_id)
