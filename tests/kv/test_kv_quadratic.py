"""Keys and values extrapolated along a parabola (`forecast2`), from their last two changes.

The formula is compared with hand-computed numbers, and used in whole runs."""

import pytest
import torch
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host import graphs_of_model
from ras_pack.ras_core.kv.extrapolation import TIMES
from ras_pack.ras_core.kv.gains import fitted_gains
from ras_pack.ras_core.kv.quadratic import RIDGE, QuadraticRows, QuadraticTimes
from ras_pack.ras_core.kv.store import KVStore
from ras_pack.ras_core.kv.update import extrapolator, update, update_times
from ras_pack.ras_core.rows import RowIndex
from support.sampling import FAST, distance, sample_ras, split_prompts
from support.tape import AgainTape, capture_on

QUADRATIC = RASConfig(**{**vars(FAST), "kv_cache": "forecast2", "start_step": 3})
SLOT = (0, 0)


def _at(*sigmas: float) -> torch.Tensor:
    return torch.tensor(sigmas)


class TestGains:
    A = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    B = torch.tensor([[[0.0, 1.0], [-2.0, 1.0]]])

    def _gains(self, target: torch.Tensor) -> list[float]:
        return [float(gain) for gain in fitted_gains(self.A, self.B, target, 1e-6)]

    @pytest.mark.parametrize("given", [(0.5, 0.25), (1.0, 1.0), (0.0, 0.5), (0.75, 0.0), (0.0, 0.0)])
    def test_two_forecasts_are_told_apart(self, given):
        assert self._gains(given[0] * self.A + given[1] * self.B) == pytest.approx(given, abs=1e-4)

    def test_neither_is_stretched_beyond_one(self):
        assert self._gains(3 * self.A + 2 * self.B) == [1.0, 1.0]

    def test_one_that_would_be_negative_is_left_out_of_the_fit(self):
        """A fit with both forecasts A and B would give one of them a negative gain. So only the other is
        fitted: for the target A - B / 4, the gain of A is (A . (A - B / 4)) / (A . A) = (6 - 3 / 4) / 6.
        """
        assert self._gains(self.A - self.B / 4) == pytest.approx([0.875, 0.0], abs=1e-4)
        assert self._gains(self.B / 2 - self.A / 8) == pytest.approx([0.0, (6 / 2 - 3 / 8) / 6], abs=1e-4)

    def test_nothing_predicts_nothing(self):
        assert [float(g) for g in fitted_gains(0 * self.A, 0 * self.A, self.A, 1e-3)] == [0.0, 0.0]

    def test_each_image_has_its_own(self):
        both = [torch.cat([each, each]) for each in (self.A, self.B)]
        gain, gain2 = fitted_gains(*both, torch.cat([self.A, self.B / 2]), 1e-6)
        assert gain.tolist() == pytest.approx([1, 0], abs=1e-4)
        assert gain2.tolist() == pytest.approx([0, 0.5], abs=1e-4)


class TestTimes:
    def test_weights_by_hand(self):
        times = QuadraticTimes.start(_at(1.0), 2)
        for sigma in (1.0, 0.8, 0.7):
            times.update_all(_at(sigma))
        weight, before = times.update_active(_at(0.5), torch.tensor([[1]]))
        w, curved = 2.0, 0.2 * 0.3 / 0.3  # a = 0.2, b = 0.1, c = 0.2
        assert before[0, 0].tolist() == pytest.approx([w, curved / 0.1, curved / 0.2])
        assert weight[0].tolist() == [pytest.approx([w, curved / 0.1, curved / 0.2]), [0.0, 0.0, 0.0]]
        weight, _ = times.update_active(_at(0.4), torch.tensor([[0]]))
        curved = 0.1 * 0.3 / 0.3  # token 1 continued: a = 0.1, b = 0.2, c = 0.1
        assert weight[0, 1].tolist() == pytest.approx([0.5, curved / 0.2, curved / 0.1])

    def test_two_evaluations_give_a_line_and_one_nothing(self):
        times, other = QuadraticTimes.start(_at(1.0), 2), torch.tensor([[1]])
        times.update_all(_at(1.0))
        assert not times.update_active(_at(0.9), other)[0].any()
        times.update_all(_at(0.8))
        weight, _ = times.update_active(_at(0.7), other)
        assert weight[0].tolist() == [pytest.approx([0.5, 0.0, 0.0]), [0.0, 0.0, 0.0]]
        times.update_all(_at(0.6))
        times.forget()
        times.update_all(_at(1.0))
        assert not times.update_active(_at(0.5), other)[0].any()


