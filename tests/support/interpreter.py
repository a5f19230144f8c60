"""Triton without a GPU: the kernels run in its interpreter, and are compiled in a separate process."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def without_repeated_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the interpreter faster: let it replace Triton's functions by its own once per launch of a kernel.
    By default, it does this again whenever the kernel calls a function, which takes several milliseconds.
    Without Triton, this skips the test.
    """
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    core = interpreter.tl.core
    languages: dict[Callable[..., Any], list[Any]] = {}

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if (found := languages.get(function.fn)) is None:
            values = [value for value in function.fn.__globals__.values() if inspect.ismodule(value)]
            found = languages[function.fn] = [each for each in values if each in (interpreter.tl, core)]
        if any(core.is_builtin(each.load) for each in found):  # not replaced yet
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


def compiled(dtype: str, unit: int, width: int, *kernels: str) -> list[tuple[str, int, int]]:
    """Compile kernels for several generations of GPUs; arguments and results as in `compile_kernels`."""
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "support.compile_kernels", dtype, str(unit), str(width), *kernels]
    tests = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=tests, env=plain, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [(name, int(wide), int(narrow)) for name, wide, narrow in map(str.split, done.stdout.splitlines())]
