"""Cached tokens are corrected by the extrapolation errors that the active tokens show.

The formula is compared with a separate computation, and used in whole runs."""

import pytest
import torch
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host import graphs_of_model
from ras_pack.ras_core.kv import spread as kv_spread
from ras_pack.ras_core.kv.spread import Spread
from ras_pack.ras_core.kv.store import KVStore
from ras_pack.ras_core.kv.update import extrapolator, update, update_times
from ras_pack.ras_core.rows import RowIndex
from support.sampling import FAST, distance, sample_ras, split_prompts
from support.tape import AgainTape, capture_on

SETTINGS = {**vars(FAST), "start_step": 3}
SPREAD = RASConfig(**{**SETTINGS, "kv_cache": "forecast", "spread": True})
SLOT = (0, 0)
SHAPE, N, D = (4, 6), 24, 8
FORMATS = ["forecast", "forecast2"]


def _some(count: int, bb: int = 1, seed: int = 0) -> torch.Tensor:
    """Indices (bb, count) of randomly drawn tokens, in ascending order."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(N, generator=draw)[:count].sort().values for _ in range(bb)])


def _neighbours(token: int) -> set[int]:
    y, x = divmod(token, SHAPE[1])
    return {j for j in range(N) if max(abs(j // SHAPE[1] - y), abs(j % SHAPE[1] - x)) <= 1}


class TestRule:
    def _by_hand(self, rows, fresh, active: list[int], scale) -> torch.Tensor:
        """One image, token by token, in double precision; None of the sums is shared with the pack."""
        rate = {j: (fresh[i] - rows[j]) / scale[j] for i, j in enumerate(active)}

        def predicted(token: int, known: set[int]) -> tuple[torch.Tensor, torch.Tensor]:
            mean = sum(rate[j] for j in known) / len(known)
            near = [rate[j] for j in known & _neighbours(token)]
            return (sum(near) / len(near) if near else mean) * scale[token], mean * scale[token]

        pairs = [predicted(j, set(active) - {j}) for j in active]
        near, mean = (torch.stack(each).flatten() for each in zip(*pairs, strict=True))
        missed = torch.stack([rate[j] * scale[j] for j in active]).flatten()
        features = torch.stack([near, mean], 1)
        square = features.T @ features
        square += kv_spread.RIDGE * torch.diag(square.diagonal())
        found = features.T @ missed
        gains = torch.linalg.solve(square, found)
        if (gains < 0).any():  # the other one alone
            gains = torch.where(gains > 0, found / square.diagonal(), 0.0)
        assert (gains < 1).all() and gains.sum() > 0.2
        whole = rows.clone()
        for j in range(N):
            near, mean = predicted(j, set(active))
            whole[j] += gains[0] * near + gains[1] * mean
        return whole

    @pytest.mark.parametrize("count", [6, 12, 20])
    def test_it_is_the_rule_token_by_token(self, count):
        """The correction equals the formula, computed token by token. If only 6 of 24 tokens are active, some
        cached tokens have no active neighbour.
        """
        draw = torch.Generator().manual_seed(4)
        active = _some(count, seed=2)
        ages = 0.1 + torch.rand(1, N, generator=draw)
        change, rows, noise = torch.randn(3, 1, N, D, generator=draw)
        waves = torch.sin(torch.arange(N) / 4)[:, None] + 0.5
        truth = rows + 0.3 * waves + 0.2 * noise
        fresh, spread = truth[:, active[0]], Spread(SHAPE, active, ages)
        weight = torch.rand(1, N, generator=draw)
        scale = spread.scales(change, weight)
        size = change.norm(dim=2) * weight
        expected = ((size + 0.05 * size.mean()) * ages).sqrt()
        torch.testing.assert_close(scale, expected / expected.mean())
        found = rows.clone()
        spread.correct(found, fresh, scale)
        by_hand = self._by_hand(
            *(t[0].double() for t in (rows, fresh)), active[0].tolist(), scale[0].double()
        )
        torch.testing.assert_close(found[0].double(), by_hand, atol=1e-4, rtol=1e-4)

    def test_an_error_that_all_rows_share_is_removed(self):
        active, rows = _some(14), torch.zeros(1, N, D)
        spread = Spread(SHAPE, active, torch.ones(1, N))
        spread.correct(rows, torch.full((1, 14, D), 0.5), torch.ones(1, N))
        torch.testing.assert_close(rows, torch.full_like(rows, 0.5), atol=0.01, rtol=0)

    def test_errors_that_nothing_shares_stay_where_they_are(self):
        active, rows = _some(14), torch.zeros(1, N, D)
        signs = torch.tensor([1.0, -1.0]).repeat(7)[None, :, None].expand(1, 14, D)
        spread = Spread(SHAPE, active, torch.ones(1, N))
        spread.correct(rows, signs.contiguous(), torch.ones(1, N))
        assert rows.abs().max() < 0.35

    def test_images_do_not_see_each_other(self):
        active = _some(14, bb=2, seed=1)
        ages, fresh = torch.rand(2, N) + 0.1, torch.rand(2, 14, D)
        both, scale = torch.zeros(2, N, D), torch.rand(2, N) + 0.5
        Spread(SHAPE, active, ages).correct(both, fresh, scale)
        for i in range(2):
            own, part = torch.zeros(1, N, D), slice(i, i + 1)
            Spread(SHAPE, active[part], ages[part]).correct(own, fresh[part], scale[part])
            torch.testing.assert_close(both[part], own)

    def test_frames_of_a_video_are_not_neighbours(self):
        """A latent has two frames of 4 x 3 tokens. In the first frame all tokens but one are active, in the
        second none is. So tokens of the second frame must have no active neighbour.
        """
        active = torch.tensor([[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]])
        spread = Spread((2, 4, 3), active, torch.ones(1, N))
        assert spread._has_near[0].tolist() == [1.0] * 12 + [0.0] * 12

    def test_rows_that_have_not_changed_yet_are_left(self):
        """After only one dense call, no change of the rows is known. Then the scales are zero, and the
        correction leaves the rows as they are.
        """
        active, rows = _some(14), torch.zeros(1, N, D)
        spread = Spread(SHAPE, active, torch.ones(1, N))
        scale = spread.scales(torch.zeros(1, N, D), torch.zeros(1, N))
        spread.correct(rows, torch.rand(1, 14, D) * 1e4, scale)
        assert not rows.any()

    def test_few_active_tokens_spread_nothing(self):
        slots = {}
        update_times(slots, torch.tensor([1.0]), N)
        for count, acts in ((11, False), (12, True)):
            extrapolation = extrapolator(slots, torch.tensor([0.9]), _some(count), SHAPE)(0, 0)
            assert (extrapolation.spread is not None) == acts


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
class TestRows:
    PREFIX, SUFFIX, FROZEN = 2, 1, 5

    def _run(self, format_name, dtype, spread_over, frozen=0):
        """Make three dense calls and a regional one, whose rows all have the same extrapolation error.
        `frozen` rows of a reference image follow the image rows.

        Returns (truth, key, value, slots).
        """
        n = N + frozen
        draw = torch.Generator().manual_seed(6)
        base, slope = torch.randn(
            2, 2, self.PREFIX + N + self.FROZEN + self.SUFFIX, 2, D // 2, generator=draw
        )
        base, slope = (
            torch.cat([t[:, : self.PREFIX + n], t[:, -self.SUFFIX :]], dim=1) for t in (base, slope)
        )
        common = torch.randn(2, 1, 2, D // 2, generator=draw)

        def truth(sigma: float) -> torch.Tensor:
            bend = 0.0 if sigma > 0.75 else 0.5
            return (base + slope * sigma + bend * common).to(dtype)

        store = KVStore(n, format_name)
        slots = store.begin_fill(("a",))
        for sigma in (1.0, 0.9, 0.8):
            update_times(slots, torch.full((2,), sigma), n, store.times)
            if SLOT in slots:
                slots[SLOT].write(truth(sigma), -truth(sigma))
            else:
                slots[SLOT] = store.keep(truth(sigma), -truth(sigma), self.PREFIX, self.SUFFIX)
        active, borders = _some(14, bb=2), (self.PREFIX, self.SUFFIX)
        extrapolation = extrapolator(slots, torch.full((2,), 0.7), active, spread_over)(*borders)
        index = RowIndex.of(active, n, *borders)
        rows = truth(0.7).flatten(0, 1)[index.flat].unflatten(0, (2, -1))
        key, value = update(slots, SLOT, (rows, -rows), borders, index, extrapolation)
        return truth(0.7), key, value, slots[SLOT].tensors, index

    def test_a_common_error_is_found_in_cached_rows(self, format_name, dtype):
        truth, key, value, _, index = self._run(format_name, dtype, SHAPE)
        _, held, _, _, _ = self._run(format_name, dtype, None)
        assert key.dtype == value.dtype == dtype
        torch.testing.assert_close(value, -key)
        assert (key - truth).float().norm() < 0.6 * (held - truth).float().norm()
        assert torch.equal(key.flatten(0, 1)[index.flat], truth.flatten(0, 1)[index.flat])  # fresh, and text

    def test_rows_of_reference_images_are_no_tokens_of_the_image(self, format_name, dtype):
        """They keep their forecasts, and the image's rows are corrected as without reference images."""
        of_image, last = slice(self.PREFIX, self.PREFIX + N), slice(self.PREFIX + N, -self.SUFFIX)
        _, key, value, *_ = self._run(format_name, dtype, SHAPE, self.FROZEN)
        _, forecast, _, *_ = self._run(format_name, dtype, None, self.FROZEN)
        _, alone, _, *_ = self._run(format_name, dtype, SHAPE)
        torch.testing.assert_close(value, -key)
        torch.testing.assert_close(key[:, of_image], alone[:, of_image])
        assert not torch.allclose(key[:, of_image], forecast[:, of_image], atol=0.05)
        torch.testing.assert_close(key[:, last], forecast[:, last])

    def test_what_is_kept_is_what_was_evaluated(self, format_name, dtype):
        for kept, expected in zip(
            self._run(format_name, dtype, SHAPE)[3], self._run(format_name, dtype, None)[3], strict=True
        ):
            assert torch.equal(kept, expected)


