"""Start and stop a ComfyUI server for the demo and the tests. Standard library only.

Each server has a base directory of its own for models, input, output, temporary and user files. It therefore
reads and writes no files of the user, and it loads no custom node but this pack.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from .environment import DevEnvironment
from .paths import PACK
from .processes import DevError
from .tree import link_pack
from .venv import distrust, venv_python

START_LIMIT = 240  # seconds to wait for the server; a cold start on a slow disk takes about 30 s
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that no program uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(url: str, data: bytes | None = None, timeout: float = 60) -> bytes:
    """Send a GET request, or a POST request if there is data. Uses no proxy: the server is local."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {"Content-Type": "application/json"} if data is not None else {}
    with opener.open(urllib.request.Request(url, data, headers), timeout=timeout) as answer:
        return answer.read()


def tail(log: Path, lines: int = 40) -> str:
    """The last lines of a log file; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


class Server:
    """A ComfyUI server. Use it as a context manager, which starts the server and always stops it."""

    def __init__(
        self,
        env: DevEnvironment,
        base: Path,
        log: Path,
        flags: tuple[str, ...] = (),
        install: Callable[[Path], None] = link_pack,
    ) -> None:
        """`base` is the base and working directory of the server; its output is written to the file `log`.

        `flags` are further arguments of main.py. `install` is called with the path of the custom_nodes folder
        and must put the pack into it.
        """
        self.env, self.base, self.log, self.flags, self._install = env, base, log, flags, install
        self.port = 0
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's process id; None if it was not started or was stopped."""
        return self._process.pid if self._process else None

    def command(self) -> list[str]:
        """The command line of the server."""
        return [
            *(str(self.env.python), str(self.env.comfyui / "main.py")),
            *("--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base)),
            *("--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes"),
            *("--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK, *self.flags),
        ]

    def __enter__(self) -> Server:
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        self._install(self.base / "custom_nodes")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        try:
            self._start()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _start(self) -> None:
        # The server has its own session: Ctrl-C only reaches this process, which then stops the server.
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.base,
                env=self.env.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=os.name != "nt",
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise DevError(self._failure(f"ended with status {self._process.returncode} while starting"))
            with contextlib.suppress(urllib.error.URLError, OSError):
                fetch(f"{self.url}/system_stats", timeout=10)
                return
            time.sleep(0.1)
        raise DevError(self._failure(f"did not answer within {START_LIMIT} s"))

    def _failure(self, what: str) -> str:
        do = "Set COMFYUI_PYTHON to the Python that runs this ComfyUI, and check whether it starts by itself."
        if self.env.python == venv_python():
            distrust()
            do = f"Run the command again: it will check and repair the packages. With COMFYUI_PATH set: {do}"
        return (
            f"{tail(self.log)}\n\nComfyUI {what}; the end of its log is above, the whole log in {self.log}. "
            f"Expected: a server that answers at {self.url}. {do}"
        )

    def stop(self) -> None:
        """Terminate the server, and kill it if it still runs after ten seconds."""
        process, self._process = self._process, None
        if process is None:
            return
        for stop in (process.terminate, process.kill):
            if process.poll() is None:
                stop()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=10)
