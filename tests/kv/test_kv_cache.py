"""Every format of the K/V cache is accurate, takes the computed memory, and is freed after the run."""

import gc
import weakref
from collections.abc import Sequence

import comfy.cli_args
import comfy.model_management
import comfy.samplers
import pytest
import torch
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host import cache_plan, graphs_of_model, memory, samplers
from ras_pack.ras_core.host.names import ATTENTION
from ras_pack.ras_core.host.patch import patch_model
from ras_pack.ras_core.kv import store as kv_store
from ras_pack.ras_core.kv import update as kv
from ras_pack.ras_core.kv.arena import SPARE, Arena
from ras_pack.ras_core.kv.choose import Needs, Room, choose
from ras_pack.ras_core.kv.extrapolation import TIMES, Times
from ras_pack.ras_core.kv.float8 import Float8Rows, has_float8
from ras_pack.ras_core.kv.forecast import ForecastRows
from ras_pack.ras_core.kv.formats import FORMATS, keeper
from ras_pack.ras_core.kv.main_memory import MainMemoryRows, Offloader
from ras_pack.ras_core.kv.plain import KVRows
from ras_pack.ras_core.kv.spec import CacheSize
from ras_pack.ras_core.kv.store import KVStore
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.rows import RowIndex
from ras_pack.ras_core.run.partial_forward import CallContext, NetworkCall
from support.families import FAMILIES, Family
from support.rotated import rotated
from support.sampling import FAST, distance, sample, sample_ras, split_prompts, unload_all_models
from support.tape import AgainTape, capture_on

KV_FORMATS = ("gpu", "fp8", "cpu", "off", "forecast")
FP8_ERROR = 0.1
"""Relative error of a latent after a whole run, in which random weights soon select other tokens. Measured:
0.001 to 0.08."""
FP8_CALL_ERROR = 0.02
"""Relative error of one regional call; float8's own error is 2.65 % of a key or value."""


@pytest.fixture
def seen(monkeypatch) -> dict:
    """Lists that collect, for each run, the computed memory, the chosen cache format and the offloader."""
    found = {"needs": [], "choices": [], "offloaders": []}

    def spy(wanted, needs, room):
        choice = choose(wanted, needs, room)
        found["needs"].append(needs)
        found["choices"].append(choice.format_name)
        return choice

    def make(format_name):
        keep = keeper(format_name)
        if format_name == "cpu":
            found["offloaders"].append(keep.keywords["offloader"])
        return keep

    monkeypatch.setattr(cache_plan, "choose", spy)
    monkeypatch.setattr(kv_store, "keeper", make)
    return found


def _call(model, family: Family, x: torch.Tensor, call: NetworkCall) -> torch.Tensor:
    """The denoised estimate of one conditioning, through ComfyUI's apply_model."""
    ready = family.inputs(model, x)
    with call.attached():
        return model.model.apply_model(
            x, torch.full((x.shape[0],), 0.7), transformer_options={ATTENTION: call.attend}, **ready
        )


def _settings(format_name: str, **changes) -> RASConfig:
    return RASConfig(**{**vars(FAST), "kv_cache": format_name, **changes})


def _alive(others: Sequence[object] = ()) -> list:
    """All live objects that hold K/V, without waiting for the garbage collector.

    Args:
        others: objects with K/V from before the test, which do not count. For example, the stack frames of a
            failed capture are kept on purpose.
    """
    kinds = {KVRows, Float8Rows, MainMemoryRows, ForecastRows, Times, Offloader}
    known = set(map(id, others))
    return [each for each in gc.get_objects() if type(each) in kinds and id(each) not in known]


def _free(monkeypatch, device: int, main: int) -> None:
    monkeypatch.setattr(cache_plan, "free_device_bytes", lambda *_: device)
    monkeypatch.setattr(cache_plan, "free_main_memory", lambda: main)


