"""Run other programs; if one fails, report what the user can do about it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

from .paths import ROOT


class DevError(Exception):
    """A problem that the user can fix. The message says what was found, what is expected and what to do."""


def say(text: str) -> None:
    """Print a progress message to standard error. Standard output is kept for the results of commands and for
    the output of the program that replaces this process (`replace_process`).
    """
    print(text, file=sys.stderr, flush=True)


def run(command: list[str], what: str, do: str) -> None:
    """Run a command and show its output on stderr. Raises DevError if the command fails.

    Args:
        command: program and arguments.
        what: names the action in the error message, such as "Installing pip".
        do: tells the user in that message what to do.
    """
    try:
        code = subprocess.run(command, stdout=sys.stderr).returncode
    except OSError as error:
        code = error
    if code:
        raise DevError(
            f"{what} failed ({code}); its output is above. The command was: {' '.join(command)}. {do}"
        )


def ask(command: list[str]) -> str | None:
    """What a command prints to stdout, or None if the command fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def writing_bytecode(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy of these environment variables without PYTHONDONTWRITEBYTECODE. Python then writes .pyc files;
    without them, each start of ComfyUI takes 10 s longer.
    """
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}


def replace_process(command: list[str], environment: dict[str, str]) -> int:
    """Replace this process with a program, which then receives the signals and sets the exit status."""
    os.chdir(ROOT)
    if os.name != "nt":
        os.execve(command[0], command, environment)
    try:
        return subprocess.run(command, env=environment).returncode
    except KeyboardInterrupt:
        return 130


def port_taken(port: int) -> bool:
    """Whether a program listens on this TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise SystemExit. The program's `finally` and `with` blocks then run, and stop
    the ComfyUI server that it started.
    """

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave)
