"""The registry of K/V cache formats: its entries, and a new format that a test adds with one line."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from ras_pack.nodes.settings import settings_inputs
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.graphs.eligibility import format_obstacle
from ras_pack.ras_core.host import cache_plan, graphs_of_model
from ras_pack.ras_core.host.patch import patch_model
from ras_pack.ras_core.kv import formats
from ras_pack.ras_core.kv.arena import copies
from ras_pack.ras_core.kv.choose import Needs, Room, choose, for_sampler
from ras_pack.ras_core.kv.formats import FORMATS
from ras_pack.ras_core.kv.plain import KVRows
from ras_pack.ras_core.kv.spec import CacheSize, KVFormat
from ras_pack.ras_core.rows import scatter_into
from support.sampling import FAST, distance, sample_ras, split_prompts
from support.tape import AgainTape, capture_on

SIZE = CacheSize(numbers=1000, rows=10, tokens=5, largest=200, itemsize=2)


def _encoded(
    rows: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # (bb, r, ...) -> codes, scales (bb, r)
    flat = rows.flatten(2)
    scales = flat.abs().amax(2).clamp_min(1e-6) / 127
    return (flat / scales[..., None]).round().to(torch.int8).view(rows.shape), scales


def _decoded(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (codes.flatten(2) * scales[..., None]).view(codes.shape)


@dataclass
class Int8Rows(KVRows):
    """Keys and values as int8 codes with one scale per row.

    `tensors` are the codes and the scales of the key, then those of the value.
    """

    format_name: ClassVar[str] = "int8"

    @classmethod
    def of(cls, key, value, prefix, suffix, arena=None):
        return cls(copies((*_encoded(key), *_encoded(value)), arena), prefix, suffix)

    @property
    def value(self):
        return self.tensors[2]

    def fits(self, key, value, prefix):
        return self.prefix == prefix and self.key.shape == key.shape and self.value.shape == value.shape

    def write(self, key, value):
        for kept, new in zip(self.tensors, (*_encoded(key), *_encoded(value)), strict=True):
            kept.copy_(new)

    def update(self, index, fresh):
        whole = self.read()
        for number, new in enumerate((*_encoded(fresh[0]), *_encoded(fresh[1]))):
            self._put(number, index, new)
        for rows, new in zip(whole, fresh, strict=True):
            scatter_into(rows, index.flat, new)
        return whole

    def read(self):
        return _decoded(*self.tensors[:2]), _decoded(*self.tensors[2:])


INT8 = KVFormat(
    name="int8",
    rows=Int8Rows,
    nbytes=lambda size: size.numbers + size.rows * size.itemsize,
    text="the K/V cache is kept as int8 ({size})",
    transients=1,
    auto_rank=15,
)


class TestRegistry:
    def test_nodes_offer_its_settings_in_the_order_of_saved_graphs(self):
        names = ["auto", "gpu", "fp8", "cpu", "off", "forecast"]
        assert list(formats.setting_names()) == names
        assert _options() == names

    def test_auto_prefers_exact_and_fast_formats(self):
        assert [form.name for form in formats.automatic()] == ["gpu", "fp8", "cpu"]

    def test_bytes_by_hand(self):
        """The cache has 1000 numbers of two bytes each, in ten rows, for five tokens. The largest attention
        has 200 of these numbers.
        """
        kept = {"gpu": 2000, "fp8": 1000 + 10 * 2, "cpu": 0, "off": 0, "forecast": 2 * 2000 + 5 * 8}
        kept["forecast2"] = 3 * 2000 + 5 * 12
        in_passing = {"gpu": 0, "fp8": 400, "cpu": 800, "off": 0, "forecast": 400, "forecast2": 800}
        for name, form in FORMATS.items():
            assert form.device_nbytes(SIZE) == kept[name]
            assert form.peak_nbytes(SIZE) == kept[name] + in_passing[name]
            assert form.main_nbytes(SIZE) == (2000 if name == "cpu" else 0)

    def test_programs_may_use_formats_that_nodes_do_not_offer(self, sd3):
        hidden = [name for name, form in FORMATS.items() if not form.is_offered]
        assert hidden == ["forecast2"]
        patch_model(sd3.build(), RASConfig(kv_cache="forecast2"))

    def test_an_unknown_setting_is_refused_with_the_list_of_settings(self, sd3):
        with pytest.raises(RASError, match="disk.*auto, gpu, fp8, cpu, off, forecast"):
            patch_model(sd3.build(), RASConfig(kv_cache="disk"))

    def test_rows_that_inherit_the_name_of_another_format_are_refused(self):
        class Nameless(KVRows):
            pass

        with pytest.raises(ValueError, match="Nameless.format_name = 'gpu'"):
            replace(INT8, rows=Nameless)

    @pytest.mark.parametrize("name", ["auto", *FORMATS])
    def test_only_a_forecast_needs_a_sampler_without_added_noise(self, name):
        assert for_sampler(name, adds_noise=False) == name
        assert for_sampler(name, adds_noise=True) == ("gpu" if name.startswith("forecast") else name)


class TestAddedFormat:
    """A new format only needs an entry in the registry."""

    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch):
        monkeypatch.setitem(FORMATS, "int8", INT8)

    def _settings(self, **changes) -> RASConfig:
        return RASConfig(**{**vars(FAST), "kv_cache": "int8", **changes})

    def test_nodes_offer_it(self):
        assert _options()[-1] == "int8"

    @pytest.mark.parametrize("every", [0, 2])
    def test_a_run_keeps_and_updates_it(self, family, every, monkeypatch, caplog):
        """The added format works in a whole run, even if ComfyUI changes from step to step whether the two
        prompts share a call.
        """
        plain, exact = sample_ras(family.build(), family, family.noise(), self._settings(kv_cache="gpu"))
        model = family.build()
        if every:
            split_prompts(monkeypatch, model, every=every)
        with caplog.at_level("INFO"):
            latent, trace = sample_ras(model, family, family.noise(), self._settings())
        assert trace.regional_steps == 7 and not trace.notes
        assert "the K/V cache is kept as int8 (" in caplog.text
        assert 0 < distance(latent, plain) < 0.1
        assert exact.kv_bytes / 4 < trace.kv_bytes < exact.kv_bytes / 2

    def test_the_computed_size_is_what_is_stored(self, family, monkeypatch):
        seen = []
        monkeypatch.setattr(cache_plan, "choose", lambda *args: seen.append(args[1]) or choose(*args))
        _, trace = sample_ras(family.build(), family, family.noise(), self._settings())
        assert trace.kv_bytes == seen[0].kept("int8") == INT8.nbytes(seen[0].size)

    def test_auto_chooses_it_by_its_rank(self):
        needs = Needs(SIZE)
        assert choose("auto", needs, Room(2000, 0)).format_name == "gpu"
        assert choose("auto", needs, Room(1999, 0)).format_name == "int8"
        assert choose("auto", needs, Room(1419, 0)).format_name is None
        assert "kept as int8" in choose("auto", needs, Room(1999, 0)).reason

    def test_its_calls_are_captured_if_its_tensors_stay_in_place(self, family, monkeypatch):
        eager, _ = sample_ras(family.build(), family, family.noise(), self._settings(cuda_graphs="off"))
        monkeypatch.setattr(graphs_of_model, "may_outlive_run", lambda *_: True)
        model, tape = family.build(), AgainTape()
        store = capture_on(model, tape)
        for _ in range(2):
            latent, trace = sample_ras(model, family, family.noise(), self._settings())
            torch.testing.assert_close(latent, eager)
        assert tape.captured == 1 and store.nbytes("int8") == store.nbytes() == trace.kv_bytes

    def test_nothing_is_captured_if_they_do_not(self, sd3, monkeypatch):
        assert format_obstacle("int8") is None
        monkeypatch.setitem(FORMATS, "int8", replace(INT8, keeps_addresses=False))
        model, tape = sd3.build(), AgainTape()
        capture_on(model, tape)
        _, trace = sample_ras(model, sd3, sd3.noise(), self._settings())
        assert trace.regional_steps == 7 and tape.captured == 0
        assert "K/V format int8" in format_obstacle("int8")

    def test_a_sampler_that_adds_noise_uses_the_plain_cache_if_the_format_requires_it(self, monkeypatch):
        assert for_sampler("int8", adds_noise=True) == "int8"
        monkeypatch.setitem(FORMATS, "int8", replace(INT8, allows_added_noise=False))
        assert for_sampler("int8", adds_noise=True) == "gpu"

    def test_a_device_without_float8_runs_dense_if_it_needs_that(self, monkeypatch):
        monkeypatch.setitem(FORMATS, "int8", replace(INT8, needs_float8=True))
        choice = choose("int8", Needs(SIZE), Room(10**6, 0, has_float8=False))
        assert choice.format_name is None
        assert choice.reason == "this device does not support float8 (kv_cache = int8); use auto, gpu or cpu"


def _options() -> list[str]:
    return list(next(each for each in settings_inputs() if each.id == "kv_cache").options)
