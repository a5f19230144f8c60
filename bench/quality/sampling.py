"""Sample the images of a cell with ComfyUI's own sampling code, many prompts in one batch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import comfy.samplers
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...ras_core.errors import RASError
from ...ras_core.host.measured_runs import Task
from ...ras_core.host.patch import last_trace
from ...ras_core.method.schedule import StepKind
from ...ras_core.models import adapter_for
from .block_cache import work_of_last_run
from .calibrated import costs_of
from .cells import PLANNED, REGIONAL, Cell
from .methods import bound_of, prepare_model, sampler_for
from .options import Options
from .sigma_grids import Levels, levels_named
from .sources import Source

Callback = Callable[[int, Tensor, Tensor, int], None]


@dataclass(frozen=True)
class Sampled:
    """The final latents of a cell, the time that sampling took, and what part of the network ran.

    Attributes:
        latents: (n, c, h, w) float32 on the CPU, in the order of the prompts.
        seconds: sampling time of all images together.
        shares: for each evaluation, the share of the image tokens that it processed, averaged over the
            batches. Evaluations that LazyCache, EasyCache or a whole-step forecast skipped are not listed.
        notes: warnings of the runs, such as why a step that was planned as regional ran dense.
        text_rows: number of text rows of the batch with the longest texts.
        activity: (n, h, w), for each token the share of the regional steps in which it was active; None for
            runs without regional steps.
        work: for each evaluation, the part of the network's blocks that ran, averaged over the batches.
    """

    latents: Tensor
    seconds: float
    shares: tuple[float, ...]
    notes: tuple[str, ...]
    text_rows: int
    activity: Tensor | None = None
    work: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ran:
    """What the run of one batch computed.

    Attributes:
        shares: for each evaluation, the share of the image tokens that it processed.
        notes: warnings of the run, such as why a step that was planned as regional ran dense.
        activity: (b, h, w), for each token the share of the regional steps in which it was active.
        work: for each evaluation, the part of the network's blocks that ran; empty if all of them ran.
    """

    shares: list[float]
    notes: tuple[str, ...] = ()
    activity: Tensor | None = None
    work: list[float] = field(default_factory=list)


@dataclass
class Batch:
    """Prompts that are sampled in one batch.

    Attributes:
        rows: indices of these prompts among all prompts.
        positive: CONDITIONING of these prompts, one entry of the batch dimension per prompt.
        negative: CONDITIONING of the empty prompt, whose batch dimension has length 1.
    """

    rows: list[int]
    positive: list
    negative: list

    @property
    def text_rows(self) -> int:
        return self.positive[0][0].shape[1]


@dataclass
class Studio:
    """A model and the encoded prompts of the options, ready to sample any cell of the model's family."""

    source: Source
    options: Options
    batches: list[Batch] = field(init=False)
    _costs: tuple[float, ...] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        texts = [prompt.text for prompt in self.options.prompts]
        self.batches = make_batches(self.source.encode, texts, self.options.batch)

    @property
    def cfg(self) -> float:
        return self.options.cfg or self.source.cfg

    def sample(self, cell: Cell, latent: Tensor | None = None, sigmas: Tensor | None = None) -> Sampled:
        """Sample all images of a cell.

        Args:
            cell: the settings to sample with.
            latent: latents (n, c, h, w) that noise is added to at the start; None to start from noise alone.
            sigmas: noise levels of the steps; None takes those of the cell's grid.
        """
        model, sampler = prepare_model(self.source.model, cell), sampler_for(cell)
        sigmas = self.sigmas(cell) if sigmas is None else sigmas
        parts, ran = [], []
        started = self._now()
        for batch in self.batches:
            start = None if latent is None else latent[batch.rows]
            with count_calls(self.source) as calls, bound_of(cell):
                parts.append(self.sample_batch(model, sampler, sigmas, batch, cell.seed, start))
            ran.append(self._what_ran(model, cell, calls.rows, len(batch.rows)))
        seconds = self._now() - started
        known = [each.activity for each in ran if each.activity is not None]
        return Sampled(
            self.in_order(parts),
            seconds,
            _mean_shares([each.shares for each in ran]),
            tuple(dict.fromkeys(note for each in ran for note in each.notes)),
            max(batch.text_rows for batch in self.batches),
            self.in_order(known) if len(known) == len(ran) else None,
            _mean_shares([each.work or [1.0] * len(each.shares) for each in ran]),
        )

    @torch.inference_mode()  # as ComfyUI does when it executes nodes
    def sample_batch(
        self,
        model: ModelPatcher,
        sampler: comfy.samplers.KSAMPLER,
        sigmas: Tensor,
        batch: Batch,
        seed: int,
        latent: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Sample one batch with ComfyUI; returns its final latents, (b, c, h, w) float32 on the CPU."""
        shape = self.source.latent_shape(self.options.size)
        texts = [self.options.prompts[row].text for row in batch.rows]
        noise = torch.stack([noise_of(text, seed, shape) for text in texts])
        start = torch.zeros_like(noise) if latent is None else latent
        result = comfy.sample.sample_custom(
            model, noise, self.cfg, sampler, sigmas, batch.positive, batch.negative, start,
            callback=callback, disable_pbar=True, seed=seed,
        )  # fmt: skip
        return result.float().cpu()

    def sigmas(self, cell: Cell, denoise: float = 1.0) -> Tensor:
        """The noise levels of the cell's grid; for a cell without a grid, those that KSampler would use."""
        if cell.grid:
            return torch.tensor(levels_named(cell.grid, cell.steps, self._scheduled, self._block_costs))
        host_name = cell.sampler if cell.sampler in comfy.samplers.KSampler.SAMPLERS else "euler"
        model, scheduler = self.source.model, self.options.scheduler
        return comfy.samplers.KSampler(
            model, cell.steps, self.source.device, host_name, scheduler, denoise
        ).sigmas

    def _scheduled(self, scheduler: str, steps: int) -> Levels:
        if scheduler not in comfy.samplers.SCHEDULER_NAMES:
            known = ", ".join(comfy.samplers.SCHEDULER_NAMES)
            raise RASError(
                f"the grid {scheduler!r}.", f"of ComfyUI's schedulers: {known}.", "correct the grid."
            )
        sampling = self.source.model.get_model_object("model_sampling")
        return tuple(comfy.samplers.calculate_sigmas(sampling, scheduler, steps).tolist())

    def _block_costs(self) -> tuple[float, ...]:
        if self._costs is None:
            self._costs = costs_of(self.source, self.options, self.cfg, self._tasks)
        return self._costs

    def _tasks(self, texts: Sequence[str]) -> Iterator[Task]:
        shape = self.source.latent_shape(self.options.size)
        for batch in make_batches(self.source.encode, texts, self.options.batch):
            noise = torch.stack([noise_of(texts[row], 0, shape) for row in batch.rows])
            yield Task(self.source.model, batch.positive, batch.negative, noise, self.cfg)

    def in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Join one tensor per batch to one tensor whose rows are in the order of the prompts."""
        rows = [row for batch in self.batches for row in batch.rows]
        return torch.cat(list(parts))[torch.tensor(rows).argsort()]

    def decode(self, latents: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Decode latents in batches.

        Yields for each batch the slice of the prompts that it covers, and their RGB images, (b, 3, H, W) in
        [0, 1].
        """
        for first in range(0, len(latents), self.options.batch):
            part = slice(first, min(first + self.options.batch, len(latents)))
            with torch.inference_mode():
                yield part, self.source.decode(latents[part])

    def _what_ran(self, model: ModelPatcher, cell: Cell, rows: int, pictures: int) -> Ran:
        if cell.method in (*REGIONAL, *PLANNED):
            trace = last_trace(model)
            regional = [e.active for e in trace.evaluations if e.kind is StepKind.REGIONAL]
            activity = torch.from_numpy(np.mean(regional, axis=0)) if regional else None
            return Ran([e.active_share for e in trace.evaluations], trace.notes, activity)
        if cell.method == "dbcache":
            work = work_of_last_run(model)
            return Ran([1.0] * len(work), work=work)
        branches = 1 if self.cfg == 1.0 else 2  # at guidance 1 ComfyUI omits the negative prompt
        return Ran([1.0] * round(rows / (branches * pictures)))

    def _now(self) -> float:
        if self.source.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def noise_of(text: str, seed: int, shape: Sequence[int]) -> Tensor:
    """The noise for a prompt and a seed, which does not depend on the other prompts of its batch: float32."""
    own = hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8]
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(own, "little") % 2**63)
    return torch.randn(*shape, generator=generator)


