"""Finds code of other packs that receives rows inside a network, and decides whether this code also works if
it receives the rows of active tokens only.

In a regional call, the code inside a network receives the rows of active tokens only. Code of another pack
may need the rows of all tokens: it may add a tensor with a row for each token, mix rows, check their number,
or keep state from one block to the next. If a call fails halfway, it cannot be repeated, because the failed
call has already changed that state. So this module looks for such code before a network's first regional
call, and `observation` observes during the dense calls what the code does to the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from ..models.base import ModelAdapter
from .foreign import may_keep
from .observation import ROWS, Observations

OWNERS = ("comfy.", "comfy_", "torch.")
"""Prefixes of the names of ComfyUI's and PyTorch's Python modules. Their code works on any number of rows."""

ROW_BY_ROW = (nn.Linear, nn.LayerNorm, nn.Identity)
"""Classes of layers that compute each row independently of the other rows. The quantised layers that other
packs derive from these classes are assumed to do the same."""

CHANGED = f"another node changed code of the network's blocks during the run, which {ROWS}"


class OtherCode:
    """Code of other packs in the networks of one run."""

    def __init__(self, adapter: ModelAdapter):
        self._adapter = adapter
        # By network: code attached to its blocks in the last dense call.
        self._known: dict[nn.Module, tuple] = {}
        self._hooked: dict[nn.Module, list[nn.Module]] = {}  # by network: modules with other packs' hooks
        self._suspects: list[nn.Module] = []  # modules inside blocks that run code of other packs
        self._observations = Observations()

    def obstacle(self, network: nn.Module, is_regional: bool = False) -> str | None:
        """Why calls of this network must be dense, as a sentence; None if no reason is known.

        Before a dense call, all modules in the blocks are searched for code of other packs. Before a regional
        call, this function only compares the code attached to the blocks with that of the last dense call,
        because this takes less time.
        """
        try:
            blocks = self._outer(network)
        except AttributeError:
            return f"another node has replaced parts of the network, and its code {ROWS}"
        if is_regional and network in self._known:
            return None if self._known[network] == _code_of(blocks) else CHANGED
        self._suspects = []
        for module, name, code in _foreign_code(network, blocks):
            if module in blocks or name != "forward" or may_keep(code, trusts_modules=True):
                return f"another node's code replaces {name} of {type(module).__name__}, and {ROWS}"
            self._suspects.append(module)
        return None

    @contextmanager
    def observed(self, network: nn.Module, is_regional: bool = False) -> Iterator[Observations]:
        """Observe what code of other packs does in the body of the `with`. The body is one call of the
        network, for which `obstacle` has returned None. In a regional call, only the modules are observed
        that had hooks of other packs in the last dense call.
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
        """Why calls must be dense from now on, according to the last observed call; None if no reason was
        found.
        """
        return self._observations.finding()

    def _look_at(self, network: nn.Module) -> None:
        """Before a dense call: find the hooks of other packs, and arrange that during this call the modules
        in `_suspects` also run on some of their rows only.
        """
        blocks, owners = self._outer(network), _owners(network)
        self._known[network] = _code_of(blocks)
        for module in dict.fromkeys(self._suspects):
            self._observations.try_some_rows(module)
        self._hooked[network] = [
            module
            for module in _modules(blocks)
            if module._forward_pre_hooks or module._forward_hooks
            if not all(is_written_by(each, owners) for each in _hooks(module))
        ]

    def _outer(self, network: nn.Module) -> list[nn.Module]:
        """The network itself, its blocks and its final layer. A regional call gives the blocks and the final
        layer the rows of active tokens only.
        """
        return [network, *self._adapter.blocks(network), self._adapter.final_layer(network)]


def _owners(network: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of Python modules that belong to ComfyUI, to PyTorch or to the network itself."""
    return (*OWNERS, type(network).__module__.rpartition(".")[0] + ".")


def _modules(outer: list[nn.Module]) -> Iterator[nn.Module]:
    """The network itself, and all modules inside its blocks and its final layer."""
    yield outer[0]
    seen, left = set(), outer[:0:-1]
    while left:  # `nn.Module.modules` makes names too, and takes many times as long
        module = left.pop()
        if module not in seen:
            seen.add(module)
            yield module
            if inner := module._modules:
                left += [child for child in reversed(inner.values()) if child is not None]


def _foreign_code(network: nn.Module, outer: list[nn.Module]) -> Iterator[tuple[nn.Module, str, Any]]:
    """The functions that come from another pack, either set on a module itself or defined in its class. Each
    result is the module, the function's name and the function.
    """
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
    """The functions of a class, or of its base classes, that are written in none of the Python modules of
    `owners`, i.e. in another pack.
    """
    if issubclass(kind, ROW_BY_ROW):
        return []
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    held = [item for each in bases for item in vars(each).items() if isinstance(item[1], FunctionType)]
    return [(name, code) for name, code in held if name != "__init__" and not is_written_by(code, owners)]


def is_written_by(code: Any, owners: tuple[str, ...]) -> bool:
    """Whether this function is written in a Python module whose name has one of the prefixes `owners`. The
    module's name is read from the function's global variables: `__module__` would be wrong for a function
    that a decorator returns, because decorators copy `__module__` from the decorated function.
    """
    while isinstance(code, MethodType):
        code = code.__func__
    namespace = getattr(code, "__globals__", {}).get("__name__") or getattr(code, "__module__", None)
    return f"{namespace or type(code).__module__}.".startswith(owners)


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def _code_of(modules: list[nn.Module]) -> tuple:
    """The ids of the code that is attached to these modules: hooks, and functions that replace `forward`."""
    return tuple((*map(id, _hooks(module)), id(vars(module).get("forward"))) for module in modules)
