"""The studies of the benchmark on tiny networks: each study writes a table with correct figures."""

from pathlib import Path

import pytest
import torch
from ras_pack.bench.quality.cells import Cell
from ras_pack.bench.quality.known_tokens import InsideFirst, mask_of
from ras_pack.bench.quality.options import Options
from ras_pack.bench.quality.prompts import Prompt
from ras_pack.bench.quality.sampling import Studio
from ras_pack.bench.quality.sources import load_source
from ras_pack.bench.studies import inpainting, metrics
from ras_pack.bench.studies.backgrounds import converged_sigmas, partial_sigmas
from ras_pack.bench.studies.drift import compare, relative, watch
from ras_pack.bench.studies.scenes import make_scenes
from ras_pack.ras_core.method.grid import TokenGrid

FAMILIES = ["random_sd3", "random_sd35_medium", "random_lumina2"]


def options_in(folder: Path) -> Options:
    return Options(
        (Prompt("red"), Prompt("blue")), size=16, batch=2, default_steps=8, reference_steps=10,
        cache=str(folder),
    )  # fmt: skip


def studio_of(family: str, folder: Path) -> Studio:
    options = options_in(folder)
    return Studio(load_source(family, options), options)


class TestMetrics:
    def test_an_oracle_captures_most_and_random_its_ratio(self, tmp_path):
        studio = studio_of("random_sd3", tmp_path)
        captured = metrics.captured_shares(studio, metrics.variants("random_sd3"))
        for ratio in metrics.RATIOS:
            best = captured[metrics.ORACLE, ratio]
            assert all(captured[name, ratio] <= best + 1e-6 for name in metrics.variants("random_sd3"))
            assert captured["random", ratio] == pytest.approx(ratio, abs=0.05)
            assert captured["change", ratio] > ratio


class TestDrift:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_probe_captures_the_dense_values(self, family, tmp_path):
        """The probe measures the error of the cached tokens in each regional step. This error is not zero
        even in the first one, because the latent has changed since the dense step.
        """
        studio = studio_of(family, tmp_path)
        cell = Cell(family, "multirate", "euler", 8, start=3, reset_every=0, ratio=0.5)
        looks, _ = watch(studio, cell)
        assert [look.step for look in looks] == [3, 4, 5, 6, 7]
        assert all(look.cached.float().mean() == 0.5 for look in looks)
        compare(studio, looks)
        for part in ("key", "value", "output"):
            means = [sum(look.errors[part]) / len(look.errors[part]) for look in looks]
            assert 0 < means[0] and max(means) < 2.0
        blocks = 3 + 2 * (family == "random_sd35_medium")
        assert len(looks[0].errors["key"]) == blocks  # one call for both branches

    def test_active_tokens_have_no_error_in_the_first_block(self, tmp_path):
        """In the first block, a token's key depends on no other token, so fresh tokens have exact keys."""
        studio = studio_of("random_sd3", tmp_path)
        looks, _ = watch(studio, Cell("random_sd3", "multirate", "euler", 6, start=2, ratio=0.5))
        kept = [(look, dict(look.seen)) for look in looks]
        for look in looks:
            look.cached = ~look.cached
        compare(studio, looks)
        for look, seen in kept:
            first = list(seen).index((0, 0, 0))
            assert look.errors["key"][first] < 1e-5

    def test_relative_error_over_rows(self):
        exact = torch.tensor([[[3.0, 4.0], [1.0, 1.0]]])
        stale = exact + torch.tensor([[[0.0, 1.0], [9.0, 9.0]]])
        assert relative(stale, exact, torch.tensor([[True, False]])) == pytest.approx(0.2)


class TestBackgrounds:
    def test_the_converged_run_starts_at_the_same_noise_level(self, tmp_path):
        studio = studio_of("random_sd3", tmp_path)
        first = partial_sigmas(studio, Cell("random_sd3", steps=8))[0]
        sigmas = converged_sigmas(studio, first)
        assert sigmas[0] == first and bool((sigmas[1:] < sigmas[:-1]).all()) and sigmas[-1] == 0
        assert len(sigmas) >= 6  # 10 steps for the whole range

    def test_scenes(self, tmp_path):
        scenes = make_scenes(options_in(tmp_path), "")
        assert set(scenes.mask.unique().tolist()) == {0.0, 1.0} and 0.1 < scenes.mask.mean() < 0.5
        inside = scenes.mask.expand(-1, 3, -1, -1).bool()
        plain, busy = scenes.images["plain"], scenes.images["busy"]
        assert torch.equal(plain[inside], busy[inside])
        assert busy[~inside].std() > 2 * plain[~inside].std()


class TestInpainting:
    @pytest.mark.parametrize(("part", "area"), [("half", 1 / 2), ("quarter", 1 / 4), ("sixteenth", 1 / 16)])
    def test_masks_have_their_share_of_the_area(self, part, area):
        assert float(mask_of(part, 32, 16).mean()) == area

    def test_all_tokens_inside_are_selected_and_the_others_take_turns(self):
        grid = TokenGrid((8, 8), (2, 2))
        inside = grid.pool(mask_of("quarter", 8, 8)[:, 0]) > 0
        selector, x = InsideFirst(grid, inside), torch.zeros(1, 4, 8, 8)
        selector.observe(x, x, 1.0, None)
        seen = torch.zeros(16, dtype=torch.bool)
        for sigma in (0.9, 0.8, 0.7):
            active = selector.select(8, sigma)
            selector.observe(x, x, sigma, active)
            seen[active[0]] = True
            assert inside[0][active[0]].sum() == inside.sum() == 4
        assert seen.all()

    def test_plain_and_regional_runs_cost_the_same(self, tmp_path):
        case = {"parts": ("quarter",), "denoises": (0.6,)}
        told = inpainting.run("random_sd3", options_in(tmp_path), tmp_path / "out", **case)
        rows = [line.split("|")[1:-1] for line in told.splitlines() if "quarter" in line]
        costs = [float(row[5]) for row in rows]
        assert len(rows) == 5 and max(costs) <= min(costs) * 1.01
        again = inpainting.run("random_sd3", options_in(tmp_path), tmp_path / "out", **case)
        assert again == told
