"""Run other programs, and report failures with what to do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

from .paths import ROOT


class DevError(Exception):
    """A problem for the user to fix: the message says what was found, what is expected and what to do."""


def say(text: str) -> None:
    """Print progress to stderr; stdout is for the command `python` and the programs that are run."""
    print(text, file=sys.stderr, flush=True)


def run(command: list[str], what: str, do: str) -> None:
    """Run a command and show its output. Raises DevError if it fails."""
    try:
        code = subprocess.run(command, stdout=sys.stderr).returncode
    except OSError as error:
        code = error
    if code:
        raise DevError(
            f"{what} failed ({code}); its output is above. The command was: {' '.join(command)}. {do}"
        )


def ask(command: list[str]) -> str | None:
    """A command's output, or None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def writing_bytecode(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that enable .pyc files: without them, every start takes ten seconds longer."""
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}


def replace_process(command: list[str], environment: dict[str, str]) -> int:
    """Replace this process with the program, so that signals and the exit status are the program's."""
    os.chdir(ROOT)
    if os.name != "nt":
        os.execve(command[0], command, environment)
    try:
        return subprocess.run(command, env=environment).returncode
    except KeyboardInterrupt:
        return 130


def port_taken(port: int) -> bool:
    """Whether something listens on that port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP end the program like Ctrl-C, so that `finally` stops the server."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave)