class TestRows:
    """One attention with two text rows and four tokens, whose rows are parabolas in sigma."""

    N, PREFIX = 4, 2
    DRAW = torch.randn(3, 1, 6, 2, generator=torch.Generator().manual_seed(3))

    @pytest.fixture(autouse=True)
    def _no_ridge(self, monkeypatch):
        monkeypatch.setattr("ras_pack.ras_core.kv.quadratic.RIDGE", 1e-7)

    def _truth(self, sigma: float) -> torch.Tensor:
        return self.DRAW[0] + self.DRAW[1] * sigma + self.DRAW[2] * sigma**2

    def _slots(self, store: KVStore, sigmas=(1.0, 0.8, 0.65), branches=("a",)) -> dict:
        slots = store.begin_fill(branches)
        for sigma in sigmas:
            rows = self._truth(sigma).repeat(len(branches), 1, 1)
            update_times(slots, _at(*[sigma] * len(branches)), self.N, store.times)
            if SLOT in slots:
                slots[SLOT].write(rows, -rows)
            else:
                slots[SLOT] = store.keep(rows, -rows, self.PREFIX, 0)
        store.end_fill(branches, slots)
        return slots

    def _step(self, slots: dict, sigma: float, active: list[int]):
        bb = len(slots[SLOT].key)
        active_idx = torch.tensor([active] * bb)
        makes = extrapolator(slots, _at(*[sigma] * bb), active_idx)
        index = RowIndex.of(active_idx, self.N, self.PREFIX, 0)
        rows = self._truth(sigma).repeat(bb, 1, 1).flatten(0, 1)[index.flat].unflatten(0, (bb, -1))
        borders = (self.PREFIX, 0)
        return update(slots, SLOT, (rows, -rows), borders, index, makes(*borders))

    def test_parabolas_are_continued_exactly(self):
        slots = self._slots(KVStore(self.N, "forecast2"))
        for sigma, active in ((0.6, [1, 3]), (0.5, [0, 1]), (0.35, [2, 3])):
            key, value = self._step(slots, sigma, active)
            torch.testing.assert_close(key, self._truth(sigma), atol=2e-3, rtol=0)
            torch.testing.assert_close(value, -self._truth(sigma), atol=2e-3, rtol=0)

    def test_the_last_three_evaluations_are_kept(self):
        slots = self._slots(KVStore(self.N, "forecast2"))
        self._step(slots, 0.6, [1])
        fresh = [0, 1, 3]  # text and one token
        for at, before, rows in zip(
            (0.6, 0.65, 0.8), (0.65, 0.8, 1.0), slots[SLOT].tensors[::2], strict=True
        ):
            expected = self._truth(before)
            expected[:, fresh] = self._truth(at)[:, fresh]
            torch.testing.assert_close(rows, expected)

    def test_calls_are_regrouped_with_their_past(self):
        store = KVStore(self.N, "forecast2")
        self._slots(store, branches=("a", "b"))
        for branch in ("a", "b"):
            key, _ = self._step(store.slots_for((branch,)), 0.6, [1, 3])
            torch.testing.assert_close(key, self._truth(0.6), atol=2e-3, rtol=0)
        slots = store.slots_for(("b", "a"))
        key, _ = self._step(slots, 0.5, [0, 1])
        torch.testing.assert_close(key, self._truth(0.5).repeat(2, 1, 1), atol=2e-3, rtol=0)
        assert isinstance(slots[TIMES], QuadraticTimes) and isinstance(slots[SLOT], QuadraticRows)

    def test_a_failed_run_leaves_nothing_behind(self):
        slots = self._slots(KVStore(self.N, "forecast2"))
        for rows in slots[SLOT].tensors:
            rows.fill_(torch.nan)
        for each in slots.values():
            each.forget()
        update_times(slots, _at(1.0), self.N, QuadraticTimes)
        slots[SLOT].write(self._truth(1.0), -self._truth(1.0))
        key, _ = self._step(slots, 0.9, [1])
        torch.testing.assert_close(key[:, [2, 4, 5]], self._truth(1.0)[:, [2, 4, 5]])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_in_half_precision(self, dtype):
        slots = self._slots(KVStore(self.N, "forecast2"))
        for each in slots.values():
            if each.format_name == "forecast2" and not isinstance(each, QuadraticTimes):
                each.tensors = tuple(t.to(dtype) for t in each.tensors)
        index = RowIndex.of(torch.tensor([[1, 3]]), self.N, self.PREFIX, 0)
        known = extrapolator(slots, _at(0.6), torch.tensor([[1, 3]]))(self.PREFIX, 0)
        rows = self._truth(0.6)[:, index.flat].to(dtype)
        key, _ = update(slots, SLOT, (rows, -rows), (self.PREFIX, 0), index, known)
        assert key.dtype == dtype
        torch.testing.assert_close(key.float(), self._truth(0.6), atol=0.1, rtol=0.02)


