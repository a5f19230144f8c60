"""Shared set-up: a real ComfyUI on the CPU, the pack as `ras_pack`, and no network access."""

import gc
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import comfy

try:
    COMFYUI = comfy.setup(threads=1)  # a second thread gains nothing on models this small
except comfy.ComfyNotFound as error:
    raise pytest.UsageError(str(error)) from None

import torch  # noqa: E402  (after setup, which sets what libraries read)

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # tests/gpu runs in any environment of ComfyUI, and needs no hypothesis
    pass
else:  # the same examples in every run, on a machine of any speed, and no files
    slow = [HealthCheck.too_slow]
    settings.register_profile(
        "pack", derandomize=True, deadline=None, database=None, suppress_health_check=slow
    )
    settings.load_profile("pack")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton's own functions are defined (test_fused.py)

from ras_pack.ras_core.method import small_images  # noqa: E402  (needs ComfyUI)
from support.families import FAMILIES, KINDS, Family  # noqa: E402


def pytest_collection_finish() -> None:
    """Exclude the objects that exist now, mostly code, from garbage collection, to make it faster."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries complain about objects that are not freed at the end


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI tree the tests run against."""
    return COMFYUI


@pytest.fixture(params=KINDS)
def family(request: pytest.FixtureRequest) -> Family:
    """A tiny model of each kind of network in turn. Tests in models/ and graphs/ override this fixture, and
    run every supported family.
    """
    return FAMILIES[request.param]


@pytest.fixture
def sd3() -> Family:
    """The tiny SD3, for tests that only need one model family."""
    return FAMILIES["sd3"]


LEAST_TOKENS, small_images.LEAST_TOKENS = small_images.LEAST_TOKENS, 0
"""Images of tests are smaller than those in which a plan has regional steps, so the limit is lifted for all
but the tests of the limit itself, which are marked `small_images`.
"""


@pytest.fixture(autouse=True)
def _limit_of_small_images(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("small_images"):
        monkeypatch.setattr(small_images, "LEAST_TOKENS", LEAST_TOKENS)


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every test fail that opens a connection to another machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise RuntimeError(f"A test tried to reach {address[0]}: tests may talk to 127.0.0.1 only.")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session")
def server() -> Iterator:
    """One real ComfyUI server for the session, with the pack loaded as a custom node (support/server.py)."""
    from support.server import running_server

    with running_server(COMFYUI) as running:
        yield running
