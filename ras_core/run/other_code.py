"""Finds code of other packs that sees rows inside a network, and decides whether it may see fewer of them.

A regional call gives the code inside a network the rows of active tokens only. Code of another pack may need
the rows of all tokens: it may add a tensor with a row for each token, mix rows, check their number, or keep
state from one block to the next. A call that has failed halfway cannot be repeated, because such state would
then be wrong. So this module looks for such code before a network's first regional call, and `observation`
observes in the dense calls what the code does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from ..models.base import ModelAdapter
from .observation import ROWS, Observations, may_keep_state

OWNERS = ("comfy.", "comfy_", "torch.")
"""Prefixes of the names of Python modules whose code works on any number of rows: ComfyUI and PyTorch."""

ROW_BY_ROW = (nn.Linear, nn.LayerNorm, nn.Identity)
"""Classes of layers that compute each row alone, as do the quantised layers that other packs derive."""

CHANGED = f"another node changed code of the network's blocks during the run, which {ROWS}"


class OtherCode:
    """Code of other packs in the networks of one run."""

    def __init__(self, adapter: ModelAdapter):
        self._adapter = adapter
        self._known: dict[nn.Module, tuple] = {}  # code of the blocks in the last dense call, by network
        self._hooked: dict[nn.Module, list[nn.Module]] = {}  # modules with hooks of other packs, by network
        self._suspects: list[nn.Module] = []  # inner modules that run code of other packs
        self._observations = Observations()

    def obstacle(self, network: nn.Module, is_regional: bool = False) -> str | None:
        """Why calls of this network must be dense, as a sentence; None if nothing is known to prevent
        regional calls. Before a regional call, only the blocks are compared with the last dense call, because
        that takes less time.
        """
        try:
            blocks = self._outer(network)
        except AttributeError:
            return f"another node has replaced parts of the network, and its code {ROWS}"
        if is_regional and network in self._known:
            return None if self._known[network] == _code_of(blocks) else CHANGED
        self._suspects = []
        for module, name, code in _foreign_code(network, blocks):
            if module in blocks or name != "forward" or may_keep_state(code):
                return f"another node's code replaces {name} of {type(module).__name__}, and {ROWS}"
            self._suspects.append(module)
        return None

    @contextmanager
    def observed(self, network: nn.Module, is_regional: bool = False) -> Iterator[Observations]:
        """Observe code of other packs in the body of the `with`, one call of the network, for which there was
        no obstacle. In a regional call, only hooks are observed that the last dense call had.
        """
        self._observations.start()
        try:
            if not is_regional:
                self._look_at(network)
            for module in self._hooked.get(network, ()):
                self._observations.watch_hooks(module)
            yield self._observations
        finally:
            self._observations.detach()

    def finding(self) -> str | None:
        """Why calls must be dense from now on, according to the call that was observed last, or None."""
        return self._observations.finding()

    def _look_at(self, network: nn.Module) -> None:
        """Find code of other packs before a dense call, and try functions on some rows in this call."""
        blocks, owners = self._outer(network), _owners(network)
        self._known[network] = _code_of(blocks)
        for module in dict.fromkeys(self._suspects):
            self._observations.try_some_rows(module)
        self._hooked[network] = [
            module
            for module in _modules(blocks)
            if not all(is_written_by(each, owners) for each in _hooks(module))
        ]

    def _outer(self, network: nn.Module) -> list[nn.Module]:
        """The network itself, and its parts that receive shortened rows."""
        return [network, *self._adapter.blocks(network), self._adapter.final_layer(network)]


def _owners(network: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of Python modules that belong to ComfyUI, to PyTorch or to the network itself."""
    return (*OWNERS, type(network).__module__.rpartition(".")[0] + ".")


def _modules(outer: list[nn.Module]) -> Iterator[nn.Module]:
    """The network itself, and all modules that receive shortened rows."""
    yield outer[0]
    for block in outer[1:]:
        yield from block.modules()


def _foreign_code(network: nn.Module, outer: list[nn.Module]) -> Iterator[tuple[nn.Module, str, Any]]:
    """The functions that another pack has replaced or defined: their modules, names and code."""
    owners, kinds = _owners(network), {}
    for module in _modules(outer):
        kind, own = type(module), vars(module)
        if kind not in kinds:
            kinds[kind] = frozenset(dir(kind)), _foreign_functions(kind, owners)
        names, foreign = kinds[kind]
        for name in own.keys() & names:
            code = own[name]
            if callable(code) and not isinstance(code, nn.Module) and not is_written_by(code, owners):
                if getattr(code, "__func__", None) is not getattr(kind, name):
                    yield module, name, code
        for name, code in foreign:
            yield module, name, code


def _foreign_functions(kind: type, owners: tuple[str, ...]) -> list[tuple[str, FunctionType]]:
    """The functions of a class, or of a base of it, that a pack other than its own has written."""
    if issubclass(kind, ROW_BY_ROW):
        return []
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    held = [item for each in bases for item in vars(each).items() if isinstance(item[1], FunctionType)]
    return [(name, code) for name, code in held if name != "__init__" and not is_written_by(code, owners)]


def is_written_by(code: Any, owners: tuple[str, ...]) -> bool:
    """Whether this function is written in a Python module with one of these prefixes. The namespace tells,
    because decorators copy the name of the function's module.
    """
    while isinstance(code, MethodType):
        code = code.__func__
    namespace = getattr(code, "__globals__", {}).get("__name__") or getattr(code, "__module__", None)
    return f"{namespace or type(code).__module__}.".startswith(owners)


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def _code_of(modules: list[nn.Module]) -> tuple:
    """The code that was attached to these modules: hooks, and functions that replace their own."""
    return tuple((*map(id, _hooks(module)), id(vars(module).get("forward"))) for module in modules)
