"""A row of the table, and the run that a cell of it makes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from ras_pack.ras_core.config import RASConfig
from support.families import FAMILIES, Family
from torch import Tensor

SIZE = (16, 16)
"""Height and width of the latents: 8 x 8 tokens."""

STEPS, DENSE_STEPS = 4, 2
CONFIG = RASConfig(
    sample_ratio=0.9, start_step=DENSE_STEPS, error_reset_every=0, corrections=True, cuda_graphs="off"
)
"""58 of 64 tokens are computed in each regional step. The result must be close to that without RAS, although
the networks have random weights; with wrong rows it would not be.
"""

NEAR = 0.2
"""Largest relative distance (L2) between the latents of a fast run and of the run without RAS."""

SOME = -1
"""For a row whose number of regional steps is not known in advance."""


class Outcome(Enum):
    """The outcome of a run; the values are shown on the page."""

    FAST = "fast"
    DENSE = "dense"
    REFUSED = "refused"


FAST, DENSE, REFUSED = Outcome

Patch = Callable[[Any, Family], Any]
"""A node: takes a ModelPatcher, and returns the changed clone."""


def fewer_blocks(family: Family) -> dict[str, int]:
    """Arguments of the family's network, of which two main blocks and one refiner are enough here."""
    config = family.unet_config()
    fewer = {"num_blocks": 2, "n_layers": 2, "n_refiner_layers": 1, "num_layers": 2, "depth_single_blocks": 1}
    return {name: count for name, count in fewer.items() if name in config}


def small(family: Family, seed: int = 0, **changes: Any) -> Any:
    """The family's model with few blocks, a ModelPatcher."""
    return family.build(seed, **fewer_blocks(family), **changes)


def usual_prompts(family: Family) -> dict[str, list]:
    """Replaces none of the usual prompts."""
    return {}


def ksampler(model: Any, family: Family, run: Run) -> Tensor:
    """The latent of ComfyUI's KSampler: (b, c, H, W)."""
    if run.sampler not in comfy.samplers.KSampler.SAMPLERS:
        pytest.skip(f"this ComfyUI has no sampler {run.sampler}")
    noise = family.noise(*run.size, batch=run.batch)
    image = family.noise(*run.size, batch=run.batch, seed=9) if run.has_image else torch.zeros_like(noise)
    prompts = {"positive": family.conditioning(1), "negative": family.conditioning(2), **run.prompts(family)}
    mask = None if run.mask is None else run.mask(noise)
    return comfy.sample.sample(
        model, noise, run.steps, run.cfg, run.sampler, run.scheduler, prompts["positive"],
        prompts["negative"], image, denoise=run.denoise, noise_mask=mask, disable_pbar=True, seed=5,
    )  # fmt: skip


@dataclass(frozen=True)
class Run:
    """How a latent is sampled, with or without RAS.

    Attributes:
        build: makes the model.
        patch: the other node, or None.
        prompts: makes "positive" or "negative" conditionings that replace the usual ones.
        sample: samples the latent with a model.
        around: a context in which the model is built and the latent is sampled.
        size, batch, steps, cfg, sampler, scheduler, denoise: as in ComfyUI's nodes.
        has_image: whether there is an image to start from, instead of an empty latent.
        mask: makes the noise mask from the noise; or None.
        config: settings of RAS.
    """

    patch: Patch | None = None
    build: Callable[[Family], Any] = small
    prompts: Callable[[Family], dict[str, list]] = usual_prompts
    sample: Callable[[Any, Family, Run], Tensor] = ksampler
    around: Callable[[], AbstractContextManager] = nullcontext
    size: tuple[int, int] = SIZE
    batch: int = 1
    steps: int = STEPS
    cfg: float = 4.0
    sampler: str = "euler"
    scheduler: str = "simple"
    denoise: float = 1.0
    has_image: bool = False
    mask: Callable[[Tensor], Tensor] | None = None
    config: RASConfig = CONFIG


@dataclass(frozen=True)
class Row:
    """A combination and what is expected of it.

    Attributes:
        name: the combination, as a user would say it.
        outcome: fast, dense or refused.
        families: those that it is run with; the outcome is the same for all of them.
        run: how a cell is sampled.
        orders: whether the other node is before or after RAS Patch Model. If there are several orders and
            families, each cell has the next of both.
        note: what the page adds for a user; for a dense or refused run, the reason in a user's words.
        reason: text in the reason of a dense run, or in the error of a refused one. A fast run has a reason
            if some of its steps were dense unexpectedly.
        also: text in a second reason, which not every cell has.
        regional: number of regional steps of a fast run; None for all but the first two, SOME for any.
        near: largest relative distance of a fast run from the run without RAS.
        acts: whether the other node must change the latent. Then a fast run must also be closer to the run
            with that node than to the run without it.
        check: further assertions on a cell's result; see `cells.Result`.
        cell: replaces the usual check of a cell; takes the family, and makes its own assertions.
        test: an existing test that asserts the row, as "path::name" or "path::Class::name". Such a row has
            no cells.
        fault: why the outcome is not yet the expected one; such a cell must fail.
    """

    name: str
    outcome: Outcome = FAST
    families: tuple[str, ...] = ("sd3",)
    run: Run = Run()
    orders: tuple[str, ...] = ("before",)
    note: str = ""
    reason: str = ""
    also: str = ""
    regional: int | None = None
    near: float = NEAR
    acts: bool = False
    check: Callable[[Any], None] | None = None
    cell: Callable[[Family], None] | None = None
    test: str = ""
    fault: str = ""

    def cells(self) -> Iterator[tuple[str, str]]:
        """Family and order of each cell."""
        if not self.test:
            count = max(len(self.families), len(self.orders))
            pairs = zip(itertools.cycle(self.families), itertools.cycle(self.orders), strict=False)
            yield from itertools.islice(pairs, count)


@dataclass(frozen=True)
class Group:
    """A table of the page.

    Attributes:
        title: its heading.
        rows: its rows.
        text: what the page says before the table.
        near: the largest distance of its fast rows, unless a row says otherwise on the page.
    """

    title: str
    rows: tuple[Row, ...]
    text: str = ""
    near: float = NEAR


def percent(share: float) -> str:
    """A share as the page writes it."""
    return f"{100 * share:.0f} %"


def family_of(name: str) -> Family:
    """The family with this name; skips the test if this ComfyUI does not have it."""
    return FAMILIES.get(name) or pytest.skip(f"this ComfyUI has no {name}")


def part_of(module: str, name: str) -> Any:
    """A class or function of ComfyUI; skips the test if this ComfyUI does not have it."""
    found = getattr(pytest.importorskip(module), name, None)
    return found or pytest.skip(f"this ComfyUI has no {name}")


def node(module: str, name: str, *args: Any, **kwargs: Any) -> Patch:
    """A patch by ComfyUI's node `name`, which gets these inputs besides the model."""

    def patch(model: Any, family: Family) -> Any:
        kind = part_of(module, name)
        is_new = hasattr(kind, "define_schema")
        result = (kind.execute if is_new else getattr(kind(), kind.FUNCTION))(model, *args, **kwargs)
        return getattr(result, "args", result)[0]

    return patch


def in_turn(*patches: Patch) -> Patch:
    """Several nodes, one after the other."""

    def patch(model: Any, family: Family) -> Any:
        for each in patches:
            model = each(model, family)
        return model

    return patch
