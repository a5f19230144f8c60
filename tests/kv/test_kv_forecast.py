"""Extrapolated keys and values (`forecast`): the formula with hand-computed numbers, and whole runs."""

import comfy.sample
import pytest
import torch
from ras_pack.demo import loader
from ras_pack.demo.prompt import encode_prompt
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host import graphs_of_model
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.kv import extrapolation as kv_extrapolation
from ras_pack.ras_core.kv.extrapolation import FARTHEST, TIMES, Extrapolation, Times
from ras_pack.ras_core.kv.forecast import ForecastRows
from ras_pack.ras_core.kv.store import KVStore
from ras_pack.ras_core.kv.update import extrapolation_weights, update, update_times
from ras_pack.ras_core.rows import RowIndex
from support.rotated import rotated
from support.sampling import FAST, distance, sample_ras, split_prompts
from support.tape import AgainTape, capture_on

FORECAST = RASConfig(**{**vars(FAST), "kv_cache": "forecast"})
PLAIN = RASConfig(**{**vars(FAST), "kv_cache": "gpu"})
SLOT = (0, 0)


def _at(*sigmas: float) -> torch.Tensor:
    return torch.tensor(sigmas)


class TestTimes:
    def _after_two_dense_calls(self) -> Times:
        times = Times.start(_at(1.0), 3)
        times.update_all(_at(1.0))
        times.update_all(_at(0.8))
        return times

    def test_weights_are_elapsed_time_over_time_between_evaluations(self):
        times = self._after_two_dense_calls()
        weight, before = times.update_active(_at(0.7), torch.tensor([[1]]))
        assert weight[0].tolist() == pytest.approx([0.5, 0.0, 0.5]) and before[0].tolist() == [
            pytest.approx(0.5)
        ]
        weight, before = times.update_active(_at(0.5), torch.tensor([[0]]))
        # Token 0: 0.3 after an interval of 0.2. Token 1: evaluated at 0.8 and 0.7, 0.2 ago. Token 2: as 0.
        assert before[0].tolist() == [pytest.approx(1.5)]
        assert weight[0].tolist() == pytest.approx([0.0, 2.0, 1.5])

    def test_a_token_that_was_evaluated_once_has_weight_zero(self):
        times = Times.start(_at(1.0), 2)
        times.update_all(_at(1.0))
        weight, before = times.update_active(_at(0.5), torch.tensor([[0]]))
        assert weight.tolist() == [[0.0, 0.0]] and before.tolist() == [[0.0]]

    def test_the_weight_is_bounded_long_after_the_last_evaluation(self):
        times = Times.start(_at(1.0), 2)
        times.update_all(_at(1.0))
        times.update_all(_at(0.99))
        weight, _ = times.update_active(_at(0.1), torch.tensor([[0]]))
        assert weight.tolist() == [[0.0, FARTHEST]]

    def test_a_rising_noise_level_gives_weight_zero(self):
        times = self._after_two_dense_calls()
        weight, before = times.update_active(_at(0.9), torch.tensor([[1]]))
        assert weight.tolist() == [[0.0, 0.0, 0.0]] and before.tolist() == [[0.0]]

    def test_a_new_run_starts_from_nothing(self):
        times = self._after_two_dense_calls()
        times.forget()
        times.update_all(_at(1.0))
        assert times.update_active(_at(0.5), torch.tensor([[0]]))[0].tolist() == [[0.0, 0.0, 0.0]]


