"""The benchmark harness on tiny networks: result rows, resuming, reference images, batches, and studies."""

import csv
import importlib.util
import inspect
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from ras_pack.bench.quality import references as refs
from ras_pack.bench.quality.cells import Cell, dense_cells
from ras_pack.bench.quality.cli import main, parser
from ras_pack.bench.quality.engine import Engine
from ras_pack.bench.quality.features import Features, distances
from ras_pack.bench.quality.options import Options, options_from
from ras_pack.bench.quality.prompts import HELD_OUT, Prompt, read_prompts
from ras_pack.bench.quality.real import real_halves
from ras_pack.bench.quality.report import gains, report
from ras_pack.bench.quality.sampling import Studio, make_batches, noise_of
from ras_pack.bench.quality.sources import load_source
from ras_pack.bench.quality.sweep import sweep
from ras_pack.bench.quality.table import COLUMNS, Table, claim, read_rows
from ras_pack.bench.quality.weighted_figures import parse_plugins
from ras_pack.ras_core.errors import RASError

FAMILY = "random_sd3"
TEXTS = ("red", "green", "blue")
FAST = Cell(FAMILY, "multirate", "euler", 6, start=2, reset_every=2, ratio=0.5)
"""Steps 0, 1 and 4 of six are dense."""


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(
        tuple(Prompt(text) for text in TEXTS), size=16, batch=2,
        default_steps=6, reference_steps=12, cache=str(tmp_path / "cache"),
    )  # fmt: skip


@pytest.fixture
def engine(options) -> Engine:
    return Engine(options)


class TestRows:
    def test_a_row_has_the_columns_and_their_numbers(self, engine, tmp_path):
        table = Table(tmp_path / "cells.csv")
        table.append(engine.row(FAST))
        with table.path.open(newline="") as file:
            assert tuple(next(csv.reader(file))) == COLUMNS
        row = read_rows(table.path)[0]
        assert row["images"] == 3 and row["evaluations"] == 6 and row["order"] == 1
        assert row["token_share"] == pytest.approx((3 + 3 * 0.5) / 6)
        assert 1.0 < row["cost_own"] < 6 / 4.5 and 1.0 < row["cost_sd3"] < 6 / 4.5
        assert 10 < row["psnr"] < 100 and row["fd"] is None and row["notes"] == ""

    def test_the_converged_run_equals_itself(self, engine):
        row = engine.row(Cell(FAMILY, sampler="dpmpp_2m", steps=12))
        assert row["psnr"] == 100.0 and row["latent_error"] == 0.0

    def test_the_default_dense_run_equals_itself(self, engine):
        row = engine.row(Cell(FAMILY, sampler="ab2", steps=6))
        assert row["psnr_dense"] == 100.0 and row["psnr"] < 100.0 and row["cost_sd3"] == 1.0

    def test_evaluations_that_a_cache_skips_are_not_counted(self, engine):
        plain = engine.row(Cell(FAMILY, steps=6))
        row = engine.row(Cell(FAMILY, "lazycache", steps=6, threshold=3.0))
        assert plain["evaluations"] == 6
        assert row["evaluations"] < 6 and row["cost_sd3"] == pytest.approx(6 / row["evaluations"], rel=0.3)

    def test_easycache_has_an_effect_where_it_is_supported(self, options):
        from comfy_extras.nodes_easycache import EasyCacheHolder

        if "output_channels" not in inspect.signature(EasyCacheHolder).parameters:
            pytest.skip("EasyCache of this ComfyUI (0.3.64) fails on such latents, without this pack too")
        family = "random_lumina2"
        row = Engine(options).row(Cell(family, "easycache", steps=6, threshold=3.0))
        assert row["evaluations"] < 6

    def test_an_image_does_not_depend_on_its_batch(self, options):
        one = Studio(load_source(FAMILY, options), replace(options, batch=1)).sample(FAST)
        all_at_once = Studio(load_source(FAMILY, options), replace(options, batch=3)).sample(FAST)
        assert torch.allclose(one.latents, all_at_once.latents, atol=1e-4)
        assert one.shares == pytest.approx(all_at_once.shares)

    def test_each_seed_and_prompt_has_its_own_noise(self):
        draws = [noise_of(text, seed, (4,)) for text in ("a", "b") for seed in (0, 1)]
        assert torch.equal(draws[0], noise_of("a", 0, (4,)))
        assert len({tuple(draw.tolist()) for draw in draws}) == 4