class TestRuns:
    def test_it_acts_on_every_family_and_takes_the_bytes_it_should(self, family, monkeypatch):
        # Random weights may move so wildly with the noise level that no forecast would be confirmed.
        def ones(first, *_):
            return torch.ones(len(first)), torch.ones(len(first))

        monkeypatch.setattr("ras_pack.ras_core.kv.quadratic.fitted_gains", ones)
        noise = family.noise(13, 19, batch=2)
        plain, before = sample_ras(
            family.build(), family, noise, RASConfig(**{**vars(QUADRATIC), "kv_cache": "gpu"})
        )
        latent, trace = sample_ras(family.build(), family, noise, QUADRATIC)
        assert trace.regional_steps == before.regional_steps == 6 and not trace.notes
        assert latent.isfinite().all() and distance(latent, plain) > 1e-5
        tokens = 7 * 10 * 2 * 2  # of two images in two branches, with three float32 each
        assert trace.kv_bytes == 3 * before.kv_bytes + 12 * tokens

    def test_prompts_regrouped_by_dense_steps_keep_their_past(self, family, monkeypatch):
        together, _ = sample_ras(family.build(), family, family.noise(), QUADRATIC)
        model = family.build()
        split_prompts(monkeypatch, model, every=2)
        alternating, trace = sample_ras(model, family, family.noise(), QUADRATIC)
        assert not trace.notes and distance(alternating, together) < 1e-4

    def test_three_dense_calls_are_kept_before_the_first_regional_one(self, sd3, monkeypatch):
        weights, update_active = [], QuadraticTimes.update_active
        monkeypatch.setattr(
            QuadraticTimes, "update_active", lambda *args: weights.append(update_active(*args)) or weights[-1]
        )
        sample_ras(sd3.build(), sd3, sd3.noise(), QUADRATIC)
        assert (weights[0][0] > 0).float().mean() == pytest.approx(0.5)  # those that are not active

    def test_replayed_runs_equal_the_eager_one(self, family, monkeypatch):
        monkeypatch.setattr(graphs_of_model, "may_outlive_run", lambda *_: True)
        eager, _ = sample_ras(family.build(), family, family.noise(), QUADRATIC)
        model, tape = family.build(), AgainTape()
        capture_on(model, tape)
        for _ in range(3):
            latent, trace = sample_ras(model, family, family.noise(), QUADRATIC)
            torch.testing.assert_close(latent, eager)
            assert not trace.notes
        assert tape.captured == 1


def test_the_ridge_is_small():
    assert 0 < RIDGE <= 1e-2
