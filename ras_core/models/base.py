"""The interface of an adapter: a few facts about a network, no copy of its forward."""

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
"""Value of `suffix_rows` that means: every row that is not an image row comes after the image rows."""

Inputs = Mapping[str, Any]
"""Inputs of one call of ComfyUI's model, by name."""

NO_INPUTS: Final[Inputs] = MappingProxyType({})
"""Empty inputs, for questions about a network that are asked before any call."""

REFERENCES: Final = "ref_latents"
"""Name of the input with reference images, latents (b, c, H, W) of any size. It is also known while the cache
is planned, before any call; other inputs are not."""

FIRST_BLOCK: Final = ("double_block", 0)
"""Name of the first block under which a patch that replaces it is registered."""

Gather = Callable[[Tensor], Tensor]


class GatherPositions(Protocol):
    """Gathers the active rows of a position table."""

    def __call__(self, table: Tensor, axis: int = 1) -> Tensor:
        """Gather along `axis`; axis 0 has one entry for each image, or one for all."""


class ModelAdapter(ABC):
    """One family of diffusion transformers.

    Each tensor inside the network is [prefix | image | suffix] along its rows. An adapter states the suffix
    only. The prefix is the rest of each tensor's rows, so hidden rows, position tables, attentions and the
    final layer's output may have prefixes of different lengths.

    Attributes:
        family: name for messages.
        classes: the supported network classes, as ends of dotted names ("lumina.model.NextDiT"). Subclasses
            do not match, since a subclass may be a different network. The names include the module, since two
            families may use the same class name.
        text_in_hidden: whether text rows come before the image rows in the main blocks' hidden tensor. Only
            a check: rows before the image where none are expected make the run dense.
        runs_wrappers: whether ComfyUI runs other packs' DIFFUSION_MODEL wrappers around this network.
        control_lists: names of the lists that hold a ControlNet's residuals for the image rows.
        cross_attentions: which attentions of a block, counted from 0, attend to the caption only; their
            keys and values need no cache.
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
        """Blocks before the main ones, of the same form, which process the image rows without the text."""
        return ()

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """All blocks that run on active tokens, in the order in which the network runs them."""
        return [*self.refiner_blocks(network), *self.main_blocks(network)]

    @abstractmethod
    def final_layer(self, network: nn.Module) -> nn.Module:
        """The layer whose output rows are the patches of the image tokens."""

    @abstractmethod
    def patch_size(self, network: nn.Module) -> tuple[int, ...]:
        """Latent pixels of a token along each axis of the latent, (h, w) or (t, h, w)."""

    @abstractmethod
    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """Gather the rows of a block's inputs.

        Args:
            args, kwargs: as the network passes them to the block.
            gather_hidden: to be applied to the tensor with the image rows, on axis 1; None if it must not be
                changed.
            gather_positions: to be applied to position tables that every block receives, with the axis of
                their rows. A table that is left out may cause no error: some networks truncate a table that
                is too long.
        """

    @abstractmethod
    def cost_profile(self, network: nn.Module) -> CostProfile:
        """The cost of a token in this network, in multiply-adds."""

    @abstractmethod
    def cache_profile(self, network: nn.Module) -> CacheProfile:
        """The width of a token's keys and values in this network."""

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
            RegionalAbort: residuals of an unknown form, or a patch replaces the first block: if it does not
                run the block, the rows that the first residual is added to are not gathered yet. The call
                then runs on all tokens.
        """
        if control is None:
            return None
        if FIRST_BLOCK in options.get("patches_replace", {}).get("dit", {}):
            raise RegionalAbort("a ControlNet together with a patch that replaces the first block")
        unknown = [name for name, each in control.items() if each and name not in self.control_lists]
        if unknown:
            raise RegionalAbort(f"a ControlNet has residuals of an unknown kind: {unknown}")
        flat_idx = row_index(active_idx, n_tokens, 0, 0)
        return control | {
            name: [_active_rows(each, flat_idx, active_idx, n_tokens) for each in control[name]]
            for name in self.control_lists
            if control.get(name)
        }

    def suffix_rows(self, network: nn.Module, n_tokens: int, inputs: Inputs = NO_INPUTS) -> int:
        """Rows after the image rows (padding, reference images); they are processed at every step.

        Args:
            network: ComfyUI's network.
            n_tokens: image tokens of the whole image.
            inputs: inputs of the call; reference images (`REFERENCES`) may add rows.

        Returns:
            The number of rows after the image rows, or `ALL` if every row that is not an image row comes
            after them.
        """
        return 0

    def unsupported(self, network: nn.Module) -> str | None:
        """What a network of one of `classes` is, in a few words for a message, if it is a variant that was
        not tested; None if it is supported.
        """
        return None

    def refusal(self, network: nn.Module, inputs: Inputs, options: Mapping[str, Any]) -> str | None:
        """Why a call must process all tokens, as a sentence for the log; None if it may be regional.

        Needed for calls that would give wrong results without an error, such as calls with a timestep per row
        or frame, or with row indices among the inputs. Calls that raise an error on fewer rows make the run
        dense anyway.

        Args:
            network: ComfyUI's network.
            inputs: inputs of the call.
            options: its transformer options.
        """
        return None

    def text_rows(self, network: nn.Module, n_text: int) -> int:
        """Number of rows before the image rows for a conditioning of `n_text` rows."""
        return n_text

    def kv_repeat(self, network: nn.Module) -> int:
        """How many times the network repeats each K/V head before attention (grouped-query attention)."""
        return 1

    def matches(self, network: nn.Module) -> bool:
        """Whether this is exactly one of `classes`; compared by name, to avoid importing ComfyUI."""
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
