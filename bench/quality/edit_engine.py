"""Measure editing cells: sample with reference images as a user's workflow does, and count their FLOPs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...ras_core.host.measured_runs import Task
from ...ras_core.method.grid import TokenGrid
from ...ras_core.models import adapter_for
from ...ras_core.models.base import NO_INPUTS, Inputs, rows_of_references
from ...ras_core.models.flux import FluxAdapter
from . import references as refs
from .calibrated import measured_costs
from .cells import Cell
from .edit_cells import EditCell, cost_reduction, step_flops
from .edit_pairs import EditPairs
from .engine import Engine
from .figures import psnr
from .options import Options
from .sampling import Batch, Sampled, Studio, make_batches, noise_of
from .sources import Source, load_source

FIGURES = (
    "evaluations", "token_share", "cost", "cost_own", "seconds", "psnr", "psnr_sem", "ssim", "latent_error",
)  # fmt: skip


class EditStudio(Studio):
    """A studio whose conditionings, positive and negative, have reference images.

    Args:
        source: the editing model.
        options: the options of the sweep; their prompts are those of `pairs`.
        pairs: the pairs to sample.
        others: pairs to calibrate the grid with.
    """

    def __init__(self, source: Source, options: Options, pairs: EditPairs, others: EditPairs):
        super().__init__(source, options)
        self._add_references(self.batches, pairs)
        self._others = others

    def _add_references(self, batches: Sequence[Batch], pairs: EditPairs) -> None:
        for batch in batches:
            pictures = pairs.before[batch.rows].float() / 255
            with torch.inference_mode():
                latent = {"samples": self.source.invert(pictures.to(self.source.device)).float().cpu()}
            batch.positive = with_reference(batch.positive, latent)
            batch.negative = with_reference(batch.negative, latent)

    def _block_costs(self) -> tuple[float, ...]:
        if self._costs is None:
            self._costs = measured_costs(self._tasks(self._others.texts))
        return self._costs

    def _tasks(self, texts: Sequence[str]) -> Iterator[Task]:
        shape = self.source.latent_shape(self.options.size)
        batches = make_batches(self.source.encode, texts, self.options.batch)
        self._add_references(batches, self._others)
        for batch in batches:
            noise = torch.stack([noise_of(texts[row], 0, shape) for row in batch.rows])
            yield Task(self.source.model, batch.positive, batch.negative, noise, self.cfg)


def with_reference(conditioning: list, latent: dict[str, Tensor]) -> list:
    """The conditioning with a reference image, as ComfyUI's node ReferenceLatent makes it."""
    node = importlib.import_module("comfy_extras.nodes_edit_model").ReferenceLatent
    return node.execute(conditioning, latent).args[0]


@contextmanager
def kept_references() -> Iterator[None]:
    """In the body of the `with`, regional steps process the rows of reference images too. (The pack itself
    processes them in dense steps only.)
    """

    def suffix_rows(self: FluxAdapter, network: Any, n_tokens: int, inputs: Inputs = NO_INPUTS) -> int:
        return rows_of_references(inputs, network.patch_size)

    frozen_rows = FluxAdapter.frozen_rows
    FluxAdapter.frozen_rows, FluxAdapter.suffix_rows = lambda *_: 0, suffix_rows
    try:
        yield
    finally:
        FluxAdapter.frozen_rows = frozen_rows
        del FluxAdapter.suffix_rows


class EditEngine(Engine):
    """Measures editing cells in this process."""

    def __init__(self, options: Options, pairs: EditPairs, others: EditPairs, pictures: Path | None = None):
        super().__init__(options, pictures)
        self._pairs, self._others, self._kept = pairs, others, False

    def edit_row(self, edit: EditCell) -> dict[str, Any]:
        """The row of one cell in the results table, by column name."""
        self._kept = edit.kept
        with kept_references() if edit.kept else nullcontext():
            row = self.row(edit.cell)
        cell = edit.cell
        own = {
            name: getattr(cell, name) for name in ("method", "sampler", "grid", "steps", "kv_cache", "extra")
        }
        own["shares"] = "+".join(f"{share:g}" for share in cell.shares)
        references = "kept" if edit.kept else "frozen" if cell.shares else "dense"
        figures = {name: row.get(name) for name in FIGURES}
        return {"key": edit.key, "kind": edit.kind, "references": references, **own, **figures} | {
            "notes": row["notes"]
        }

    def closeness_to_wanted(self, family: str) -> dict[str, float]:
        """PSNR in dB to the wanted images, mean over the pairs: of the converged images, and of the reference
        images, which are what a run that changes nothing would give.
        """
        converged = self.decoded(refs.converged_of(Cell(family), self.options))
        found = torch.cat([part.float().cpu() for part in converged])
        wanted, before = self._pairs.wanted.float() / 255, self._pairs.before.float() / 255
        return {
            "converged_to_wanted": float(psnr(found, wanted).mean()),
            "reference_to_wanted": float(psnr(before, wanted).mean()),
        }

    def _open(self, family: str) -> Studio:
        source = load_source(family, self.options)
        source = replace(source, identity=f"{source.identity}-{self._pairs.digest}")
        return EditStudio(source, self.options, self._pairs, self._others)

    def _costs(self, studio: Studio, sampled: Sampled, cell: Cell) -> dict[str, Any]:
        network, default = studio.source.network, self.options.default_steps
        adapter = adapter_for(network)
        _, height, width = studio.source.latent_shape(self.options.size)
        n = TokenGrid((height, width), adapter.patch_size(network)).n
        profile, shares = adapter.cost_profile(network), sampled.shares
        spent = sum(step_flops(profile, n, sampled.text_rows, share, self._kept) for share in shares)
        dense = step_flops(profile, n, sampled.text_rows, 1.0, self._kept)
        return {
            "evaluations": len(shares),
            "token_share": sum(shares) / cell.steps,
            "cost": cost_reduction(shares, default, self._kept),
            "cost_own": default * dense / spent,
            "seconds": sampled.seconds,
        }