class TestRows:
    """One attention with two text rows and four tokens, whose rows are linear in sigma."""

    N, PREFIX = 4, 2
    BASE = torch.tensor([5.0, 6.0, 1.0, 2.0, 3.0, 4.0])[None, :, None] * torch.ones(1, 1, 2)
    SLOPE = torch.tensor([9.0, 9.0, 1.0, -2.0, 0.5, 3.0])[None, :, None] * torch.tensor([1.0, 2.0])

    def _truth(self, sigma: float) -> torch.Tensor:
        return self.BASE + self.SLOPE * sigma

    def _slots(self) -> dict:
        slots = {}
        for sigma in (1.0, 0.8):
            update_times(slots, _at(sigma), self.N)
            if SLOT in slots:
                slots[SLOT].write(self._truth(sigma), -self._truth(sigma))
            else:
                slots[SLOT] = ForecastRows.of(self._truth(sigma), -self._truth(sigma), self.PREFIX, 0)
        return slots

    def _step(self, slots: dict, sigma: float, active: list[int], fresh: torch.Tensor | None = None):
        active_idx = torch.tensor([active])
        extrapolation = Extrapolation(*extrapolation_weights(slots, _at(sigma), active_idx), self.PREFIX, 0)
        places = RowIndex.of(active_idx, self.N, self.PREFIX, 0)
        rows = self._truth(sigma)[:, places.flat] if fresh is None else fresh
        return update(slots, SLOT, (rows, -rows), (self.PREFIX, 0), places, extrapolation)

    def test_linear_rows_are_extrapolated_exactly(self):
        slots = self._slots()
        for sigma, active in ((0.7, [1, 3]), (0.5, [0, 1]), (0.2, [2])):
            key, value = self._step(slots, sigma, active)
            torch.testing.assert_close(key, self._truth(sigma))
            torch.testing.assert_close(value, -self._truth(sigma))

    def test_evaluated_rows_are_kept_and_not_forecasts(self):
        slots = self._slots()
        self._step(slots, 0.7, [1, 3])
        key, _ = slots[SLOT].read()
        expected = self._truth(0.8)
        expected[:, [0, 1, 3, 5]] = self._truth(0.7)[:, [0, 1, 3, 5]]  # text and two tokens
        torch.testing.assert_close(key, expected)

    def test_rows_that_reverse_end_the_forecast(self):
        slots = self._slots()
        fresh = self._truth(0.9)[:, [0, 1, 3, 5]]  # back in the direction they came from
        key, _ = self._step(slots, 0.7, [1, 3], fresh)
        torch.testing.assert_close(key[:, [2, 4]], self._truth(0.8)[:, [2, 4]])

    def test_rows_that_change_half_as_much_halve_it(self):
        slots = self._slots()
        fresh = self._truth(0.75)[:, [0, 1, 3, 5]]
        key, _ = self._step(slots, 0.7, [1, 3], fresh)
        torch.testing.assert_close(key[:, [2, 4]], self._truth(0.75)[:, [2, 4]])

    def test_rows_that_change_more_do_not_amplify_it(self):
        slots = self._slots()
        fresh = self._truth(0.5)[:, [0, 1, 3, 5]]
        key, _ = self._step(slots, 0.7, [1, 3], fresh)
        torch.testing.assert_close(key[:, [2, 4]], self._truth(0.7)[:, [2, 4]])

    def test_without_a_forecast_only_fresh_rows_change(self):
        slots = self._slots()
        nothing = torch.zeros(1, 1, 2)
        key, _ = slots[SLOT].update(RowIndex(torch.tensor([3]), 6), (nothing, nothing))
        expected = self._truth(0.8)
        expected[:, 3] = 0
        torch.testing.assert_close(key, expected)

    def test_regrouped_calls_keep_their_times(self):
        """Each row has noise levels (times) of its last changes. They must be kept when two conditionings,
        after sharing a call, are evaluated in two calls, and then in one call again.
        """
        store = KVStore(self.N, "forecast")
        assert store.forecasts and not KVStore(self.N, "gpu").forecasts
        slots = store.begin_fill(("a", "b"))
        for sigma in (1.0, 0.8):
            both = self._truth(sigma) * torch.tensor([1.0, 2.0])[:, None, None]
            update_times(slots, _at(sigma, sigma), self.N)
            if SLOT in slots:
                slots[SLOT].write(both, both)
            else:
                slots[SLOT] = store.keep(both, both, self.PREFIX, 0)
        store.end_fill(("a", "b"), slots)
        for name, factor in (("a", 1.0), ("b", 2.0)):
            own = store.slots_for((name,))
            places = RowIndex.of(torch.tensor([[1]]), self.N, self.PREFIX, 0)
            extrapolation = Extrapolation(
                *extrapolation_weights(own, _at(0.7), torch.tensor([[1]])), self.PREFIX, 0
            )
            rows = factor * self._truth(0.7)[:, places.flat]
            args = (own, SLOT, (rows, rows), (self.PREFIX, 0), places, extrapolation)
            torch.testing.assert_close(update(*args)[0], factor * self._truth(0.7))
        last, span = store.slots_for(("b", "a"))[TIMES].tensors
        torch.testing.assert_close(last, torch.tensor([[0.8, 0.7, 0.8, 0.8]] * 2))
        torch.testing.assert_close(span, torch.tensor([[0.2, 0.1, 0.2, 0.2]] * 2))