class TestAgreement:
    """A run with another cache format agrees with the run whose K/V cache is on the device (`gpu`)."""

    @rotated("grouped", [("together", 1), ("split", 2), ("alternating", 2)])
    def test_main_memory_is_exact_and_float8_is_close(self, family, grouped, monkeypatch):
        """The format `cpu` gives the same bits as `gpu`, and `fp8` nearly the same latent, even if ComfyUI
        changes from step to step whether the two prompts share a call.
        """
        mode, batch = grouped
        noise = family.noise(12, 20, batch=batch)
        latents = {}
        for format_name in ("gpu", "fp8", "cpu"):
            model = family.build()
            if mode != "together":
                split_prompts(monkeypatch, model, every=2 if mode == "alternating" else 0)
            latents[format_name], trace = sample_ras(model, family, noise, _settings(format_name))
            assert trace.regional_steps == 7 and not trace.notes
        assert torch.equal(latents["cpu"], latents["gpu"])
        assert 0 < distance(latents["fp8"], latents["gpu"]) < FP8_ERROR

    def test_one_regional_call(self, family):
        """A third of the tokens is active. The K/V rows of the other tokens are from a dense call on the same
        latent.
        """
        model, x, n = family.build(), family.noise(batch=2), 64
        network = model.model.diffusion_model
        active = torch.stack([torch.arange(i, n, 3)[:21] for i in range(2)])
        at_active = TokenGrid((16, 16), (2, 2)).active_pixels(active).expand_as(x)
        outputs = {}
        for format_name in ("gpu", "fp8", "cpu", "off"):
            slots, keep = {}, keeper(format_name)
            for tokens in (None, active):
                context = CallContext(family.inputs(model, x), keep=keep)
                call = NetworkCall(adapter_for(network), network, n, slots, tokens, context)
                output = _call(model, family, x, call)
            outputs[format_name] = output[at_active]
        assert torch.equal(outputs["cpu"], outputs["gpu"])
        assert 0 < distance(outputs["fp8"], outputs["gpu"]) < FP8_CALL_ERROR
        assert distance(outputs["off"], outputs["gpu"]) > 2 * FP8_CALL_ERROR

    @rotated("format_name", ["fp8", "cpu"])
    def test_prompts_of_different_length(self, family, format_name):
        prompts = {"positive": family.conditioning(1, rows=9), "negative": family.conditioning(2, rows=4)}
        plain, _ = sample_ras(family.build(), family, family.noise(), _settings("gpu"), **prompts)
        kept, trace = sample_ras(family.build(), family, family.noise(), _settings(format_name), **prompts)
        assert not trace.notes
        assert distance(kept, plain) < (FP8_ERROR if format_name == "fp8" else 1e-9)

    @pytest.mark.parametrize("format_name", ["gpu", "off"])
    def test_a_mask_has_a_number_for_each_row_of_the_whole_sequence(self, format_name):
        """Older versions of ComfyUI pass an attention mask to Lumina 2's image refiners. The mask has a
        column for every row, but with kv_cache = off the attention sees only the active rows.
        """
        family = FAMILIES["lumina2"]
        plain, _ = sample_ras(family.build(), family, family.noise(), _settings(format_name))
        model = family.build()
        for refiner in model.model.diffusion_model.noise_refiner:
            refiner.attention.register_forward_pre_hook(
                lambda module, args: (args[0], torch.zeros(1, 1, 64), *args[2:])
            )
        masked, trace = sample_ras(model, family, family.noise(), _settings(format_name))
        assert distance(masked, plain) < 1e-5
        assert trace.regional_steps == 7 and not trace.notes

    def test_a_mask_of_another_attention_is_not_changed(self):
        """Lumina-Next's attention to the caption has its own mask. In this test the mask has as many columns
        as the image has tokens, so it could be mistaken for a mask of the image.
        """
        family = FAMILIES["lumina_next"]
        prompts = {"positive": family.conditioning(1, rows=64), "negative": family.conditioning(2, rows=64)}
        _, trace = sample_ras(family.build(), family, family.noise(), _settings("off"), **prompts)
        assert trace.regional_steps == 7 and not trace.notes

    def test_off_attends_only_to_active_tokens(self, family):
        rows = []

        def other(func, q, k, v, heads, *args, **kwargs):
            axis = 2 if kwargs.get("skip_reshape") else 1
            rows.append((q.shape[axis], k.shape[axis]))
            return func(q, k, v, heads, *args, **kwargs)

        model, noise = family.build(), family.noise()
        plain, _ = sample_ras(model, family, noise, _settings("gpu"))
        model.model_options["transformer_options"]["optimized_attention_override"] = other
        latent, trace = sample_ras(model, family, noise, _settings("off"))
        assert trace.regional_steps == 7 and trace.kv_bytes == 0 and not trace.notes
        assert distance(latent, plain) > 0.01
        among_tokens = [(q, k) for q, k in rows if q == k]
        assert len({q for q, _ in among_tokens}) > 1  # dense ones and shortened ones
        text = 0 if family.text_in_cache else 7
        assert all(k in (q, text) for q, k in rows)


