"""What a captured call depends on: the addresses of the network's weights, and the Python code that ran
during the capture.

A replay of a CUDA graph repeats the kernels of the capture on the same addresses, and runs no Python code. So
before a graph is reused, the network's weights and code (`code_identity`) are compared with those at the
capture.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from weakref import ref

import torch
from torch import Tensor, nn

from .code_identity import COMFYUI, NetworkCode, is_by, owner_code
from .residency import Residency, is_evictable
from .tensors import address_of, same_contents, tensors_of


@dataclass(frozen=True, eq=False)
class Network:
    """A description of a network for comparison, read from its modules once per run.

    Attributes:
        addresses: address, dtype, shape and strides of each weight and buffer, because a graph reads at fixed
            addresses; under dynamic VRAM, of the evictable weights only.
        obstacle: why nothing can be captured, or None.
        sampling: ComfyUI's object that converts noise levels to timesteps; a captured call includes this
            conversion.
        code: what else a captured call depends on: the modules, their classes, their numbers (such as a
            norm's epsilon), and any functions that replace the modules' own methods.
        device: the device that the network runs on.
        loose: under dynamic VRAM, the weights and buffers that are not evictable. These tensors are small.
            ComfyUI creates new ones for each run, but a graph reads those of the run in which it was
            captured. So the contents of these tensors are compared, not their addresses.
        residency: the weights that ComfyUI may evict; None if there are none (no dynamic VRAM).
    """

    addresses: tuple[Hashable, ...]
    obstacle: str | None = None
    sampling: object = None
    code: tuple[Hashable, ...] = ()
    device: torch.device | None = None
    loose: tuple[Tensor, ...] = ()
    residency: Residency | None = None

    def matches(self, other: Network) -> bool:
        """Whether a graph captured on one of these two networks may be replayed on the other."""
        is_same = self.sampling is other.sampling and self.code == other.code
        return is_same and self.addresses == other.addresses and same_contents(self.loose, other.loose)

    @property
    def to_keep(self) -> Network:
        """A copy for comparison with later runs; it keeps no layer alive."""
        return replace(self, residency=None)


def inspect(
    network: nn.Module,
    device: torch.device,
    sampling: object = None,
    owner: object = None,
    residency: Residency | None = None,
) -> Network:
    """Describe a network in its current state.

    Args:
        network: ComfyUI's network.
        device: the device that it runs on.
        sampling: ComfyUI's object that converts noise levels to timesteps.
        owner: ComfyUI's model, which wraps the network.
        residency: the network's evictable weights; None if it has none, or they cannot be pinned.
    """
    modules, of_sampling = _modules(network), _modules(sampling)
    evictable = {module for module in modules if is_evictable(module, device)}
    others = [*(each for each in modules if each not in evictable), *of_sampling]
    tensors = tuple(tensor for module in others for tensor in tensors_of(module))
    read = NetworkCode.of([*modules, *of_sampling])
    if (evictable and residency is None) or any(tensor.device != device for tensor in tensors):
        obstacle = "not all weights are on the device (low memory)"
    else:
        obstacle = read.obstacle(modules) or _kind_obstacle(tensors)
    code = (
        tuple(map(ref, modules)),
        tuple(map(type, modules)),
        _numbers([*modules, *of_sampling]),
        *read.identity,
        owner_code(owner) if owner is not None else (),
    )
    if residency is None:
        return Network(tuple(map(address_of, tensors)), obstacle, sampling, code, device)
    return Network(residency.identity, obstacle, sampling, code, device, tensors, residency)


def _modules(root: object) -> list[nn.Module]:
    """All modules of `root`, each once, in order; none if `root` is not a module. `root` may also be
    ComfyUI's `sampling` object, a module with buffers. `nn.Module.modules` would be slower, because it builds
    the name of every module.
    """
    found, pending = {}, [root] if isinstance(root, nn.Module) else []
    while pending:
        module = pending.pop()
        if module not in found:
            found[module] = None
            pending += [each for each in reversed(module._modules.values()) if each is not None]
    return list(found)


def _numbers(modules: Sequence[nn.Module]) -> tuple[Hashable, ...]:
    """The floating-point attributes of these modules, which a graph repeats as they were in the capture.
    Integers are left out: ComfyUI and other packs count in them.
    """
    return tuple(
        (i, name, value)
        for i, module in enumerate(modules)
        for name, value in module.__dict__.items()
        if value.__class__ is float
    )


def _kind_obstacle(tensors: Sequence[Tensor]) -> str | None:
    """Why the class of one of these tensors prevents a capture, or None. Tensor classes of other packs (such
    as GGUF's) run Python code at each use, and a graph would not repeat this code.
    """
    strange = next((type(t) for t in tensors if not is_by(type(t), COMFYUI, "torch")), None)
    return strange and f"weights are of an unknown kind ({strange.__name__})"
