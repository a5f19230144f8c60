"""Observes what other packs' code does to rows, without changing the inputs of this code.

In a dense call, code of another pack receives the rows of all tokens. If the code changes no row there, or
computes each row independently of the others, it is assumed to do the same in a regional call. All tensors
are compared on the device, so the CPU has to wait for the results only once per call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

SOME = 8
"""Number of rows on which `try_some_rows` runs a module, to see whether the module computes each row
independently of the others."""

ROUNDING = 0.02
"""Largest relative difference (L2) between a module's results on few rows and on all rows that counts as a
rounding error."""

ATTENTION_ERROR = 0.1
"""Largest relative difference (L2) between the results of another node's attention function and of ComfyUI's
at which both count as implementations of the same attention. Attention in 8-bit integers differs by a few
percent."""

ROWS = "may rely on the rows of all tokens"
"""The end of every sentence that says why a run is dense because of another pack's code."""


class Observations:
    """What other packs' code did to rows in the last call of a network that RAS has observed."""

    def __init__(self) -> None:
        self._found: list[tuple[str, Tensor | bool]] = []  # (reason, whether this reason applies)
        self._handles: list[Any] = []
        # By attention function and kind of call: the number of earlier calls.
        self._turns: dict[tuple[Any, Hashable], int] = {}
        self._attentions = 0

    def start(self) -> None:
        """Forget what was observed in the call before, because another call begins."""
        self._found, self._attentions = [], 0

    def detach(self) -> None:
        """Remove the hooks from the network, at the end of the call."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def finding(self) -> str | None:
        """Why calls must stay dense, according to the call that has just ended; None if no reason applies."""
        return next((reason for reason, applies in self._found if bool(applies)), None)

    def compare(self, reason: str, before: Mapping[Any, Tensor], after: Mapping[Any, Tensor]) -> None:
        """Keep `reason` if a tensor in `before` and the tensor of the same name in `after` differ."""
        for name, known in before.items():
            value = after.get(name, known)
            is_alike = isinstance(value, Tensor) and value.shape == known.shape
            self._found.append((reason, (value != known).any() if is_alike else True))

    def watch_hooks(self, module: nn.Module) -> None:
        """Compare the module's input before and after its present pre-hooks have run, and its output before
        and after its present forward hooks have run.
        """
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
        """In the next call, run this module, which keeps no state, once more on a few of its input rows, and
        compare the result with the same rows of the module's output.
        """
        reason = f"another node's code in {type(module).__name__} needs the rows of all tokens"

        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            rows = args[0] if len(args) == 1 and not kwargs else None
            if not isinstance(rows, Tensor) or not isinstance(output, Tensor) or rows.ndim not in (3, 5):
                self._found.append((reason, True))
                return
            rows, output = rows.flatten(1, -2), output.flatten(1, -2)  # from (b, t, h, w, d) in some networks
            some = slice(0, max(min(SOME, rows.shape[1] // 2), 1))
            try:
                error = _error(module.forward(rows[:, some]), output[:, some])
            except Exception:  # the code needs the rows that were left out
                error = torch.tensor(torch.inf)
            self._found.append((reason, ~(error <= ROUNDING)))

        self._handles.append(module.register_forward_hook(hook, with_kwargs=True, prepend=True))

    def watch_attention(
        self, override: Callable[..., Tensor] | None, kind: Hashable
    ) -> Callable[..., Tensor] | None:
        """A function that calls the attention function `override` and compares its results with ComfyUI's.
        In the first network call of this `kind`, the results of all attentions are compared. In each later
        call, the result of one attention is compared: in the second call that of the first attention, in
        the third call that of the second, and so on.
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
    """Copies of all tensors in `value`, by the keys and indices that lead to each tensor."""
    return {place: each.clone() for place, each in tensors_in(value)}


def tensors_in(value: Any, place: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    """All tensors in nested tuples, lists and dicts, each after the keys and indices that lead to it."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, (tuple, list)):
        for i, each in enumerate(value):
            yield from tensors_in(each, (*place, i))
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from tensors_in(each, (*place, name))


def _error(output: Tensor, expected: Tensor) -> Tensor:
    """The relative difference (L2) of two tensors; infinity if their shapes differ."""
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return torch.tensor(torch.inf)
    difference = (output.float() - expected.float()).norm()
    return difference / expected.float().norm().clamp(min=1e-20)