class TestBytes:
    @pytest.mark.parametrize("format_name", KV_FORMATS)
    def test_the_computed_size_is_what_is_stored(self, family, format_name, seen):
        noise = family.noise(13, 19, batch=2)
        prompts = {"positive": family.conditioning(1, rows=40), "negative": family.conditioning(2, rows=4)}
        _, trace = sample_ras(family.build(), family, noise, _settings(format_name), **prompts)
        (needs,) = seen["needs"]
        assert trace.kv_bytes == FORMATS[format_name].nbytes(needs.size)
        assert needs.kept(format_name) == (0 if format_name == "cpu" else trace.kv_bytes)

    def test_float8_halves_half_precision(self, family, seen):
        stored = {}
        for format_name in ("gpu", "fp8"):
            model = family.build(dtype=torch.bfloat16)
            _, trace = sample_ras(model, family, family.noise(), _settings(format_name))
            stored[format_name] = trace.kv_bytes
        assert [needs.kept("gpu") for needs in seen["needs"]] == [stored["gpu"]] * 2
        assert seen["needs"][0].kept("fp8") == stored["fp8"]
        assert stored["fp8"] == stored["gpu"] // 2 + stored["gpu"] // family.kv_width  # a scale per row

    def test_at_cfg_1_only_one_branch_is_counted(self, family, seen):
        _, trace = sample_ras(family.build(), family, family.noise(), _settings("gpu"), cfg=1.0)
        assert trace.kv_bytes == seen["needs"][0].kept("gpu")

    def test_sd3_medium_at_full_size(self):
        """The cache size computed by hand: 24 blocks, a key and a value of 1,536 half-precision numbers per
        row, two prompts, 4,096 image rows and 154 text rows.
        """
        import comfy.ops
        from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
        from ras_pack.ras_core.models import adapter_for

        with torch.device("meta"):
            network = MMDiT(depth=24, num_patches=36864, operations=comfy.ops.disable_weight_init)
        profile = adapter_for(network).cache_profile(network)
        assert 2 * profile.counts(4096, [0, 0])[0] == 1.125 * 2**30
        assert 2 * profile.counts(4096, [154, 154])[0] == 24 * 2 * 2 * (4096 + 154) * 1536 * 2


class TestAuto:
    """With kv_cache = auto and limited memory, a run uses a cache format that fits, and logs the format and
    the reason for it.
    """

    def _needs(self, family, seen) -> Needs:
        sample_ras(family.build(), family, family.noise(), _settings("auto"))
        assert seen["choices"] == ["gpu"]
        return seen["needs"][0]

    def test_the_first_form_that_fits_is_used(self, family, seen, monkeypatch, caplog):
        needs = self._needs(family, seen)
        in_passing = needs.on_device("cpu")
        for device, main, format_name, words in [
            (needs.kept("gpu"), 0, "gpu", None),
            (needs.kept("gpu") - 1, 0, "fp8", "kept as fp8"),
            (max(in_passing, needs.on_device("fp8") - 1), needs.kept("gpu"), "cpu", "kept in main memory"),
            (in_passing, needs.kept("gpu") - 1, None, "not enough memory for the K/V cache"),
            (in_passing - 1, needs.kept("gpu"), None, "not enough memory for the K/V cache"),
        ]:
            _free(monkeypatch, device, main)
            if format_name == "cpu" and in_passing >= needs.on_device("fp8"):
                monkeypatch.setattr(cache_plan, "has_float8", lambda _: False)  # three layers: half is more
            caplog.clear()
            with caplog.at_level("INFO"):
                latent, trace = sample_ras(family.build(), family, family.noise(), _settings("auto"))
            assert seen["choices"][-1] == format_name
            assert torch.isfinite(latent).all() and trace.regional_steps == (7 if format_name else 0)
            assert caplog.text.count("K/V cache") >= 1
            if words is None:
                assert not trace.notes and "kept on the device" in caplog.text
            else:
                assert len(trace.notes) == 1 and words in trace.notes[0]
                assert "free device memory" in trace.notes[0]
                assert caplog.text.count("WARNING") == 1

    def test_a_dense_run_is_the_dense_run(self, family, monkeypatch):
        _free(monkeypatch, 0, 0)
        model, noise = family.build(), family.noise()
        latent, _ = sample_ras(model, family, noise, _settings("auto"))
        assert torch.equal(latent, sample(model, family, noise))

    def test_dense_settings_choose_no_form(self, sd3, seen):
        sample_ras(sd3.build(), sd3, sd3.noise(), _settings("auto", sample_ratio=1.0))
        assert seen["choices"] == []

    def test_a_device_without_float8(self, sd3, seen, monkeypatch):
        monkeypatch.setattr(cache_plan, "has_float8", lambda _: False)
        _, trace = sample_ras(sd3.build(), sd3, sd3.noise(), _settings("fp8"))
        assert trace.regional_steps == 0 and "does not support float8" in trace.summary()
        needs = seen["needs"][0]
        _free(monkeypatch, needs.kept("gpu") - 1, needs.kept("gpu"))
        sample_ras(sd3.build(), sd3, sd3.noise(), _settings("auto"))
        assert seen["choices"][-1] == "cpu"

    def test_this_cpu_supports_float8_and_an_unknown_device_does_not(self):
        assert has_float8(torch.device("cpu"))
        assert not has_float8(torch.device("meta"))

    def test_the_users_choice_is_used(self):
        needs, room = Needs(CacheSize(500, 5, 5, 5, 2)), Room(0, 0)
        for format_name in KV_FORMATS:
            choice = choose(format_name, needs, room)
            assert choice.format_name == format_name and not choice.is_fallback


