"""Observes what other packs' code does to rows, without changing what this code sees.

In a dense call this code gets the rows of all tokens. If it changes no row there, or computes each row alone,
it does the same in a regional call. Everything is compared on the device; the CPU waits for the results once
per call.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

SOME = 8
"""Number of rows on which code is tried that should compute each row alone."""

ROUNDING = 0.02
"""Relative difference (L2) of such code's results on few rows and on all rows that may be due to rounding."""

ATTENTION_ERROR = 0.1
"""Relative difference (L2) up to which an attention function counts as another implementation of ComfyUI's;
those with 8-bit integers differ by a few percent."""

DEPTH = 4
"""Number of consecutive references that are followed from a function to find state that it may keep."""

ROWS = "may rely on the rows of all tokens"
"""The end of a reason."""

STORES = ("STORE_GLOBAL", "STORE_ATTR", "DELETE_ATTR")


class Observations:
    """What other packs' code did in the latest call that RAS has handled."""

    def __init__(self) -> None:
        self._found: list[tuple[str, Tensor | bool]] = []  # reason, whether it applies
        self._handles: list[Any] = []
        self._turns: dict[tuple[Any, Hashable], int] = {}  # by attention function and kind of call
        self._attentions = 0

    def start(self) -> None:
        """Begin a call."""
        self._found, self._attentions = [], 0

    def detach(self) -> None:
        """Remove the hooks from the network, at the end of the call."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def finding(self) -> str | None:
        """Why calls must stay dense, according to the call that has just ended, or None."""
        return next((reason for reason, applies in self._found if bool(applies)), None)

    def compare(self, reason: str, before: Mapping[Any, Tensor], after: Mapping[Any, Tensor]) -> None:
        """Note `reason` if a tensor of `before` has other values in `after`."""
        for name, known in before.items():
            value = after.get(name, known)
            is_alike = isinstance(value, Tensor) and value.shape == known.shape
            self._found.append((reason, (value != known).any() if is_alike else True))

    def watch_hooks(self, module: nn.Module) -> None:
        """Compare the module's input and output before and after the hooks that it has now."""
        reason = f"another node's hook changes rows of {type(module).__name__}, and {ROWS}"
        given: list[dict] = []

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given.append(copies((args, kwargs)))

        def after(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.compare(reason, given.pop(), dict(tensors_in((args, kwargs))))

        def before_output(module: nn.Module, args: tuple, output: Any) -> None:
            given.append(copies(output))

        def after_output(module: nn.Module, args: tuple, output: Any) -> None:
            self.compare(reason, given.pop(), dict(tensors_in(output)))

        self._handles += [
            module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
            module.register_forward_pre_hook(after, with_kwargs=True),
            module.register_forward_hook(before_output, prepend=True),
            module.register_forward_hook(after_output),
        ]

    def try_some_rows(self, module: nn.Module) -> None:
        """Run this module, which keeps no state, on a few of its rows too."""
        reason = f"another node's code in {type(module).__name__} needs the rows of all tokens"

        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            rows = args[0] if len(args) == 1 and not kwargs else None
            if not isinstance(rows, Tensor) or not isinstance(output, Tensor) or rows.ndim != 3:
                self._found.append((reason, True))
                return
            some = slice(0, max(min(SOME, rows.shape[1] // 2), 1))
            try:
                error = _error(module.forward(rows[:, some]), output[:, some])
            except Exception:  # the code needs other rows
                error = torch.tensor(torch.inf)
            self._found.append((reason, ~(error <= ROUNDING)))

        self._handles.append(module.register_forward_hook(hook, with_kwargs=True, prepend=True))

    def watch_attention(
        self, override: Callable[..., Tensor] | None, kind: Hashable
    ) -> Callable[..., Tensor] | None:
        """The attention function `override`, whose results are compared with ComfyUI's: all results in the
        first call of this kind, and one result in each later call.
        """
        if override is None:
            return None
        turn = self._turns[override, kind] = self._turns.get((override, kind), -1) + 1
        reason = f"another node's attention function does not give ComfyUI's results, and {ROWS}"

        def attend(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            number, self._attentions = self._attentions, self._attentions + 1
            if turn and number != turn - 1:
                return override(func, *args, **kwargs)
            expected = func(*args, **kwargs)
            output = override(func, *args, **kwargs)
            self._found.append((reason, ~(_error(output, expected) <= ATTENTION_ERROR)))
            return output

        return attend


def copies(value: Any) -> dict[Any, Tensor]:
    """Copies of all tensors in `value`, by their place in it."""
    return {place: each.clone() for place, each in tensors_in(value)}


def tensors_in(value: Any, place: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    """All tensors in nested tuples, lists and dicts, with their places."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, (tuple, list)):
        for i, each in enumerate(value):
            yield from tensors_in(each, (*place, i))
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from tensors_in(each, (*place, name))


def may_keep_state(code: Any, depth: int = DEPTH) -> bool:
    """Whether a function may keep state from one call to the next: it assigns attributes or global names, or
    can reach a list, a dict or an object of an unknown class.
    """
    if code is None or isinstance(code, (bool, int, float, str, torch.dtype, Tensor, nn.Module, type)):
        return False
    if isinstance(code, (ModuleType, BuiltinFunctionType)):
        return False
    if isinstance(code, (tuple, frozenset)):
        return any(may_keep_state(each, depth) for each in code)
    if isinstance(code, MethodType):
        return may_keep_state(code.__self__, depth) or may_keep_state(code.__func__, depth)
    if isinstance(code, partial):
        return may_keep_state((code.func, *code.args, *code.keywords.values()), depth)
    if not isinstance(code, FunctionType) or depth == 0:
        return True
    return _assigns(code) or any(may_keep_state(each, depth - 1) for each in _reached_by(code))


def _assigns(function: FunctionType) -> bool:
    own = function.__code__
    return any(
        each.opname in STORES or (each.opname == "STORE_DEREF" and each.argval in own.co_freevars)
        for each in dis.get_instructions(own)
    )


def _reached_by(function: FunctionType) -> Iterator[Any]:
    """The values in a function's closure and defaults, and the containers among the global names it uses."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    named = (function.__globals__.get(name) for name in function.__code__.co_names)
    yield from (each for each in named if isinstance(each, (list, dict, set)))


def _error(output: Tensor, expected: Tensor) -> Tensor:
    """The relative difference (L2) of two tensors; infinity if their shapes differ."""
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return torch.tensor(torch.inf)
    difference = (output.float() - expected.float()).norm()
    return difference / expected.float().norm().clamp(min=1e-20)