class TestBatches:
    def test_prompts_of_equal_length_share_batches_and_results_keep_their_order(self, options):
        """Each prompt has its own number of text rows: in this test, its number of letters."""

        def encode(text):
            return torch.full((1, len(text), 2), float(len(text))), {"pooled_output": torch.ones(1, 2)}

        batches = make_batches(encode, ["aa", "b", "cc", "d", "ee"], 2)
        assert [batch.rows for batch in batches] == [[0, 2], [4], [1, 3]]
        assert batches[0].positive[0][0].shape == (2, 2, 2)
        assert batches[0].positive[0][1]["pooled_output"].shape == (2, 2)
        studio = Studio(load_source(FAMILY, options), options)
        studio.batches = batches
        parts = [torch.tensor(batch.rows).float()[:, None] for batch in batches]
        assert studio.in_order(parts).flatten().tolist() == [0, 1, 2, 3, 4]


class TestResume:
    CELLS = dense_cells(FAMILY, ("euler",), (6, 4, 3))

    @staticmethod
    def counting(rows):
        def run(cells):
            for cell in cells:
                rows.append(cell.key)
                yield cell, {"key": cell.key, **vars(cell), "cost_sd3": 6 / cell.steps, "psnr": 20.0,
                             "seconds": 1.0}  # fmt: skip

        return run

    def test_finished_cells_are_not_run_again(self, options, tmp_path):
        ran = []
        sweep(self.CELLS[:2], options, tmp_path / "out", self.counting(ran))
        sweep(self.CELLS, options, tmp_path / "out", self.counting(ran))
        assert ran == [cell.key for cell in self.CELLS]
        assert len(read_rows(tmp_path / "out" / "cells.csv")) == 3
        described = json.loads((tmp_path / "out" / "description.json").read_text())
        assert described.keys() >= {"device", "begun", "updated", "torch", "comfyui", "settings"}

    def test_a_row_that_was_cut_off_is_run_again(self, options, tmp_path):
        ran, path = [], tmp_path / "cells.csv"
        sweep(self.CELLS[:2], options, tmp_path, self.counting(ran))
        path.write_text(path.read_text()[:-30])
        sweep(self.CELLS[:2], options, tmp_path, self.counting(ran))
        assert ran == [self.CELLS[0].key, self.CELLS[1].key, self.CELLS[1].key]
        assert [row["key"] for row in read_rows(path)] == ran[:2]

    def test_an_interrupted_run_keeps_its_finished_cells(self, options, tmp_path):
        def stopping(cells):
            yield from list(self.counting([])(cells))[:1]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sweep(self.CELLS, options, tmp_path, stopping)
        assert len(read_rows(tmp_path / "cells.csv")) == 1

    def test_results_of_other_settings_are_not_mixed(self, options, tmp_path):
        claim(tmp_path, options.identity())
        claim(tmp_path, replace(options, batch=1).identity())
        with pytest.raises(RASError, match="other settings: size differ.*Expected:.*What to do"):
            claim(tmp_path, replace(options, size=32).identity())

    def test_other_columns_are_refused(self, tmp_path):
        folder = tmp_path / ("long" * 40)
        folder.mkdir()
        (folder / "cells.csv").write_text("key,family\n1,2\n")
        with pytest.raises(RASError, match=r"cells\.csv has other columns \(2; first differ.*Expected"):
            read_rows(folder / "cells.csv")


class TestReferences:
    def test_each_is_made_once_and_kept(self, options):
        reference = refs.converged_of(FAST, options)
        first = Engine(options).reference(reference)
        second = Engine(options)
        second.studio(FAMILY).sample = None  # would fail if it were called
        assert torch.equal(first, second.reference(reference))

    def test_its_name_depends_on_everything_that_affects_it(self, options):
        reference = refs.converged_of(FAST, options)
        name = refs.reference_name(reference, options, "weights")
        assert name == refs.reference_name(reference, replace(options, batch=1), "weights")
        for other in (replace(options, size=32), replace(options, prompts=options.prompts[:2])):
            assert name != refs.reference_name(reference, other, "weights")
        assert name != refs.reference_name(reference, options, "other weights")

    def test_a_sweep_needs_one_per_sampler_and_a_converged_one(self, options):
        cells = [FAST, *dense_cells(FAMILY, ("euler", "ab2"), (6, 3))]
        found = [(each.sampler, each.steps) for each in refs.needed(cells, options)]
        assert found == [("dpmpp_2m", 12), ("euler", 6), ("ab2", 6)]


