"""Measuring edits: pairs of images, plans of equal cost, runs with a reference image, and the README."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ras_pack.bench.quality import edit_engine
from ras_pack.bench.quality.cells import Cell
from ras_pack.bench.quality.edit_cells import (
    FAMILY,
    FROZEN,
    EditCell,
    best_cells,
    cost_reduction,
    plain_cells,
    plan_cells,
    shares_of,
    step_cost,
    variants_of,
)
from ras_pack.bench.quality.edit_engine import EditEngine, kept_references
from ras_pack.bench.quality.edit_pairs import read_pairs
from ras_pack.bench.quality.edit_report import read_rows, write_readme
from ras_pack.bench.quality.edit_sweep import sweep_edits
from ras_pack.bench.quality.options import Options
from ras_pack.bench.quality.sources import load_source
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.models.flux import FluxAdapter
from ras_pack.ras_core.run.partial_forward import CallContext, NetworkCall
from ras_pack.training.data import is_held_out
from ras_pack.training.edits import BACKGROUND, STYLE
from support.comfy import ROOT
from support.families import FAMILIES
from support.sampling import distance

RANDOM_FLUX = "random_flux"
VARIANTS = [*FROZEN[1:], "exact"]
SIZE = 16
"""A random network's latent has as many pixels as its image, so that an image of 16 px has 64 tokens."""


@pytest.fixture
def artwork(tmp_path):
    """A folder of artwork: two styles of 40 emoji, each a square of its own colour."""
    items, pictures = [], []
    for number in range(40):
        for style in ("noto", "twemoji"):
            code = f"{0x1F600 + number:X}"
            entry = {"style": style, "hexcode": code, "label": f"thing {number}", "tags": [], "group": 1}
            items.append({**entry, "file": f"{style}/{code}.svg"})
            picture = np.zeros((32, 32, 4), np.uint8)
            picture[8:24, 8:24] = (6 * number, 128 if style == "noto" else 0, 90, 255)
            pictures.append(picture)
    folder = tmp_path / "artwork"
    folder.mkdir()
    (folder / "items.json").write_text(json.dumps(items))
    np.save(folder / "pictures.npy", np.stack(pictures))
    return folder


