"""The interface of an adapter. An adapter states the few facts about a family of networks that RAS needs.
Thanks to these facts, RAS can run ComfyUI's own network, and does not need a copy of its forward function.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

from torch import Tensor, nn

from ..errors import RegionalAbort
from .control import gathered_lists
from .cost import CacheProfile, CostProfile
from .row_patches import row_patch

ALL: Final = -1
"""A value for the number of suffix rows, the rows after the image rows. `ALL` means that a tensor has no rows
before its image rows: every row that is not an image row comes after the image rows."""

Inputs = Mapping[str, Any]
"""Inputs of one call of ComfyUI's model, by name."""

NO_INPUTS: Final[Inputs] = MappingProxyType({})
"""An empty dict of inputs. It is the default in methods that may be called before any call of the model."""

REFERENCES: Final = "ref_latents"
"""Name of the model input with reference images, which are latents (b, c, H, W) or (b, c, 1, H, W) of any
size. While the K/V cache is planned, before any call of the model, only this input and `METHOD` are known."""

METHOD: Final = "ref_latents_method"
"""Name of the model input that says how the network uses reference images."""

FIRST_BLOCK: Final = ("double_block", 0)
"""Key in `patches_replace["dit"]` of a patch with which another node replaces the first block."""

Gather = Callable[[Tensor], Tensor]


class GatherPositions(Protocol):
    """Gathers the active rows of a position table."""

    def __call__(self, table: Tensor, axis: int = 1) -> Tensor:
        """The active rows of `table`, a tensor with one row per token on `axis`. Axis 0 of the table has one
        entry per image, or a single entry for all images. If `table` is a tuple, its first entry is the
        tensor; the other entries (such as a flag that selects a layout) are returned unchanged.
        """