class TestReport:
    @staticmethod
    def rows(points):
        """Result rows of the harness, from tuples (method, sampler, steps, cost reduction, PSNR in dB)."""
        empty = dict.fromkeys(COLUMNS)
        return [
            {**empty, **vars(Cell("sd3", method, sampler, steps)), "cost_sd3": cost, "psnr": quality,
             "images": 4, "key": f"{method}{sampler}{steps}"}
            for method, sampler, steps, cost, quality in points
        ]  # fmt: skip

    def test_gain_over_the_better_baseline(self):
        """At cost reduction 2x, multirate has 33 dB (between 34 and 32), Euler 28 dB and dpmpp_2m 30 dB. So
        the gain over the better baseline is 3 dB. At 3x multirate has no value.
        """
        rows = self.rows([
            ("dense", "euler", 28, 1.0, 33.0), ("dense", "euler", 14, 2.0, 28.0),
            ("dense", "dpmpp_2m", 28, 1.0, 39.0), ("dense", "dpmpp_2m", 7, 4.0, 12.0),
            ("multirate", "dpmpp_2m", 28, 1.5, 34.0), ("multirate", "dpmpp_2m", 20, 2.5, 32.0),
        ])  # fmt: skip
        found = {gain.cost: gain for gain in gains(rows, "sd3")}
        assert (found[2.0].multirate, found[2.0].baseline, found[2.0].name) == (33.0, 30.0, "dpmpp_2m")
        assert found[2.0].gain == pytest.approx(3.0) and found[2.0].verdict == "yes"
        assert found[1.5].gain == pytest.approx(34 - 34.5) and found[1.5].verdict == "no"
        assert found[3.0].gain is None and found[3.0].verdict == "?"

    def test_a_worse_distribution_invalidates_a_gain(self):
        rows = self.rows([
            ("dense", "euler", 28, 1.0, 33.0), ("dense", "euler", 9, 3.0, 20.0),
            ("multirate", "dpmpp_2m", 28, 1.0, 34.0), ("multirate", "dpmpp_2m", 20, 3.0, 30.0),
        ])  # fmt: skip
        for row in rows:
            row["fd"], row["fd_spread"] = (9.0 if row["method"] == "multirate" else 8.0), 0.5
        assert all(gain.verdict == "no" for gain in gains(rows, "sd3") if gain.gain is not None)

    def test_a_setting_that_keeps_the_distribution_counts_even_if_another_has_higher_psnr(self):
        """At cost reduction 3x, dense sampling with fewer steps has 20 dB. One setting has 30 dB and a worse
        Frechet distance than the dense runs, another has 25 dB and the same distance.
        """
        rows = self.rows([
            ("dense", "euler", 28, 1.0, 33.0), ("dense", "euler", 9, 3.0, 20.0),
            ("multirate", "dpmpp_2m", 28, 3.0, 30.0), ("adaptive", "dpmpp_2m", 20, 3.1, 25.0),
        ])  # fmt: skip
        for row in rows:
            row["fd"], row["fd_spread"] = (9.0 if row["psnr"] == 30.0 else 8.0), 0.5
        found = {gain.cost: gain for gain in gains(rows, "sd3")}[3.0]
        assert found.setting.startswith("multirate") and found.gain == pytest.approx(10.0)
        assert found.kept.startswith("adaptive") and found.kept_gain == pytest.approx(5.0)
        assert found.verdict == "yes"

    def test_seeds_are_averaged(self):
        rows = self.rows([("multirate", "dpmpp_2m", 28, 2.0, 30.0), ("multirate", "dpmpp_2m", 28, 2.0, 32.0)])
        rows[1]["seed"] = 1
        assert {gain.cost: gain.multirate for gain in gains(rows, "sd3")}[2.0] == 31.0

    def test_an_empty_folder_is_reported(self, tmp_path):
        with pytest.raises(RASError, match="no results in"):
            report(tmp_path)