class TestPairs:
    def test_wanted_images_are_held_out_and_no_calibration_pair_is_measured(self, artwork):
        pairs, others = read_pairs(artwork, 4, SIZE, calibration=2)
        codes = [(edit.item.hexcode, edit.item.style) for edit in (*pairs.edits, *others.edits)]
        assert len(set(codes)) == 6 and all(is_held_out(*code) for code in codes)
        assert pairs.before.shape == pairs.wanted.shape == (4, 3, SIZE, SIZE)

    def test_they_do_not_depend_on_the_count(self, artwork):
        few, many = read_pairs(artwork, 2, SIZE)[0], read_pairs(artwork, 4, SIZE)[0]
        assert few.edits == many.edits[:2] and few.texts == many.texts[:2]

    def test_what_an_edit_does_not_change_is_equal(self, artwork):
        for edit, before, wanted in zip(*self._parts(artwork), strict=True):
            corner, centre = (slice(None), 0, 0), (slice(None), SIZE // 2, SIZE // 2)
            assert torch.equal(before[corner], wanted[corner]) == (edit.kind == STYLE)
            assert torch.equal(before[centre], wanted[centre]) == (edit.kind == BACKGROUND)

    @staticmethod
    def _parts(artwork):
        pairs, _ = read_pairs(artwork, 5, SIZE)
        return pairs.edits, pairs.before, pairs.wanted

    def test_too_few_images_or_no_folder(self, artwork, tmp_path):
        with pytest.raises(RASError, match="lower --count"):
            read_pairs(artwork, 80, SIZE)
        with pytest.raises(RASError, match="no artwork"):
            read_pairs(tmp_path / "none", 2, SIZE)


class TestCells:
    def test_costs_are_those_of_the_families_page(self):
        """28 steps, of which 6 are dense, on Flux.1 at 1024 px with one reference image."""
        for share, frozen, kept in ((0.5, 2.25, 1.23), (0.25, 2.83, 1.38)):
            shares = [1.0] * 6 + [share] * 22
            assert cost_reduction(shares, 28, kept=False) == pytest.approx(frozen, abs=0.01)
            assert cost_reduction(shares, 28, kept=True) == pytest.approx(kept, abs=0.01)
        assert cost_reduction([1.0] * 14, 28, kept=True) == cost_reduction([1.0] * 14, 28, kept=False) == 2

    @pytest.mark.parametrize("kept", [False, True])
    def test_plans_reach_their_speed_and_no_more(self, kept):
        cells = plan_cells(28, kept)
        assert len(cells) > 8
        for each in cells:
            speed = cost_reduction(each.cell.shares, 28, kept)
            assert min(abs(speed / wanted - 1) for wanted in (1.5, 2.0, 2.5, 3.0)) < 0.005
            assert speed >= min(wanted for wanted in (1.5, 2.0, 2.5, 3.0) if speed < 1.1 * wanted)

    def test_no_plan_meets_a_budget_below_its_dense_steps(self):
        assert shares_of(4.0, 5, 0.5, 0, step_cost(False)) is None

    def test_a_row_leads_back_to_its_cell(self):
        for each in (*plain_cells()[:3], *plan_cells(28, False)[:3], *plan_cells(28, True)[:1]):
            assert EditCell.of_row(self._row(each)).key == each.key

    def test_variants_and_the_best_cells(self):
        frozen, plain = plan_cells(28, False), plain_cells()
        rows = [self._row(each, psnr=30 + number) for number, each in enumerate(frozen)]
        variants = variants_of(rows)
        assert {each.kind for each in variants} == set(VARIANTS)
        best = best_cells([*rows, *(self._row(each, psnr=20) for each in plain)])
        assert sum(each.kind == "frozen" for each in best) == 4

    def test_published_results_lead_to_runs_that_the_pack_can_do(self):
        rows = read_rows(ROOT / "bench" / "results" / "2026-11-28-h100" / "edit" / "cells.csv")
        cells = [*best_cells(rows), *variants_of(rows)]
        assert len(cells) > 20 and {each.key for each in cells} <= {row["key"] for row in rows}

    @staticmethod
    def _row(each: EditCell, psnr: float = 30.0) -> dict:
        cell = each.cell
        told = {name: str(getattr(cell, name)) for name in ("method", "sampler", "grid", "kv_cache", "extra")}
        shares = cell.step_shares() if cell.shares else [1.0] * cell.steps
        return {
            **told, "steps": str(cell.steps), "shares": "+".join(f"{share:g}" for share in cell.shares),
            "references": "kept" if each.kept else "frozen", "kind": each.kind, "psnr": psnr,
            "cost": cost_reduction(shares, 28, each.kept),
        }  # fmt: skip


class TestRuns:
    """Runs of a tiny random Flux in place of the editing model."""

    @pytest.fixture
    def engine(self, artwork, tmp_path, monkeypatch):
        def source(family, options):
            return replace(load_source(RANDOM_FLUX, options), family=family)

        monkeypatch.setattr(edit_engine, "load_source", source)
        pairs, others = read_pairs(artwork, 3, SIZE, calibration=2)
        options = Options(
            pairs.prompts, size=SIZE, batch=2, default_steps=6, reference_steps=12,
            cache=str(tmp_path / "cache"),
        )  # fmt: skip
        return EditEngine(options, pairs, others)

    SHARES = (1.0, 1.0, 1.0, 0.5, 0.5, 0.5)

    def _plan(self, **more) -> Cell:
        return Cell(FAMILY, "plan", "ab2", grid="simple", shares=self.SHARES, kv_cache="forecast", **more)

    def test_references_are_frozen_or_kept_and_counted(self, engine):
        frozen, kept = (engine.edit_row(EditCell(self._plan(), each)) for each in (False, True))
        for row, is_kept in ((frozen, False), (kept, True)):
            assert row["evaluations"] == 6 and row["token_share"] == pytest.approx(0.75)
            assert row["cost"] == pytest.approx(cost_reduction(self.SHARES, 6, is_kept))
        assert frozen["cost_own"] > kept["cost_own"] > 1
        assert frozen["psnr"] != kept["psnr"] and "dense steps only" not in kept["notes"]
        assert "frozen_rows" in vars(FluxAdapter) and "suffix_rows" not in vars(FluxAdapter)

    def test_the_reference_image_matters(self, engine):
        with_it = engine.studio(FAMILY).sample(Cell(FAMILY, steps=2)).latents
        batches = engine.studio(FAMILY).batches
        assert all("reference_latents" in group[0][1] for b in batches for group in (b.positive, b.negative))
        for batch in batches:
            for group in (batch.positive, batch.negative):
                group[0][1]["reference_latents"] = [-group[0][1]["reference_latents"][0]]
        assert not torch.equal(with_it, engine.studio(FAMILY).sample(Cell(FAMILY, steps=2)).latents)

    def test_a_sweep_resumes_and_its_readme_has_all_kinds(self, engine, tmp_path, monkeypatch):
        out = tmp_path / "out"
        sweep = "ras_pack.bench.quality.edit_sweep"
        monkeypatch.setattr(f"{sweep}.plain_cells", lambda: [EditCell(Cell(FAMILY, sampler="ab2", steps=3))])
        monkeypatch.setattr(f"{sweep}.plan_cells", lambda _, kept: [EditCell(self._plan(), kept)])
        table, texts = out / "cells.csv", []
        for _ in range(3):
            sweep_edits(engine, engine.options, engine._pairs, out, command="measure")
            texts.append(table.read_text())
            if len(texts) == 1:  # as if it had been interrupted while it wrote the last line
                table.write_text(texts[0][:-60])
        assert texts[1] == texts[2] and texts[1].count("\n") == texts[0].count("\n")
        rows = read_rows(table)
        assert [row["kind"] for row in rows] == ["ab2", "frozen", "kept", *VARIANTS]
        text = write_readme(out)
        assert "3 held-out edits" in text and "    measure" in text


def test_a_regional_call_with_kept_references_equals_the_dense_call():
    """A third of the tokens, and the rows of two reference images. Keys and values of the other tokens are
    those of a dense call with the same inputs; those of the references are computed again.
    """
    family, active = FAMILIES["flux_kontext"], torch.arange(0, 64, 3)[None]
    model, x = family.build(), family.noise()
    given, network = family.inputs(model, x), model.model.diffusion_model
    context, slots, outputs = CallContext(given), {}, []
    inputs = {**given, "timestep": torch.tensor([0.7])}
    inputs["context"] = inputs.pop("c_crossattn")
    with kept_references():
        for chosen in (None, active):
            call = NetworkCall(adapter_for(network), network, 64, slots, chosen, context)
            with call.attached(), torch.no_grad():
                options = {"optimized_attention_override": call.attend}
                outputs.append(network(x, **inputs, transformer_options=options))
            assert call.frozen_rows == 0
            for rows in slots.values():
                rows.value[:, -family.reference_rows :] *= 1.0 if chosen is not None else 100.0
    dense, regional = outputs
    pixels = TokenGrid((16, 16), (2, 2)).active_pixels(active).expand_as(dense)
    assert distance(regional[pixels], dense[pixels]) < 2e-5