class ModelAdapter(ABC):
    """One family of diffusion transformers.

    Inside the network, the rows of a sequence are [prefix | image | frozen | suffix]: text, the image's
    tokens, reference images, padding. An adapter states only the numbers of frozen rows and of suffix rows
    (or `ALL`). All other rows of a tensor that are not image rows are its prefix. So hidden tensors, position
    tables, attentions and the final layer's output may have prefixes of different lengths.

    Attributes:
        family: name of the family in messages.
        classes: the supported network classes, as ends of dotted names ("lumina.model.NextDiT"). Subclasses
            do not match, since a subclass may be a different network. The dotted names include the module,
            since two families may use the same class name.
        text_in_hidden: whether text rows come before the image rows in the main blocks' hidden tensor. This
            is only a check: if rows precede the image rows although `text_in_hidden` is False, the run is
            dense.
        runs_wrappers: whether ComfyUI runs other packs' DIFFUSION_MODEL wrappers around this network.
        control_lists: names of the lists that hold a ControlNet's residuals for the image rows; empty if the
            network reads no residuals.
        cross_attentions: which attentions of a block, counted from 0, attend only to the caption; their
            keys and values need no cache.
        builds_masks: whether the blocks build their attention masks from the rows that they receive, with a
            column for each of these rows, and zeros in the columns of image rows. In a regional call, columns
            of zeros are added for the rows that come from the cache.
        capture_obstacle: why the network's calls cannot be captured as CUDA graphs; None if they can.
    """

    family: str
    classes: tuple[str, ...]
    text_in_hidden: bool
    runs_wrappers: bool = True
    control_lists: tuple[str, ...] = ("input", "output")
    cross_attentions: frozenset[int] = frozenset()
    builds_masks: bool = False
    capture_obstacle: str | None = None

    @abstractmethod
    def main_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """The main blocks in the order in which they run. A regional step runs them on active tokens only."""

    def refiner_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """Blocks before the main blocks that take the same arguments as the main blocks, and process image
        rows without the text.
        """
        return ()

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """All blocks that a regional step runs on active tokens only, in the order in which they run."""
        return [*self.refiner_blocks(network), *self.main_blocks(network)]

    @abstractmethod
    def final_layer(self, network: nn.Module) -> nn.Module:
        """The layer whose output rows are the patches of the image tokens."""

    @abstractmethod
    def patch_size(self, network: nn.Module) -> tuple[int, ...]:
        """Number of latent pixels that a token covers along each axis of the latent, (h, w) or (t, h, w). If
        the latent has an axis t and the patch size does not, each token covers one latent frame.
        """

    @abstractmethod
    def map_block_inputs(
        self, args: tuple, kwargs: dict, gather_hidden: Gather | None, gather_positions: GatherPositions
    ) -> tuple[tuple, dict]:
        """Reduce a block's inputs to the rows of the active tokens.

        Args:
            args, kwargs: the arguments that the network passes to the block.
            gather_hidden: function to apply to the tensor with the image rows, (bb, r, d), or (bb, t, h, w,
                d) if the rows keep the shape of the grid; None if this tensor must not be changed.
            gather_positions: function to call for each position table that every block receives; its
                arguments are the table and the axis on which the table has its rows. A table that is not
                gathered may cause no error, because some networks truncate a table that is too long.
        """

    @abstractmethod
    def cost_profile(self, network: nn.Module) -> CostProfile:
        """What a token costs in this network, in multiply-adds."""

    @abstractmethod
    def cache_profile(self, network: nn.Module) -> CacheProfile:
        """The widths of keys and values in this network, from which the size of the K/V cache is computed."""

    def attentions(self, network: nn.Module) -> int:
        """Number of attentions in all blocks of the network."""
        profile = self.cache_profile(network)
        cross = len(self.cross_attentions) * len(self.blocks(network))
        return len(profile.joint) + len(profile.image) + cross

    def gather_control(
        self, control: dict | None, options: dict, active_idx: Tensor, n_tokens: int
    ) -> dict | None:
        """A ControlNet's residuals for the active tokens only.

        Each list of `control_lists` has one entry for each block: a residual for the image rows, (bb, n, d),
        or None.

        Args:
            control: lists of residuals by name; None if there is no ControlNet.
            options: transformer options of the model call.
            active_idx: (bb, n_active) int64.
            n_tokens: image tokens of the whole image.

        Raises:
            RegionalAbort: the residuals have an unknown form, or another node's patch replaces the first
                block. If such a patch does not call the block, RAS does not gather the active rows there, so
                the first residual would be added to the rows of all tokens. After this error, the call runs
                on all tokens.
        """
        if control is None:
            return None
        if FIRST_BLOCK in options.get("patches_replace", {}).get("dit", {}):
            raise RegionalAbort("a ControlNet is used together with a patch that replaces the first block")
        return gathered_lists(control, self.control_lists, active_idx, n_tokens)

    def frozen_rows(self, network: nn.Module, inputs: Inputs = NO_INPUTS) -> int:
        """Number of rows after the image rows that only dense steps process: the rows of reference images. At
        regional steps, their keys and values come from the cache, like those of cached tokens.

        Args:
            network: ComfyUI's network.
            inputs: inputs of the model call, by name; reference images are in `REFERENCES`.
        """
        return 0

    def suffix_rows(self, network: nn.Module, n_tokens: int, inputs: Inputs = NO_INPUTS) -> int:
        """Number of rows after the image rows and the frozen rows, such as padding. These rows are processed
        at every step.

        Args:
            network: ComfyUI's network.
            n_tokens: image tokens of the whole image.
            inputs: inputs of the model call, by name.

        Returns:
            The number of suffix rows. `ALL` if no row comes before the image rows: then every row that is not
            an image row comes after them, and the number may differ between tensors.
        """
        return 0

    def unsupported(self, network: nn.Module) -> str | None:
        """If the network is of one of `classes`, but of a variant that RAS does not support, a few words that
        name this variant in the error message; None if the network is supported.
        """
        return None

    def refusal(self, network: nn.Module, inputs: Inputs, options: Mapping[str, Any]) -> str | None:
        """Why a call of the model must process all tokens, as a sentence for the log; None if the call may be
        regional.

        A reason is needed for calls that would give wrong results without an error if they were regional,
        such as calls with a timestep for each row or frame, or with row indices among the inputs. Calls that
        raise an error when they get fewer rows need no reason, because the error makes the run dense.

        Args:
            network: ComfyUI's network.
            inputs: inputs of the call.
            options: transformer options of the call.
        """
        if (found := row_patch(network, options)) is None:
            return None
        return f"another node patches the network ({found}), and may rely on the rows of all tokens"

    def text_rows(self, network: nn.Module, n_text: int) -> int:
        """Number of text rows in the network for a conditioning of `n_text` rows: these rows, and those that
        the network adds to them, such as padding or learned rows.
        """
        return n_text

    def kv_repeat(self, network: nn.Module) -> int:
        """How many times the network repeats each K/V head before attention (grouped-query attention)."""
        return 1

    def matches(self, network: nn.Module) -> bool:
        """Whether the network's class is one of `classes`; compared by name, to avoid importing ComfyUI."""
        full = f".{type(network).__module__}.{type(network).__qualname__}"
        return any(full.endswith(f".{each}") for each in self.classes)


def replace_arg(args: tuple, kwargs: dict, position: int, name: str, change: Gather) -> tuple[tuple, dict]:
    """Apply `change` to one argument of a call, which may be passed by position or by name."""
    if name in kwargs:
        return args, {**kwargs, name: change(kwargs[name])}
    return (*args[:position], change(args[position]), *args[position + 1 :]), kwargs


def rows_of_references(inputs: Inputs, patch: int) -> int:
    """Number of rows of all reference images, if a token covers `patch` x `patch` latent pixels."""
    sizes = (each.shape for each in inputs.get(REFERENCES) or ())
    return sum(math.prod(size[2:-2]) * -(-size[-2] // patch) * -(-size[-1] // patch) for size in sizes)