class TestRuns:
    @pytest.mark.parametrize("format_name", FORMATS)
    def test_it_acts_on_every_family(self, family, format_name, monkeypatch):
        monkeypatch.setattr(kv_spread, "fitted_gains", _all_confirmed)
        noise = family.noise(13, 19, batch=2)
        held, spread = (
            RASConfig(**{**SETTINGS, "kv_cache": format_name, "spread": each}) for each in (False, True)
        )
        plain, before = sample_ras(family.build(), family, noise, held)
        latent, trace = sample_ras(family.build(), family, noise, spread)
        assert trace.regional_steps == before.regional_steps == 6 and not trace.notes
        assert latent.isfinite().all() and distance(latent, plain) > 1e-5
        assert trace.kv_bytes == before.kv_bytes

    def test_formats_without_forecasts_ignore_it(self, sd3):
        configs = (RASConfig(**{**SETTINGS, "kv_cache": "gpu", "spread": each}) for each in (False, True))
        assert torch.equal(*(sample_ras(sd3.build(), sd3, sd3.noise(), each)[0] for each in configs))

    def test_few_tokens_ignore_it(self, sd3):
        few = {**vars(SPREAD), "sample_ratio": 0.4}
        configs = (RASConfig(**{**few, "spread": each}) for each in (False, True))
        assert torch.equal(*(sample_ras(sd3.build(), sd3, sd3.noise(), each)[0] for each in configs))

    def test_prompts_may_be_evaluated_one_by_one(self, family, monkeypatch):
        together, _ = sample_ras(family.build(), family, family.noise(), SPREAD)
        model = family.build()
        split_prompts(monkeypatch, model, every=2)
        alternating, trace = sample_ras(model, family, family.noise(), SPREAD)
        assert not trace.notes and distance(alternating, together) < 1e-4

    @pytest.mark.parametrize("format_name", FORMATS)
    def test_replayed_runs_equal_the_eager_one(self, family, format_name, monkeypatch):
        monkeypatch.setattr(graphs_of_model, "may_outlive_run", lambda *_: True)
        config = RASConfig(**{**vars(SPREAD), "kv_cache": format_name})
        eager, _ = sample_ras(family.build(), family, family.noise(), config)
        model, tape = family.build(), AgainTape()
        capture_on(model, tape)
        for _ in range(3):
            latent, trace = sample_ras(model, family, family.noise(), config)
            torch.testing.assert_close(latent, eager)
            assert not trace.notes
        assert tape.captured == 1

    def test_runs_with_and_without_it_share_no_graph(self, sd3, monkeypatch):
        monkeypatch.setattr(graphs_of_model, "may_outlive_run", lambda *_: True)
        without = RASConfig(**{**vars(SPREAD), "spread": False})
        expected, _ = sample_ras(sd3.build(), sd3, sd3.noise(), without)
        model, tape = sd3.build(), AgainTape()
        capture_on(model, tape)
        sample_ras(model, sd3, sd3.noise(), SPREAD)
        latent, _ = sample_ras(model, sd3, sd3.noise(), without)
        torch.testing.assert_close(latent, expected)
        assert tape.captured == 2


def _all_confirmed(first: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((len(first),), 0.5), torch.full((len(first),), 0.5)