class TestAutoWithCorrections:
    """With corrections, extrapolated K/V rows improve the image. So `auto` takes the format `forecast` as
    long as memory suffices.
    """

    SETTINGS = RASConfig(sample_ratio=0.5, start_step=2, error_reset_every=0, corrections=True)

    @pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
    def test_a_forecast_comes_first(self, family, seen, sampler, caplog):
        with caplog.at_level("INFO"):
            _, trace = sample_ras(family.build(), family, family.noise(), self.SETTINGS, sampler=sampler)
        assert seen["choices"] == ["forecast"] and not trace.notes and trace.regional_steps == 8
        assert caplog.text.count("is kept on the device and extrapolated (kv_cache forecast)") == 1

    def test_the_multirate_sampler_itself_corrects(self, sd3):
        config = RASConfig()
        assert samplers.is_corrected(samplers.multirate_sampler("dpmpp_2m"), config)
        assert not samplers.is_corrected(comfy.samplers.sampler_object("euler"), config)
        assert samplers.is_corrected(comfy.samplers.sampler_object("euler"), self.SETTINGS)

    @pytest.mark.parametrize("sampler", ["heun", "euler_ancestral"])
    def test_other_samplers_get_what_they_got(self, sd3, seen, sampler):
        sample_ras(sd3.build(), sd3, sd3.noise(), self.SETTINGS, sampler=sampler)
        assert seen["choices"] == ["gpu"]

    def test_what_the_user_names_is_taken(self, sd3, seen):
        sample_ras(sd3.build(), sd3, sd3.noise(), RASConfig(**{**vars(self.SETTINGS), "kv_cache": "gpu"}))
        assert seen["choices"] == ["gpu"]

    def test_where_memory_is_not_ample_it_is_as_without_corrections(self, sd3, seen, monkeypatch, caplog):
        sample_ras(sd3.build(), sd3, sd3.noise(), self.SETTINGS)
        needs = seen["needs"][0]
        ample = 2 * needs.on_device("forecast")
        for device, format_name in [
            (ample, "forecast"),
            (ample - 1, "gpu"),
            (needs.kept("gpu"), "gpu"),
            (needs.kept("gpu") - 1, "fp8"),
        ]:
            _free(monkeypatch, device, 0)
            _, trace = sample_ras(sd3.build(), sd3, sd3.noise(), self.SETTINGS)
            assert seen["choices"][-1] == format_name
            assert bool(trace.notes) == (format_name == "fp8")

    def test_room_is_made_for_plain_rows_only(self, sd3, seen, monkeypatch):
        asked = []
        monkeypatch.setattr(cache_plan, "make_room", lambda nbytes, device: asked.append(nbytes))
        monkeypatch.setattr(cache_plan, "working_memory", lambda *_: 0)
        sample_ras(sd3.build(), sd3, sd3.noise(), self.SETTINGS)
        assert asked == [seen["needs"][0].kept("gpu")]

    def test_its_buffers_of_an_earlier_run_count_as_room_and_are_used_or_freed(self, sd3, seen, monkeypatch):
        config = RASConfig(**{**vars(self.SETTINGS), "cuda_graphs": "auto"})
        model, tape = sd3.build(), AgainTape()
        store = capture_on(model, tape)
        monkeypatch.setattr(graphs_of_model, "may_outlive_run", lambda *_: True)
        sample_ras(model, sd3, sd3.noise(), config)
        needs = seen["needs"][0]
        assert store.nbytes() == store.nbytes("forecast") == needs.kept("forecast")
        _free(monkeypatch, 2 * needs.on_device("forecast") - needs.kept("forecast"), 0)
        sample_ras(model, sd3, sd3.noise(), config)
        assert seen["choices"] == ["forecast"] * 2 and tape.captured == 1
        _free(monkeypatch, 0, 0)  # all that plain rows need is what the graphs hold
        sample_ras(model, sd3, sd3.noise(), config)
        assert seen["choices"][-1] == "gpu" and store.nbytes() == store.nbytes("gpu")