def make_batches(
    encode: Callable[[str], tuple[Tensor, dict[str, Any]]], texts: Sequence[str], size: int
) -> list[Batch]:
    """Split prompts into batches of at most `size`.

    The number of text rows can differ between prompts. Only prompts whose conditionings have the same shape
    share a batch.
    """
    encoded = [encode(text) for text in texts]
    empty = encode("")
    groups: dict[tuple, list[int]] = {}
    for row, (context, _) in enumerate(encoded):
        groups.setdefault(tuple(context.shape), []).append(row)
    batches = []
    for rows in groups.values():
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            batches.append(Batch(part, conditioning([encoded[row] for row in part]), conditioning([empty])))
    return batches


def conditioning(encoded: Sequence[tuple[Tensor, dict[str, Any]]]) -> list:
    """One CONDITIONING for several encoded prompts.

    The tensors of the prompts are joined along the batch dimension. Values that are not tensors are taken
    from the first prompt.
    """
    context = torch.cat([each for each, _ in encoded])
    rest = {name: _joined(name, [values[name] for _, values in encoded]) for name in encoded[0][1]}
    return [[context, rest]]


def _joined(name: str, values: Sequence[Any]) -> Any:
    if not isinstance(values[0], Tensor):
        return values[0]
    # ComfyUI compares the sums of the positive and the negative mask, and would not run both in one call if
    # they differed. So a mask of ones keeps one batch row.
    if name == "attention_mask" and all(bool(value.all()) for value in values):
        return values[0]
    return torch.cat(list(values))


@dataclass
class Calls:
    """Counts the work of a run: `rows` is the sum of the batch sizes of all network calls.

    The batch sizes are read at the network's first main block (`Adapter.main_blocks`).
    """

    rows: int = 0


@contextmanager
def count_calls(source: Source) -> Iterator[Calls]:
    """Context manager that sums the batch sizes of all calls that reach the network.

    Evaluations that a cache such as LazyCache skips do not reach the network, and are not counted.
    """
    calls = Calls()
    block = adapter_for(source.network).main_blocks(source.network)[0]

    def count(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        calls.rows += next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).shape[0]

    handle = block.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _mean_shares(shares: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """For each evaluation of a run, the share of the image tokens that it computed, averaged over the batches
    of prompts.

    A cache such as LazyCache may skip more evaluations in one batch than in another. The batches then differ
    in length, and the evaluations that a shorter batch lacks at its end count as 0.
    """
    longest = max(len(each) for each in shares)
    padded = [[*each, *[0.0] * (longest - len(each))] for each in shares]
    return tuple(sum(column) / len(column) for column in zip(*padded, strict=True))