class TestRuns:
    def test_it_has_an_effect_on_every_family_and_needs_the_computed_memory(self, family, monkeypatch):
        # With random weights, rows may change so irregularly that no forecast is confirmed.
        monkeypatch.setattr(kv_extrapolation, "_confirmed", lambda forecast, _: torch.ones(len(forecast)))
        noise = family.noise(13, 19, batch=2)
        plain, before = sample_ras(family.build(), family, noise, PLAIN)
        latent, trace = sample_ras(family.build(), family, noise, FORECAST)
        assert trace.regional_steps == before.regional_steps == 7 and not trace.notes
        assert distance(latent, plain) > 1e-5
        tokens = 7 * 10 * 2 * 2  # for two images in two branches, two float32 each
        assert trace.kv_bytes == 2 * before.kv_bytes + 8 * tokens

    @rotated("start", [0, 1, 2])
    def test_an_unconfirmed_forecast_equals_the_plain_cache(self, family, start, monkeypatch):
        """If no forecast is confirmed, all forecasts have weight zero. Then the run must equal, bit by bit,
        the run with a cache that does not extrapolate.
        """
        monkeypatch.setattr(kv_extrapolation, "_confirmed", lambda forecast, _: torch.zeros(len(forecast)))
        noise = family.noise(13, 19, batch=2)
        forecast, plain = (
            sample_ras(family.build(), family, noise, RASConfig(**{**vars(config), "start_step": start}))
            for config in (FORECAST, PLAIN)
        )
        assert torch.equal(forecast[0], plain[0]) and forecast[1].regional_steps > 0

    @rotated("rows", [7, 4])
    def test_prompts_regrouped_by_dense_steps_keep_their_history(self, family, rows, monkeypatch):
        """Depending on free memory, ComfyUI evaluates the two prompts in one call or in two calls. In this
        test, this changes every two steps.
        """
        prompts = {"positive": family.conditioning(1, rows=7), "negative": family.conditioning(2, rows=rows)}
        together, _ = sample_ras(family.build(), family, family.noise(), FORECAST, **prompts)
        model = family.build()
        calls = split_prompts(monkeypatch, model, every=2)
        alternating, trace = sample_ras(model, family, family.noise(), FORECAST, **prompts)
        assert len(calls) > 10 and not trace.notes
        assert distance(alternating, together) < 1e-5

    def test_a_sampler_that_adds_noise_uses_the_plain_cache(self, sd3, caplog):
        with caplog.at_level("INFO"):
            latent, trace = sample_ras(sd3.build(), sd3, sd3.noise(), FORECAST, sampler="euler_ancestral")
        plain, before = sample_ras(sd3.build(), sd3, sd3.noise(), PLAIN, sampler="euler_ancestral")
        assert torch.equal(latent, plain) and trace.kv_bytes == before.kv_bytes
        assert caplog.text.count("kv_cache = forecast supports euler and dpmpp_2m") == 1

    def test_two_dense_calls_are_kept_before_the_first_regional_one(self, sd3, monkeypatch):
        """An extrapolation needs two values per row. With K/V rows of two dense calls, cached tokens can be
        extrapolated from the first regional step on.
        """
        weights = []
        update_active = Times.update_active
        monkeypatch.setattr(
            Times, "update_active", lambda *args: weights.append(update_active(*args)) or weights[-1]
        )
        sample_ras(sd3.build(), sd3, sd3.noise(), FORECAST)
        assert (weights[0][0] > 0).float().mean() == pytest.approx(0.5)  # the inactive ones


class TestReplays:
    @pytest.fixture(autouse=True)
    def _kept(self, monkeypatch):
        monkeypatch.setattr(graphs_of_model, "may_outlive_run", lambda *_: True)

    def test_replayed_runs_equal_each_other_and_the_eager_one(self, family):
        eager, _ = sample_ras(family.build(), family, family.noise(), FORECAST)
        model, tape = family.build(), AgainTape()
        capture_on(model, tape)
        for _ in range(3):
            latent, trace = sample_ras(model, family, family.noise(), FORECAST)
            torch.testing.assert_close(latent, eager)
            assert not trace.notes
        assert tape.captured == 1

    def test_a_failed_run_does_not_affect_the_next(self, sd3):
        """A failed run leaves NaN in the K/V buffers. With only one dense step, the next run overwrites these
        rows once only, and must still not read a NaN.
        """
        config = RASConfig(**{**vars(FORECAST), "start_step": 1, "error_reset_every": 0})
        fine, _ = sample_ras(sd3.build(), sd3, sd3.noise(), config)
        model = sd3.build()
        capture_on(model, AgainTape())
        sample_ras(model, sd3, sd3.noise() * torch.nan, config)
        latent, _ = sample_ras(model, sd3, sd3.noise(), config)
        torch.testing.assert_close(latent, fine)

    def test_a_run_without_forecasts_does_not_borrow_buffers_of_one_with_them(self, sd3):
        plain, _ = sample_ras(sd3.build(), sd3, sd3.noise(), PLAIN)
        model, tape = sd3.build(), AgainTape()
        capture_on(model, tape)
        sample_ras(model, sd3, sd3.noise(), FORECAST)
        latent, _ = sample_ras(model, sd3, sd3.noise(), PLAIN)
        torch.testing.assert_close(latent, plain)
        assert tape.captured == 2


def test_a_trained_model_comes_closer_to_the_dense_run():
    model, _ = loader.load_demo_model("flux")
    context, pooled = encode_prompt("noto grinning face on blue")
    extras = {"pooled_output": pooled, "attention_mask": torch.ones(context.shape[:2], dtype=torch.long)}
    empty = torch.zeros(1, 16, 32, 32)

    @torch.inference_mode()
    def run(patched):
        return comfy.sample.sample(
            patched, comfy.sample.prepare_noise(empty, 7), 14, 3.5, "dpmpp_2m", "simple",
            [[context, extras]], [[context * 0, extras]], empty, disable_pbar=True, seed=7,
        )  # fmt: skip

    def with_ras(format_name):
        config = RASConfig(
            corrections=True, sample_ratio=0.5, start_step=5, error_reset_every=0, kv_cache=format_name
        )
        patched = patch_model(model, config)
        latent = run(patched)
        assert last_trace(patched).regional_steps == 9
        return latent

    dense = run(model)
    plain, forecast = distance(with_ras("gpu"), dense), distance(with_ras("forecast"), dense)
    assert forecast < 0.9 * plain