class TestRoom:
    def test_memory_is_freed_after_the_models_are_loaded_and_before_sampling(self, sd3, seen, monkeypatch):
        asked, model = [], sd3.build()
        monkeypatch.setattr(cache_plan, "make_room", lambda nbytes, device: asked.append((nbytes, device)))
        monkeypatch.setattr(cache_plan, "free_device_bytes", lambda *_: asked.append("read") or 10**9)
        sample_ras(model, sd3, sd3.noise(), _settings("auto"))
        (needs,) = seen["needs"]
        working = memory.working_memory(model, sd3.noise().shape)
        assert asked == [(needs.kept("gpu") + working, model.load_device), "read"]
        assert working >= model.memory_required([2, *sd3.noise().shape[1:]])

    @pytest.mark.parametrize(
        ("name", "share", "spreads"), [("sd3", 0.5, True), ("sd3", 0.4, False), ("flux_kontext", 0.5, True)]
    )
    def test_memory_is_kept_free_for_errors_that_are_spread(self, seen, monkeypatch, name, share, spreads):
        """Nothing is spread where few tokens are computed."""
        family, asked = FAMILIES[name], []
        monkeypatch.setattr(cache_plan, "make_room", lambda nbytes, device: asked.append(nbytes))
        for spread in (False, True):
            config = _settings("forecast", sample_ratio=share, spread=spread)
            sample_ras(family.build(), family, family.noise(), config)
        assert asked[1] - asked[0] == spreads * 5 * seen["needs"][0].size.attention_nbytes

    def test_other_models_are_unloaded_and_the_runs_own_are_kept(self, sd3, monkeypatch):
        """To make room for the cache, ComfyUI's memory manager unloads a model that the run does not use. Two
        models are loaded, on a stand-in that claims to be a GPU.
        """
        management = comfy.model_management
        ours, other = sd3.build(), sd3.build(seed=1)
        unload_all_models()
        management.load_models_gpu([other])
        management.load_models_gpu([ours])
        loaded = {each.model: each for each in management.current_loaded_models}
        loaded[other].currently_used = False  # ComfyUI marks it like this while it loads ours on a GPU
        memory.make_room(2**60, torch.device("cpu"))
        assert {each.model for each in management.current_loaded_models} == {ours, other}

        class GPU:
            """A device that equals the models' device but has another type."""

            type = "cuda"
            __hash__ = None

            def __eq__(self, device):
                return device == torch.device("cpu")

        monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: (0, 0) if __ else 0)
        gone = []
        detach = other.detach
        monkeypatch.setattr(other, "detach", lambda *args: gone.append(other) or detach(*args))
        for each in management.current_loaded_models:
            each.device = GPU()
        memory.make_room(2**60, GPU())
        assert gone == [other]
        assert [each.model for each in management.current_loaded_models] == [ours]
        unload_all_models()


class TestLifeCycle:
    @rotated("format_name", KV_FORMATS)
    def test_nothing_is_held_after_an_interrupted_run(self, family, format_name, request):
        self._held_nothing(family, format_name, "interrupted", request)

    @pytest.mark.parametrize("format_name", ["auto", *KV_FORMATS])
    @pytest.mark.parametrize("end", ["done", "failed"])
    def test_nothing_is_held_after_a_run(self, sd3, format_name, end, request):
        self._held_nothing(sd3, format_name, end, request)

    def _held_nothing(self, family, format_name, end, request):
        def stop(step, *_):
            if step == 4:
                if format_name != "off":
                    assert _alive(others)
                raise KeyboardInterrupt if end == "interrupted" else MemoryError("planted")

        gc.collect()
        gc.disable()
        request.addfinalizer(gc.enable)
        others = _alive()
        patched = patch_model(family.build(), _settings(format_name))
        if end == "done":
            sample(patched, family, family.noise())
        else:
            with pytest.raises((KeyboardInterrupt, MemoryError)):
                sample(patched, family, family.noise(), callback=stop)
        assert _alive(others) == []

    @rotated("format_name", ["fp8", "cpu", "forecast"])
    def test_a_second_run_equals_a_fresh_model(self, family, format_name):
        patched = patch_model(family.build(), _settings(format_name))
        for size in [(16, 16), (12, 20), (16, 16)]:
            fresh, _ = sample_ras(family.build(), family, family.noise(*size), _settings(format_name))
            assert torch.equal(sample(patched, family, family.noise(*size)), fresh)

    @pytest.mark.parametrize("format_name", ["gpu", "fp8", "cpu"])
    def test_when_memory_runs_out_the_cache_is_freed_before_the_dense_call(
        self, sd3, format_name, monkeypatch
    ):
        """The third attention of a call runs out of memory while it stores its K/V rows. The rows of the
        first two must be freed before the call is repeated.
        """
        gc.collect()
        filled, held, others = [], [], _alive()
        fill = kv.fill

        def third_fails(*args):
            filled.append(1)
            if len(filled) == 3:
                raise comfy.model_management.OOM_EXCEPTION("planted")
            fill(*args)

        def look(module, args):
            if len(filled) == 3:
                held.append(len([each for each in _alive(others) if isinstance(each, KVRows)]))

        monkeypatch.setattr(kv, "fill", third_fails)
        model = sd3.build()
        model.model.diffusion_model.final_layer.register_forward_pre_hook(look)
        _, trace = sample_ras(model, sd3, sd3.noise(), _settings(format_name))
        assert "not enough memory" in trace.summary() and trace.regional_steps == 0
        assert held and held[0] == 0


