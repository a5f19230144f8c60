"""One call of a network, as the run package sees it; `host.call` implements `Forward`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ..kv.store import Branch
from .observation import Observations

Attend = Callable[..., Tensor]
"""An attention function that ComfyUI calls instead of its own."""


class Forward(Protocol):
    """One call of ComfyUI's model, which contains the network. `host.call` implements this interface.

    Attributes:
        inputs: the call's arguments by name, such as `x` (bb, c, H, W) and `t` (bb,).
        control: a ControlNet's residuals, which adapters read, or None.
        options: the call's transformer options, which adapters read.
    """

    inputs: dict[str, Any]
    control: dict | None
    options: dict

    def __call__(self, attend: Attend | None = None) -> Tensor:
        """Run the model. If `attend` is given, it replaces ComfyUI's attention. Returns (bb, c, H, W)."""

    def with_control(self, control: dict | None) -> Forward:
        """The same call with other ControlNet residuals."""

    def observed_by(self, observations: Observations) -> Forward:
        """The same call, in which the other nodes' patches that replace blocks are observed."""

    def on(self, inputs: dict[str, Any]) -> Forward:
        """The same call with other inputs: `inputs` has the same names as `captured_inputs`."""

    @property
    def captured_inputs(self) -> dict[str, Any]:
        """The call's inputs and ControlNet residuals by name: everything that may change from step to step.
        Each tensor of a list has a name of its own.
        """

    @property
    def references(self) -> tuple[Hashable, list[Tensor]]:
        """Settings on which the rows of reference images depend, and these images, each (bb, c, h, w)."""

    @property
    def model(self) -> Any:
        """ComfyUI's model."""

    @property
    def network(self) -> nn.Module:
        """The network inside the model."""

    @property
    def sampling(self) -> object:
        """ComfyUI's object that converts noise levels to timesteps."""

    @property
    def conditionings(self) -> list | None:
        """Ids of the conditionings that the call evaluates; None if they are not known."""

    @property
    def replaced_blocks(self) -> tuple[str, ...]:
        """Names of the network's blocks that other nodes' patches replace in this call."""

    @property
    def replacements(self) -> tuple[Any, ...]:
        """The functions that run instead of these blocks."""

    @property
    def other_attention(self) -> Attend | None:
        """The attention function that another node has set for this call, or None."""

    @property
    def wraps_network(self) -> bool:
        """Whether another node wraps the network itself."""

    @property
    def is_compiled(self) -> bool:
        """Whether ComfyUI's torch.compile node compiles the network in this call."""

    @property
    def wraps_inside(self) -> bool:
        """Whether other nodes' code between this pack's wrapper and the network sees the network's output."""

    def graph_obstacle(self) -> str | None:
        """Why the call cannot be captured as a CUDA graph; None if it can."""

    def frozen_options(self) -> Hashable:
        """The transformer options that the network may read, as a value that can be compared with ==.

        Raises:
            TypeError: with the name of an option that cannot be compared.
        """


@dataclass(frozen=True)
class Call:
    """A network call that RAS handles: a dense call, which may fill the K/V cache, or a regional call.

    Attributes:
        network: the network that is called.
        branches: the branches that the call evaluates; each has b entries on the inputs' batch axis.
        forward: runs the call.
    """

    network: nn.Module
    branches: tuple[Branch, ...]
    forward: Forward

    @property
    def variant(self) -> Hashable:
        """The network's number in the run and the names of its replaced blocks. Two calls with the same
        conditionings but different variants need separate K/V caches.
        """
        return self.branches[0][1]
