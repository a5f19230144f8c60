"""The commands that run the tests and the linter."""

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

OLD_TESTS = tuple(  # run with the older ComfyUI: model families, nodes, combinations, demo models, HTTP API
    f"tests/{name}.py"
    for name in (
        *("models/test_proofs", "nodes/test_nodes", "host/test_combinations", "demo/test_demo_model"),
        *("compatibility/test_compatibility", "api/test_api_smoke", "api/test_templates"),
    )
)


def need_tools(python: Path) -> None:
    """Check that the interpreter has pytest and ruff, which a user's own interpreter may lack."""
    if problem := missing_modules(python, TOOLS):
        wanted = " ".join(p for p in PACKAGES if p.startswith(TOOLS))
        raise DevError(f"{problem}; the tests and the linter need it. Install for this Python: {wanted}.")


def run_pytest(env: DevEnvironment, arguments: list[str]) -> int:
    """Replace this process with pytest."""
    return replace_process([str(env.python), "-m", "pytest", *arguments], env.variables())


def test(arguments: list[str]) -> int:
    """Run the tests with ComfyUI 0.30.0, or the one at COMFYUI_PATH. Browser tests need a browser."""
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
    """Run the tests in `OLD_TESTS` with the older ComfyUI."""
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


def compatibility(arguments: list[str]) -> int:
    """Write docs/compatibility.md from the rows in tests/compatibility."""
    env = build()
    need_tools(env.python)
    variables = {**env.variables(), "PYTHONPATH": str(ROOT / "tests")}
    return replace_process([str(env.python), "-m", "compatibility", *arguments], variables)


def offer_triton(python: Path) -> None:
    """Install Triton in `.host/venv` if it is missing, so that the kernels can be tested without a GPU.

    If the installation fails, the tests of the kernels are skipped.
    """
    if python != venv_python() or sys.platform != "linux" or not missing_modules(python, ("triton",)):
        return
    say("dev: installing Triton (290 MB), to test the GPU kernels")
    try:
        run([*pip_install(), TRITON], "Installing Triton", "Without Triton, the kernel tests are skipped.")
    except DevError as reason:
        say(f"dev: {reason}")


def in_parallel(python: Path) -> list[str]:
    """pytest's arguments for parallel processes; empty without pytest-xdist or on a single core."""
    if (os.cpu_count() or 1) < 2 or missing_modules(python, ("xdist",)):
        return []
    # By file, since the tests of a file share a server. The browser tests and those that start other programs
    # mostly wait, so three processes keep two cores busy.
    arguments = ["--numprocesses=3", "--dist=loadfile"]
    if python == venv_python():  # a user's own pytest-xdist may be too old for the next flag
        # Files then run in order of their names, so the browser tests, which take longest, start early.
        arguments.append("--no-loadscope-reorder")
    return arguments


def lint(arguments: list[str]) -> int:
    """Run `ruff check`, then `ruff format --check`."""
    env = build()
    need_tools(env.python)
    for check in (["check"], ["format", "--check"]):
        command = [str(env.python), "-m", "ruff", *check, *(arguments or ["."])]
        if code := subprocess.run(command, cwd=ROOT).returncode:
            return code
    return 0