class TestOffloader:
    def test_every_sequence_but_a_calls_first_is_prefetched(self, family, seen):
        _, trace = sample_ras(family.build(), family, family.noise(), _settings("cpu"))
        assert trace.regional_steps == 7
        assert seen["offloaders"][-1].late == 7

    def test_it_only_uses_two_buffers_on_the_device(self, family, seen, monkeypatch):
        """With kv_cache = cpu, each attention's rows are copied to one of two buffers on the device. Both
        buffers grow to the size of the largest attention.
        """
        addresses = set()
        fetch = Offloader.fetch

        def spy(self, rows, device):
            buffers = fetch(self, rows, device)
            addresses.add(buffers[0].untyped_storage().data_ptr())
            return buffers

        monkeypatch.setattr(Offloader, "fetch", spy)
        sample_ras(family.build(), family, family.noise(), _settings("cpu"))
        assert len(addresses) == 2

    def test_a_prefetch_from_before_a_dense_call_is_not_used(self):
        slots, offloader = {}, Offloader()
        for number in (10.0, 20.0):
            for layer in range(3):
                full = torch.full((1, 3, 4), number + layer)
                kv.fill(
                    slots, (layer, 0), (full, full), (0, 0),
                    lambda *a: MainMemoryRows.of(*a, offloader=offloader),
                )  # fmt: skip
            if number == 10.0:
                self._update(slots, 1)  # starts the prefetch of the third attention, and the call ends here
        key, _ = self._update(slots, 2)
        assert key[0, :, 0].tolist() == [22, 9, 22]

    def _update(self, slots, layer):
        fresh = torch.full((1, 1, 4), 9.0)
        return kv.update(slots, (layer, 0), (fresh, fresh), (0, 0), RowIndex(torch.tensor([1]), 3))


