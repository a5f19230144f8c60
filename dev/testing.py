"""The commands that test and lint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from . import browser
from .environment import DevEnvironment, build
from .paths import ROOT
from .processes import DevError, replace_process, run, say
from .requirements import PACKAGES, TOOLS, TRITON
from .tree import OLD_RELEASE
from .venv import missing_modules, pip_install, venv_python

OLD_TESTS = tuple(  # on the older ComfyUI: proofs of every family, nodes, combinations, demo models, HTTP API
    f"tests/{name}.py"
    for name in (
        *("models/test_proofs", "nodes/test_nodes", "host/test_combinations", "demo/test_demo_model"),
        *("api/test_api_smoke", "api/test_templates"),
    )
)


def need_tools(python: Path) -> None:
    """Check for the tests' own tools, which the user's interpreter may lack."""
    if problem := missing_modules(python, TOOLS):
        wanted = " ".join(p for p in PACKAGES if p.startswith(TOOLS))
        raise DevError(f"{problem}; the tests and the linter need it. Install there: {wanted}.")


def run_pytest(env: DevEnvironment, arguments: list[str]) -> int:
    """Become pytest."""
    return replace_process([str(env.python), "-m", "pytest", *arguments], env.variables())


def test(arguments: list[str]) -> int:
    """Run the tests with ComfyUI 0.30.0 or the given one; the browser tests only if there is a browser."""
    env = build()
    need_tools(env.python)
    if not arguments:
        offer_triton(env.python)
        try:
            browser.prepare()
        except browser.NoBrowser as reason:
            say(f"dev: the browser tests will be skipped: {reason}")
    return run_pytest(env, arguments or ["tests", *in_parallel(env.python)])


def test_old(arguments: list[str]) -> int:
    """Run the shorter suite against the older ComfyUI."""
    env = build(OLD_RELEASE)
    need_tools(env.python)
    return run_pytest(env, arguments or [*OLD_TESTS, *in_parallel(env.python)])


def test_browser(arguments: list[str]) -> int:
    """Run only the browser tests."""
    env = build()
    need_tools(env.python)
    try:
        browser.prepare()
    except browser.NoBrowser as reason:
        raise DevError(f"There is no browser for the tests: {reason}") from None
    return run_pytest(env, ["tests/browser", *arguments])


def soak(arguments: list[str]) -> int:
    """Run the soak (tests/soak) with ComfyUI 0.30.0 or the given one."""
    env = build()
    need_tools(env.python)
    variables = {**env.variables(), "PYTHONPATH": str(ROOT / "tests")}
    return replace_process([str(env.python), "-m", "soak", *arguments], variables)


def offer_triton(python: Path) -> None:
    """Install Triton in our own interpreter, to test the kernels without a GPU; if that fails, these tests
    are skipped.
    """
    if python != venv_python() or sys.platform != "linux" or not missing_modules(python, ("triton",)):
        return
    say("dev: installing Triton (290 MB), to test the GPU kernels")
    try:
        run([*pip_install(), TRITON], "Installing Triton", "The tests of the kernels are skipped without it.")
    except DevError as reason:
        say(f"dev: {reason}")


def in_parallel(python: Path) -> list[str]:
    """pytest's arguments for two processes, if pytest-xdist is installed; halves the time on two cores."""
    if (os.cpu_count() or 1) < 2 or missing_modules(python, ("xdist",)):
        return []
    arguments = ["--numprocesses=2", "--dist=loadfile"]  # a file stays in one process: it may share a server
    if python == venv_python():  # a user's own pytest-xdist may be too old for it
        # Ordered by name, the browser tests start early: they take longest and leave the CPU mostly idle.
        arguments.append("--no-loadscope-reorder")
    return arguments


def lint(arguments: list[str]) -> int:
    """Run ruff's rules and format check."""
    env = build()
    need_tools(env.python)
    for check in (["check"], ["format", "--check"]):
        command = [str(env.python), "-m", "ruff", *check, *(arguments or ["."])]
        if code := subprocess.run(command, cwd=ROOT).returncode:
            return code
    return 0