class TestCommandLine:
    def test_a_small_sweep_end_to_end(self, tmp_path, capsys):
        command = [
            "sweep", "--families", FAMILY, "--count", "2", "--size", "16", "--batch", "2", "--device", "cpu",
            "--methods", "dense,multirate,random", "--steps", "6,3", "--samplers", "euler", "--ratios", "0.5",
            "--starts", "2", "--default-steps", "6", "--reference-steps", "8",
            "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"),
        ]  # fmt: skip
        assert main(command) == 0
        out = capsys.readouterr().out
        assert "multirate against fewer steps" in out and "multirate dpmpp_2m 6/2/4 50%" in out
        assert (tmp_path / "out" / f"pictures_{FAMILY}.png").is_file()
        assert main(["report", str(tmp_path / "out")]) == 0

    def test_errors_have_three_parts(self, tmp_path, capsys):
        assert main(["sweep", "--prompts", str(tmp_path / "none.txt"), "--device", "cpu"]) == 1
        told = capsys.readouterr().err
        assert "no prompt file" in told and "Expected:" in told and "What to do:" in told

    @pytest.mark.parametrize(
        "name", ["metrics", "start-step", "pareto", "backgrounds", "drift", "early-steps", "inpaint"]
    )
    def test_every_study_is_a_command(self, name):
        assert parser().parse_args([name]).command == name

    def test_held_out_prompts(self):
        prompts = read_prompts(HELD_OUT)
        assert len(prompts) == len(set(prompts)) == 256
        assert all(p.text.startswith(p.style) and p.text.endswith(f"on {p.background}") for p in prompts)

    def test_a_users_prompts(self, tmp_path):
        (tmp_path / "mine.txt").write_text("a fox\n\n a hen \n")
        assert read_prompts(tmp_path / "mine.txt") == (Prompt("a fox"), Prompt("a hen"))

    def test_options_can_be_sent_to_another_process(self, options):
        plain = json.loads(json.dumps(options.as_dict()))
        assert options_from(plain) == options


class TestRealPictures:
    def test_files_are_split_into_two_halves(self, tmp_path):
        for number in range(5):
            Image.new("RGB", (30, 20), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
        halves = [torch.cat(list(half)) for half in real_halves(tmp_path, size=8, batch=2)]
        assert [half.shape for half in halves] == [(3, 3, 8, 8), (2, 3, 8, 8)]
        assert [round(float(p[0].mean()) * 255 / 50) for half in halves for p in half] == [0, 2, 4, 1, 3]

    def test_too_few_images_are_an_error(self, tmp_path):
        with pytest.raises(RASError, match="0 images in"):
            real_halves(tmp_path, size=8, batch=2)

    def test_distances_to_both_halves(self):
        """The two halves of the reference images have means 0 and 2 of the only feature, and equal variance.
        The images have mean 1, so their distance to either half is 1. The distance between the halves is 4.
        """

        def at(mean):
            column = torch.tensor([[-1.0], [1.0]]) + mean
            return Features(column, 2 * column)

        figures = distances(at(1.0), (at(0.0), at(2.0)))
        assert (figures["fd"], figures["fd_spread"], figures["fd_floor"]) == pytest.approx((1.0, 0.0, 4.0))
        assert figures["fd_block4"] == pytest.approx(4.0)
        assert distances(at(1.0), None) == {}


class TestPlugins:
    def test_unknown_plugins_are_refused(self):
        assert parse_plugins("lpips, clip_score=models/clip") == (
            ("lpips", ""),
            ("clip_score", "models/clip"),
        )
        with pytest.raises(RASError, match="--with magic.*Expected: of lpips, clip_score, fid"):
            parse_plugins("magic")

    @pytest.mark.parametrize("name", ["lpips", "clip_score", "fid"])
    def test_missing_weights_are_an_error(self, options, name, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(RASError, match="Expected:.*What to do:"):
            Engine(replace(options, plugins=((name, ""),))).row(FAST)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install ray)")
def test_a_cluster_of_two_workers_gives_the_same_figures(options, tmp_path):
    from ras_pack.bench.quality.cluster import ray_runner

    options = replace(options, threads=torch.get_num_threads())
    cells = [FAST, replace(FAST, method="random"), *dense_cells(FAMILY, ("euler", "ab2"), (6, 3))]
    here = sweep(cells, options, tmp_path / "here")
    there = sweep(cells, replace(options, cache=str(tmp_path / "cache2")), tmp_path / "there",
                  ray_runner("local", options, workers=2))  # fmt: skip

    def without_time(rows):
        return {row["key"]: {k: v for k, v in row.items() if k != "seconds"} for row in rows}

    assert without_time(read_rows(here.path)) == without_time(read_rows(there.path))