class TestOneBlock:
    """All K/V rows of a network call are allocated as one memory block of the computed size."""

    @pytest.fixture
    def pieces(self, monkeypatch) -> list:
        """A list with one dict for each dense call: the memory blocks of its keys and values, address ->
        bytes.
        """
        found = []
        end_fill = KVStore.end_fill

        def spy(store, branches, slots):
            kept = [t.untyped_storage() for slot, seq in slots.items() if slot != TIMES for t in seq.tensors]
            found.append({memory.data_ptr(): memory.nbytes() for memory in kept})
            end_fill(store, branches, slots)

        monkeypatch.setattr(KVStore, "end_fill", spy)
        return found

    @pytest.mark.parametrize("format_name", ["gpu", "fp8", "forecast"])
    def test_of_the_expected_size(self, family, format_name, pieces, seen):
        _, trace = sample_ras(family.build(), family, family.noise(), _settings(format_name))
        assert pieces and all(len(each) == 1 for each in pieces)
        assert sum(pieces[0].values()) == seen["needs"][0].of_a_branch(format_name) * 2 + SPARE
        assert trace.kv_bytes <= sum(pieces[0].values())

    def test_rows_beyond_the_expected_size_are_kept_too(self, sd3, pieces, monkeypatch):
        """The block's size is computed from the mean length of the prompts. If their lengths differ a lot,
        some rows do not fit into the block, and must be kept elsewhere.
        """
        plain, _ = sample_ras(sd3.build(), sd3, sd3.noise(), _settings("gpu"))
        monkeypatch.setattr(Needs, "of_a_branch", lambda *_: 100_000)
        monkeypatch.setattr("ras_pack.ras_core.kv.arena.SPARE", 0)
        short, trace = sample_ras(sd3.build(), sd3, sd3.noise(), _settings("gpu"))
        assert torch.equal(short, plain) and not trace.notes
        assert len(pieces[-1]) > 1

    def test_the_block_is_freed_if_memory_runs_out_during_a_call(self, sd3, monkeypatch):
        """The call is repeated without a cache, and can use the memory that the cache would have taken."""
        made, alive = weakref.WeakSet(), []
        init = Arena.__init__

        def made_known(arena, *args):
            init(arena, *args)
            made.add(arena)

        monkeypatch.setattr(Arena, "__init__", made_known)
        model = sd3.build()

        def full_once(module, args):
            alive.append(len(made))
            if len(alive) == 2:  # the second step's call is the first to keep anything
                raise torch.cuda.OutOfMemoryError("planted")

        model.model.diffusion_model.final_layer.register_forward_pre_hook(full_once)
        _, trace = sample_ras(model, sd3, sd3.noise(), _settings("gpu"))
        assert "not enough memory" in trace.summary()
        assert alive[1] == 1 and set(alive[2:]) == {0}

    def test_without_memory_for_one_block_separate_buffers_are_used(self, monkeypatch):
        empty = torch.empty

        def full(size, **kwargs):
            if size:
                raise torch.cuda.OutOfMemoryError("planted")
            return empty(size, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", full)
            copy = Arena(2**20).copy(torch.ones(3))
        assert copy.tolist() == [1, 1, 1]


class TestForms:
    """Each cache format can split, join and overwrite its rows. The numbers are small powers of two, which
    float8 with its three mantissa bits represents exactly.
    """

    KEEP = {
        "gpu": KVRows.of,
        "fp8": Float8Rows.of,
        "cpu": lambda *rows: MainMemoryRows.of(*rows, offloader=Offloader()),
        "forecast": ForecastRows.of,
    }

    @pytest.fixture(params=list(KEEP))
    def keep(self, request):
        return self.KEEP[request.param]

    def _rows(self, *firsts: float) -> torch.Tensor:
        """(branches, 3, 2, 2): row j of branch i is firsts[i] * 2^j; every value has one bit."""
        powers = torch.tensor([1.0, 2.0, 4.0])[None, :, None, None]
        return torch.tensor(firsts)[:, None, None, None] * powers * torch.ones(1, 1, 2, 2)

    def test_split_and_joined(self, keep):
        whole = keep(self._rows(1.0, 8.0), self._rows(16.0, 32.0), 1, 0)
        first, second = whole.chunk(0, 2), whole.chunk(1, 2)
        key, value = second.joined([first]).read()
        assert torch.equal(key, self._rows(8.0, 1.0)) and torch.equal(value, self._rows(32.0, 16.0))
        wider = first.with_borders(3, 1)
        assert (wider.prefix, wider.suffix) == (3, 1)
        assert torch.equal(wider.read()[0][:, 3:-1], self._rows(1.0)[:, 1:])
        both = wider.joined([second])
        assert both.prefix == both.suffix == 0
        assert torch.equal(both.read()[1], self._rows(16.0, 32.0)[:, 1:])
        assert type(both) is type(whole)

    def test_fresh_rows_are_kept_and_attended_to(self, keep):
        kept = keep(self._rows(1.0, 8.0), self._rows(16.0, 32.0), 0, 0)
        fresh = torch.full((2, 1, 2, 2), 3.1)
        key, value = kept.update(RowIndex(torch.tensor([1, 5]), 6), (fresh, fresh * 2))
        assert torch.equal(key[0, 1], fresh[0, 0]) and torch.equal(value[1, 2], 2 * fresh[0, 0])
        assert key[:, :, 0, 0].tolist() == [[1, pytest.approx(3.1), 4], [8, 16, pytest.approx(3.1)]]
        again, _ = kept.update(RowIndex(torch.tensor([0, 3]), 6), (fresh, fresh))
        assert again[0, 1, 0, 0].item() == pytest.approx(3.1, rel=2**-4)  # a later step reads the kept rows

    def test_overwritten_in_place_if_it_fits(self, keep):
        kept = keep(self._rows(1.0), self._rows(1.0), 0, 0)
        assert kept.fits(self._rows(2.0), self._rows(2.0), 0)
        assert not kept.fits(self._rows(2.0), self._rows(2.0), 1)
        assert not kept.fits(self._rows(2.0, 3.0), self._rows(2.0, 3.0), 0)
        assert not kept.fits(self._rows(2.0).half(), self._rows(2.0).half(), 0)
        kept.write(self._rows(2.0), self._rows(4.0))
        assert torch.equal(kept.read()[0], self._rows(2.0))
        assert torch.equal(kept.read()[1], self._rows(4.0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_float8_is_equally_precise_for_tiny_and_huge_rows(self, dtype):
        """Float8 covers only magnitudes from 2^-9 to 448. These rows are far outside this range, so each row
        is stored with its own scale.
        """
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(2, 4, 64, generator=generator)
        rows = (rows * torch.tensor([1e-4, 1.0, 100.0, 8000.0])[None, :, None]).to(dtype)
        rows[0, 1] = 0.0
        key, value = Float8Rows.of(rows, -rows, 0, 0).read()
        assert key.dtype == dtype and torch.equal(key[0, 1], rows[0, 1])
        for row in range(1, 8):
            own, kept = rows.flatten(0, 1)[row].float(), key.flatten(0, 1)[row].float()
            assert row == 1 or distance(kept, own) < 0.035
        assert torch.equal(value, -key)


class TestGraphs:
    """A captured call reads K/V at fixed addresses. So calls are captured only with a cache format whose rows
    stay at the same addresses.
    """

    @pytest.mark.parametrize("format_name", KV_FORMATS)
    def test_calls_are_captured_only_if_the_cache_stays_in_place(self, family, format_name, caplog):
        model, tape = family.build(), AgainTape()
        capture_on(model, tape)
        with caplog.at_level("INFO"):
            _, trace = sample_ras(model, family, family.noise(), _settings(format_name))
        assert trace.regional_steps == 7 and not trace.notes
        stays = format_name in ("gpu", "fp8", "forecast")
        assert tape.captured == (1 if stays else 0)
        assert caplog.text.count("no CUDA graphs") == (0 if stays else 1)
        assert ("does not support CUDA graphs" in caplog.text) == (not stays)

    def test_buffers_of_an_earlier_run_count_as_free_and_are_freed_if_needed(self, sd3, seen, monkeypatch):
        model, tape = sd3.build(), AgainTape()
        store = capture_on(model, tape)
        monkeypatch.setattr(graphs_of_model, "may_outlive_run", lambda *_: True)
        sample_ras(model, sd3, sd3.noise(), _settings("auto"))
        assert store.nbytes() == seen["needs"][0].kept("gpu")
        _free(monkeypatch, 0, 0)  # the cache needs exactly the memory that the graphs hold
        sample_ras(model, sd3, sd3.noise(), _settings("auto"))
        assert seen["choices"] == ["gpu", "gpu"] and tape.captured == 1
        _, trace = sample_ras(model, sd3, sd3.noise(32, 32), _settings("auto"))
        assert seen["choices"][-1] is None and trace.regional_steps == 0
        assert store.nbytes() == 0

    def test_if_memory_is_short_a_cache_of_half_the_size_is_captured_and_the_other_is_freed(
        self, sd3, seen, monkeypatch
    ):
        model, tape = sd3.build(), AgainTape()
        store = capture_on(model, tape)
        monkeypatch.setattr(graphs_of_model, "may_outlive_run", lambda *_: True)
        sample_ras(model, sd3, sd3.noise(), _settings("gpu"))
        needs = seen["needs"][0]
        assert store.nbytes("gpu") == store.nbytes() == needs.kept("gpu")
        # Its buffers do not fit another size, and in the free memory the cache only fits as fp8.
        monkeypatch.setattr(cache_plan, "free_device_bytes", lambda *_: 2 * needs.kept("gpu"))
        _, trace = sample_ras(model, sd3, sd3.noise(32, 32), _settings("auto"))
        assert seen["choices"] == ["gpu", "fp8"] and trace.regional_steps == 7
        assert store.nbytes() == store.nbytes("fp8") == trace.kv_bytes > 0
        assert tape.captured == 2

    @pytest.mark.parametrize(("first", "then"), [("forecast", "gpu"), ("gpu", "forecast")])
    def test_buffers_that_a_run_cannot_use_do_not_count_as_free(self, sd3, monkeypatch, first, then):
        """Buffers of captured calls are kept for later runs. A run with extrapolated rows cannot use the
        buffers for plain rows, nor the other way round, so it must not count them as free memory.
        """
        asked = []
        monkeypatch.setattr(cache_plan, "make_room", lambda nbytes, device: asked.append(nbytes))
        monkeypatch.setattr(graphs_of_model, "may_outlive_run", lambda *_: True)
        monkeypatch.setattr(cache_plan, "working_memory", lambda *_: 0)
        model = sd3.build()
        store = capture_on(model, AgainTape())
        for format_name in (then, first, then, then):
            if len(asked) == 1:
                store.clear()
            sample_ras(model, sd3, sd3.noise(), _settings(format_name))
        alone, _, after, again = asked
        assert after == alone > again


class TestDynamicVRAM:
    """ComfyUI's dynamic VRAM: weights are loaded when a layer needs them, and evicted when something else
    needs the memory.
    """

    @pytest.fixture
    def model(self, sd3, monkeypatch):
        model = sd3.build()
        monkeypatch.setattr(model, "is_dynamic", lambda: True, raising=False)
        monkeypatch.setattr(memory, "evictable_bytes", lambda device: 700)
        monkeypatch.setattr(model, "model_size", lambda: 1000)
        free = {False: 5000, True: (5000, 0)}  # True: including PyTorch's part of it
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda _, both=False: free[both])
        monkeypatch.setattr(comfy.cli_args.args, "vram_headroom", 0.0, raising=False)
        return model

    def test_available_memory_excludes_all_weights_of_the_model(self, model):
        assert memory.free_device_bytes(model, 100) == 5000 + 700 - 1000 - 100

    def test_memory_that_comfyui_must_keep_free_is_not_available(self, model, monkeypatch):
        monkeypatch.setattr(comfy.cli_args.args, "vram_headroom", 1.0)
        assert memory.free_device_bytes(model, 0) == 5000 + 700 - 1000 - 2**30

    def test_a_model_that_does_not_fit_runs_dense(self, sd3, model, monkeypatch):
        monkeypatch.setattr(model, "model_size", lambda: 10**12)
        _, trace = sample_ras(model, sd3, sd3.noise(), _settings("auto"))
        assert trace.regional_steps == 0
        assert any("not enough memory for the K/V cache" in note for note in trace.notes)

    def test_nothing_is_captured_if_an_eviction_could_break_the_capture(self, model, monkeypatch):
        free = [10**12, 0]
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: tuple(free))
        shape = torch.Size([1, 16, 16, 16])
        assert graphs_of_model.capture_obstacle(model, shape) is None
        free[1] = 10**12  # all of it is in PyTorch's own pool, which a capture cannot use
        assert "too little free memory" in graphs_of_model.capture_obstacle(model, shape)
        monkeypatch.setattr(model, "is_dynamic", lambda: False)
        assert graphs_of_model.capture_obstacle(model, shape) is None
