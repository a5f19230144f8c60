"""What the method must know about a network: a few facts, no copy of its forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

from torch import Tensor, nn

from ..errors import RegionalAbort
from ..rows import gather_rows, row_index
from .cost import CacheProfile, CostProfile

ALL: Final = -1
"""As a number of suffix rows: all rows that are not of the image come after it, however many there are."""

Inputs = Mapping[str, Any]
"""Inputs of one call of ComfyUI's model, by name."""

NO_INPUTS: Final[Inputs] = MappingProxyType({})
"""Where rows are planned before any call."""

Gather = Callable[[Tensor], Tensor]


class GatherPositions(Protocol):
    """Keeps the active rows of a position table."""

    def __call__(self, table: Tensor, axis: int = 1) -> Tensor:
        """Rows on `axis`, images of the batch (or a single one for all of them) on axis 0."""


class ModelAdapter(ABC):
    """One family of diffusion transformers.

    Each tensor inside the network is [prefix | image | suffix] along its rows. Only the suffix is stated: the
    prefix is what remains of the tensor's own rows, so it may differ between hidden rows, position tables,
    attentions and the final layer's output.

    Attributes:
        family: name for messages.
        classes: the network classes it was tested with, as ends of dotted names ("lumina.model.NextDiT"). A
            subclass may be another network, and two families may name a class alike.
        text_in_hidden: whether text rows come before the image rows in the main blocks' hidden tensor. Only
            a check: rows before the image where none are expected make the run dense.
        runs_wrappers: whether ComfyUI runs other packs' DIFFUSION_MODEL wrappers around this network.
        control_lists: names of the lists in which a ControlNet gives residuals for the image rows.
        cross_attentions: which attentions of a block, counted from 0, look at the caption only; they
            are left alone.
    """

    family: str
    classes: tuple[str, ...]
    text_in_hidden: bool
    runs_wrappers: bool = True
    control_lists: tuple[str, ...] = ("input", "output")
    cross_attentions: frozenset[int] = frozenset()

    @abstractmethod
    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """The blocks that a regional step runs on active tokens only, in order."""

    def refiner_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """Blocks of the same form before the main ones, which see the image rows without the text."""
        return ()

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """All blocks that run on active tokens, in the order in which the network runs them."""
        return [*self.refiner_blocks(network), *self.main_blocks(network)]

    @abstractmethod
    def final_layer(self, network: nn.Module) -> nn.Module:
        """The layer whose output rows are the image tokens' patches."""

    @abstractmethod
    def patch_size(self, network: nn.Module) -> tuple[int, ...]:
        """Latent pixels of a token along each axis of the latent, (h, w) or (t, h, w)."""

    @abstractmethod
    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """A block's inputs with rows gathered.

        Args:
            args, kwargs: as the network passes them to the block.
            gather_hidden: for the tensor that holds the image rows, on axis 1; None where it needs no change.
            gather_positions: for position tables that every block gets, with the axis of their rows. A table
                that is forgotten does not always fail: ComfyUI may cut one that is too long.
        """

    @abstractmethod
    def cost_profile(self, network: nn.Module) -> CostProfile:
        """What a token costs in this network."""

    @abstractmethod
    def cache_profile(self, network: nn.Module) -> CacheProfile:
        """What is cached of a token in this network."""

    def gather_control(
        self, control: dict | None, options: dict, active_idx: Tensor, n_tokens: int
    ) -> dict | None:
        """A ControlNet's residuals for the active tokens only.

        The lists of `control_lists` hold (bb, n, d) for the image rows, or None, for one block after another.

        Args:
            control: residuals by the name of their list; None without a ControlNet.
            options: the call's transformer options.
            active_idx: (bb, n_active) int64.
            n_tokens: image tokens of the whole image.

        Raises:
            RegionalAbort: residuals of a form that is not known; the call then runs on all tokens.
        """
        if control is None:
            return None
        unknown = [name for name, each in control.items() if each and name not in self.control_lists]
        if unknown:
            raise RegionalAbort(f"a ControlNet gives residuals for {unknown}, of which nothing is known")
        flat_idx = row_index(active_idx, n_tokens, 0, 0)
        return control | {
            name: [_active_rows(each, flat_idx, active_idx, n_tokens) for each in control[name]]
            for name in self.control_lists
            if control.get(name)
        }

    def suffix_rows(self, network: nn.Module, n_tokens: int, inputs: Inputs = NO_INPUTS) -> int:
        """Rows after the image rows (padding, say); they are processed at every step.

        Args:
            network: ComfyUI's network.
            n_tokens: image tokens of the whole image.
            inputs: of the call; reference images may add rows.

        Returns:
            Their number, or `ALL`.
        """
        return 0

    def refusal(self, network: nn.Module, inputs: Inputs, options: Mapping[str, Any]) -> str | None:
        """Why a call of this network must process all tokens, as a sentence for the log; None if it need not.

        For what would go wrong without an error: a timestep for each row or frame, row indices among the
        inputs. Anything that raises with fewer rows makes the run dense by itself.

        Args:
            network: ComfyUI's network.
            inputs: of the call.
            options: its transformer options.
        """
        return None

    def text_rows(self, network: nn.Module, n_text: int) -> int:
        """Rows that a conditioning of `n_text` rows takes in front of the image rows."""
        return n_text

    def kv_repeat(self, network: nn.Module) -> int:
        """How often the network repeats each K/V head before attention (grouped-query attention)."""
        return 1

    def matches(self, network: nn.Module) -> bool:
        """Whether this is exactly one of `classes`; no module of ComfyUI is imported to see that."""
        full = f".{type(network).__module__}.{type(network).__qualname__}"
        return any(full.endswith(f".{each}") for each in self.classes)


def _active_rows(
    residual: Tensor | None, flat_idx: Tensor, active_idx: Tensor, n_tokens: int
) -> Tensor | None:
    if residual is None:
        return None
    if residual.ndim != 3 or residual.shape[:2] != (active_idx.shape[0], n_tokens):
        raise RegionalAbort(f"a ControlNet residual of shape {tuple(residual.shape)} for {n_tokens} tokens")
    return gather_rows(residual, flat_idx)


def replace_arg(args: tuple, kwargs: dict, position: int, name: str, change: Gather) -> tuple[tuple, dict]:
    """Change one argument, passed by position or by name."""
    if name in kwargs:
        return args, {**kwargs, name: change(kwargs[name])}
    return (*args[:position], change(args[position]), *args[position + 1 :]), kwargs
