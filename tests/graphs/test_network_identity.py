"""A graph captured with one network and its code is never replayed for another network or other code."""

import cProfile
import pstats
import weakref
from types import SimpleNamespace

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.graphs.eligibility import MAX_GRAPHS
from ras_pack.ras_core.graphs.network_identity import inspect
from ras_pack.ras_core.graphs.store import GraphStore
from ras_pack.ras_core.host.names import GRAPHS
from ras_pack.ras_core.host.patch import last_trace, patch_model
from support.families import FAMILIES
from support.sampling import FAST, between_calls, distance, in_groups, sample, sample_ras, split_prompts
from support.tape import FailingTape, FrozenLateTape, FrozenTape, Tapes, capture_on

CAPTURED = RASConfig(**{**vars(FAST), "kv_cache": "gpu"})
EAGER = RASConfig(**{**vars(CAPTURED), "cuda_graphs": "off"})
FORECAST = RASConfig(**{**vars(FAST), "kv_cache": "forecast"})
FORECAST_EAGER = RASConfig(**{**vars(FORECAST), "cuda_graphs": "off"})
CPU = torch.device("cpu")
MLP = "joint_blocks.1.x_block.mlp"


@pytest.fixture(autouse=True)
def _keep_graphs(monkeypatch):
    monkeypatch.setattr("ras_pack.ras_core.host.graphs_of_model.may_outlive_run", lambda *_: True)


class TestInspect:
    @pytest.fixture
    def network(self, sd3):
        return sd3.build().model.diffusion_model

    def _same(self, network, before):
        return before.matches(inspect(network, CPU)) and inspect(network, CPU).matches(before)

    def test_nothing_has_changed(self, network):
        assert inspect(network, CPU).obstacle is None
        assert self._same(network, inspect(network, CPU))

    def test_a_replaced_forward_and_its_removal(self, network):
        before, mlp = inspect(network, CPU), network.get_submodule(MLP)
        original = mlp.forward
        mlp.forward = lambda x: original(x) * 2
        assert not self._same(network, before)
        assert "another node's code" in inspect(network, CPU).obstacle
        mlp.forward = original  # ComfyUI does this when a patch is removed
        assert self._same(network, before) and inspect(network, CPU).obstacle is None

    def test_another_function_of_a_module(self, network):
        before = inspect(network, CPU)
        network.joint_blocks[0].x_block.pre_attention = lambda *args: None
        assert not self._same(network, before)

    def test_another_module_of_the_same_weights(self, network):
        before, mlp = inspect(network, CPU), network.get_submodule(MLP)
        mlp.act = torch.nn.SiLU()
        assert not self._same(network, before) and inspect(network, CPU).obstacle is None

    def test_the_same_modules_in_another_order(self, network):
        network.get_submodule(MLP).act = torch.nn.SiLU()
        before = inspect(network, CPU)
        first, second = (network.joint_blocks[i].x_block.mlp for i in (0, 1))
        first.act, second.act = second.act, first.act
        assert not self._same(network, before)

    def test_a_patched_class_and_a_patched_helper_of_its_file(self, network, monkeypatch):
        before, block = inspect(network, CPU), type(network.joint_blocks[0])
        monkeypatch.setattr(block, "forward", lambda *args, **kwargs: None)
        assert not self._same(network, before)
        monkeypatch.undo()
        assert self._same(network, before)
        monkeypatch.setattr(f"{block.__module__}.optimized_attention", lambda *args, **kwargs: None)
        assert not self._same(network, before)

    def test_weights_at_the_same_address_in_another_form(self, network):
        before, layer = inspect(network, CPU), network.joint_blocks[0].x_block.attn.proj
        layer.weight = torch.nn.Parameter(layer.weight.detach().t(), requires_grad=False)
        assert not self._same(network, before)

    def test_comfyuis_model_that_contains_it(self, network):
        owner = SimpleNamespace(manual_cast_dtype=None)
        before = inspect(network, CPU, None, owner)
        assert before.matches(inspect(network, CPU, None, owner))
        owner.manual_cast_dtype = torch.float16
        assert not before.matches(inspect(network, CPU, None, owner))

    def test_comfyuis_own_graphs(self, network):
        network.joint_blocks[0]._comfy_graph = {"graph": object()}
        assert "graphs of its own" in inspect(network, CPU).obstacle

    def test_removed_modules_are_not_kept_alive(self, network):
        weights = torch.nn.Linear(2, 2)
        network.get_submodule(MLP).act = weights
        held, gone = inspect(network, CPU), weakref.ref(weights)
        network.get_submodule(MLP).act = torch.nn.SiLU()
        del weights
        assert gone() is None and not self._same(network, held)

    def test_python_calls_per_module(self):
        """The network is inspected at every call. Counts calls, not seconds, which grow on a busy machine."""
        network = torch.nn.Sequential(
            *(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)) for _ in range(350))
        )
        profile = cProfile.Profile()
        profile.runcall(inspect, network, CPU)
        calls = pstats.Stats(profile).total_calls
        assert calls < 50 * len(list(network.modules()))  # measured: 36 per module


def guider_of(positive, negative):
    """ComfyUI's dual-model guider: one model for the positive prompt, another for the negative prompt."""
    extras = pytest.importorskip("comfy_extras.nodes_custom_sampler")
    if not hasattr(extras, "Guider_DualModel"):
        pytest.skip("this ComfyUI has no guider with two models")
    return extras.Guider_DualModel(positive, negative)


@torch.inference_mode()
def sample_with_two(family, config, positive, negative, noise=None):
    """A run with two models: the one for the positive prompt is patched with RAS, the other is not."""
    noise = family.noise() if noise is None else noise
    patched = patch_model(positive, config)
    guider = guider_of(patched, negative)
    guider.set_conds(family.conditioning(1), family.conditioning(2))
    guider.set_cfg(4.0)
    sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 10)
    sampler = comfy.samplers.sampler_object("euler")
    latent = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)
    return latent, last_trace(patched)


class TestTwoModels:
    @pytest.mark.parametrize("capture_negative", [True, False])
    def test_a_model_replaced_inside_the_guider(self, sd3, capture_negative):
        a, b, c = (sd3.build(seed) for seed in (0, 1, 2))
        plain = {id(each): sample_with_two(sd3, EAGER, a, each)[0] for each in (b, c)}
        tapes = Tapes(FrozenTape)
        for each in (a, b, c) if capture_negative else (a,):
            capture_on(each, tapes)
        for negative in (b, c, b, c):
            latent, trace = sample_with_two(sd3, CAPTURED, a, negative)
            assert distance(latent, plain[id(negative)]) < 2e-5
            assert trace.regional_steps == 7 and not trace.notes
        assert tapes.captured == (3 if capture_negative else 1) and tapes.replayed > 0

    def test_each_model_has_its_own_graphs_and_as_many_as_one(self, sd3):
        a, b = sd3.build(0), sd3.build(1)
        stores = [capture_on(each, Tapes(FrozenTape)) for each in (a, b)]
        for i in range(MAX_GRAPHS + 1):
            config = RASConfig(**{**vars(CAPTURED), "sample_ratio": 0.1 + 0.05 * i})
            sample_with_two(sd3, config, a, b)
        assert [store.count for store in stores] == [MAX_GRAPHS] * 2

    def test_a_model_that_cannot_be_captured_does_not_affect_the_other(self, sd3, caplog):
        a, b = sd3.build(0), sd3.build(1)
        tapes = [Tapes(FrozenTape), Tapes(FrozenTape)]
        for each, tape in zip((a, b), tapes, strict=True):
            capture_on(each, tape)
        b.model.diffusion_model.x_embedder.register_forward_hook(lambda *args: None)
        with caplog.at_level("INFO"):
            sample_with_two(sd3, CAPTURED, a, b)
        assert [tape.captured for tape in tapes] == [1, 0]
        assert caplog.text.count("no CUDA graphs") == 1

    def test_the_same_prompt_on_both_models(self, sd3):
        """One model must not use the keys and values of the other, even in steps that skip one model."""
        a, b = sd3.build(0), sd3.build(1)
        results = []
        for config in (EAGER, CAPTURED):
            for each in (a, b):
                capture_on(each, Tapes(FrozenTape))
            patched = patch_model(a, config)
            prompt = sd3.conditioning(1)
            guider = guider_of(patched, b)
            guider.set_conds(prompt, prompt)
            guider.set_cfg(4.0)
            evaluations = []

            def at_times(executor, *args, seen=evaluations):
                seen.append(1)
                executor.class_obj.cfg = 1.0 if len(seen) == 4 else 4.0
                return executor(*args)

            patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "other", at_times)
            sigmas = comfy.samplers.calculate_sigmas(a.get_model_object("model_sampling"), "simple", 10)
            sampler, noise = comfy.samplers.sampler_object("euler"), sd3.noise()
            with torch.inference_mode():
                results.append(
                    guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)
                )
        assert distance(*results) < 2e-5

    def test_a_negative_model_of_another_family(self, sd3):
        a, b = sd3.build(), FAMILIES["lumina2"].build()
        plain, _ = sample_with_two(sd3, RASConfig(sample_ratio=1.0), a, b)
        latent, trace = sample_with_two(sd3, CAPTURED, a, b)
        assert distance(latent, plain) < 2e-5
        assert len(trace.notes) == 1 and "another family (NextDiT)" in trace.notes[0]

    def test_unloading_either_frees_its_memory(self, sd3):
        a, b = sd3.build(0), sd3.build(1)
        stores = [capture_on(each, Tapes(FrozenTape)) for each in (a, b)]
        sample_with_two(sd3, CAPTURED, a, b)
        assert [store.count for store in stores] == [1, 1]
        b.detach()
        assert [store.count for store in stores] == [1, 0]
        a.detach()
        assert [store.count for store in stores] == [0, 0]


class TestOtherCode:
    def _check(self, sd3, variants, captured):
        """Check that captured runs, which alternate between a model and its variants, equal eager runs."""
        model = variants[0]
        tape = FrozenTape()
        plain = [sample_ras(each, sd3, sd3.noise(), EAGER)[0] for each in variants]
        assert min(distance(each, plain[0]) for each in plain[1:]) > 1e-3
        capture_on(model, tape)
        for _ in range(2):
            for each, expected in zip(variants, plain, strict=True):
                latent, trace = sample_ras(each, sd3, sd3.noise(), CAPTURED)
                assert distance(latent, expected) < 2e-5
                assert trace.regional_steps == 7 and not trace.notes
        assert tape.captured == captured and tape.replayed > 0

    def test_a_bypass_lora_on_and_off(self, sd3):
        adapters = pytest.importorskip("comfy.weight_adapter")
        if not hasattr(adapters, "BypassInjectionManager"):
            pytest.skip("this ComfyUI has no bypass LoRA")
        model = sd3.build()
        strong, weak = (_with_bypass_lora(model, strength) for strength in (1.0, 0.5))
        self._check(sd3, [model, strong, weak], captured=6)

    def test_an_object_patch_on_and_off(self, sd3):
        model = sd3.build()
        patched = model.clone()
        mlp = model.model.diffusion_model.get_submodule(MLP)
        forward = mlp.forward
        patched.add_object_patch(f"diffusion_model.{MLP}.forward", lambda x: forward(x) * 1.5)
        self._check(sd3, [model, patched], captured=2)

    def test_a_replaced_layer(self, sd3):
        model = sd3.build()
        patched = model.clone()
        patched.add_object_patch(f"diffusion_model.{MLP}.act", torch.nn.SiLU())
        self._check(sd3, [model, patched], captured=4)

    @pytest.mark.parametrize("name", ["joint_blocks.1.x_block.norm2.eps", "final_layer.norm_final.eps"])
    def test_a_number_that_a_layer_reads(self, sd3, name):
        model = sd3.build()
        patched = model.clone()
        patched.add_object_patch(f"diffusion_model.{name}", 0.5)
        self._check(sd3, [model, patched], captured=4)

    def test_a_patched_class(self, sd3, monkeypatch):
        model, tape = sd3.build(), FrozenTape()
        plain, _ = sample_ras(model, sd3, sd3.noise(), EAGER)
        kind = type(model.model.diffusion_model.get_submodule(MLP))
        capture_on(model, tape)
        sample_ras(model, sd3, sd3.noise(), CAPTURED)
        original = kind.forward
        monkeypatch.setattr(kind, "forward", lambda *args: original(*args) * 1.5)
        other, _ = sample_ras(model, sd3, sd3.noise(), EAGER)
        latent, _ = sample_ras(model, sd3, sd3.noise(), CAPTURED)
        assert distance(other, plain) > 1e-3 and distance(latent, other) < 2e-5


def _with_bypass_lora(model, strength):
    import comfy.sd

    generator, rank, name = torch.Generator().manual_seed(1), 2, "joint_blocks.1.x_block.attn.proj"
    rows, columns = model.model.diffusion_model.get_submodule(name).weight.shape
    key = f"diffusion_model.{name}"
    lora = {
        f"{key}.lora_up.weight": torch.randn(rows, rank, generator=generator) * 0.3,
        f"{key}.lora_down.weight": torch.randn(rank, columns, generator=generator) * 0.3,
    }
    patched, _ = comfy.sd.load_bypass_lora_for_models(model, None, lora, strength, 0)
    assert patched.injections
    return patched


class TestForecastRows:
    """Cached rows must advance exactly once per evaluation, because a forecast uses their change since the
    previous evaluation. Of all tiny models, Lumina 2 has the rows that a forecast changes most.
    """

    @pytest.fixture
    def lumina2(self):
        return FAMILIES["lumina2"]

    @pytest.mark.parametrize(
        ("kind", "groups"),
        [
            (FrozenTape, [[1, 1, 1]] * 8 + [[2, 1]] * 6 + [[1, 2]] * 6),
            (FrozenLateTape, ([[1, 2]] * 5 + [[1, 1, 1]] * 4) * 3),
        ],
    )
    def test_prompts_that_are_regrouped(self, lumina2, kind, groups, monkeypatch):
        latents, two = [], lumina2.conditioning(1) + lumina2.conditioning(3)
        for config in (FORECAST_EAGER, FORECAST):
            model, tapes = lumina2.build(), Tapes(kind)
            capture_on(model, tapes)
            between_calls(monkeypatch, in_groups(groups.__getitem__))
            steps = len(groups)
            latent, trace = sample_ras(model, lumina2, lumina2.noise(), config, positive=two, steps=steps)
            latents.append(latent)
            assert not trace.notes
        assert tapes.replayed > 0 and distance(*latents) < 2e-5

    def test_two_prompts_are_still_launched_early(self, lumina2, monkeypatch):
        model, tapes = lumina2.build(), Tapes(FrozenLateTape)
        split_prompts(monkeypatch, model)
        capture_on(model, tapes)
        plain, _ = sample_ras(model, lumina2, lumina2.noise(), FORECAST_EAGER)
        latent, trace = sample_ras(model, lumina2, lumina2.noise(), FORECAST)
        assert tapes.launched == 4 and not trace.notes and distance(latent, plain) < 2e-5

    @pytest.mark.parametrize("error", [RuntimeError, torch.cuda.OutOfMemoryError])
    def test_a_capture_that_fails_after_its_work(self, lumina2, error):
        model = lumina2.build()
        plain, _ = sample_ras(model, lumina2, lumina2.noise(), FORECAST_EAGER, steps=16)
        tape = FailingTape()
        tape.error = error("planted")
        capture_on(model, tape)
        latent, trace = sample_ras(model, lumina2, lumina2.noise(), FORECAST, steps=16)
        assert distance(latent, plain) < 2e-5 and not trace.notes and not tape.failures

    def test_a_second_tape_without_memory(self, lumina2, monkeypatch):
        """The second call is captured on the second tape, which runs out of memory after running the call
        once. In the next step the call is captured on the first tape.
        """
        model, tapes = lumina2.build(), []

        def make(number):
            tapes.append(FailingTape() if number else FrozenTape())
            if number:
                tapes[-1].error = torch.cuda.OutOfMemoryError("planted")
            return tapes[-1]

        split_prompts(monkeypatch, model)
        plain, _ = sample_ras(model, lumina2, lumina2.noise(), FORECAST_EAGER, steps=16)
        store = GraphStore(make)
        setattr(model.model, GRAPHS, store)
        latent, trace = sample_ras(model, lumina2, lumina2.noise(), FORECAST, steps=16)
        assert distance(latent, plain) < 2e-5 and not trace.notes
        assert store.count == 2 and store.capture_failure is None and not tapes[1].failures

    def test_a_capture_that_fails_in_the_middle_of_its_work(self, lumina2):
        """When the capture fails, half of the call's cached rows have already advanced by a step. So the
        cached rows are discarded, and the call runs again without them.
        """

        class HalfTape(FrozenTape):
            def once(self, work):
                mlp = network.layers[1].feed_forward
                forward, mlp.forward = mlp.forward, fail
                try:
                    return super().once(work)
                finally:
                    mlp.forward = forward

        def fail(x):
            raise RuntimeError("planted")

        model = lumina2.build()
        network = model.model.diffusion_model
        store = capture_on(model, HalfTape())
        dense, _ = sample_ras(model, lumina2, lumina2.noise(), RASConfig(sample_ratio=1.0))
        eager, _ = sample_ras(model, lumina2, lumina2.noise(), FORECAST_EAGER)
        latent, trace = sample_ras(model, lumina2, lumina2.noise(), FORECAST)
        assert "planted" in store.capture_failure and distance(latent, dense) < 1.1 * distance(eager, dense)
        assert trace.regional_steps == 6  # the other one is dense
        assert trace.notes == ("a conditioning without cached data ran dense once",)


class TestInterrupts:
    @pytest.mark.parametrize(
        "interrupt", [comfy.model_management.InterruptProcessingException, KeyboardInterrupt]
    )
    @pytest.mark.parametrize("where", ["capture", "replay"])
    def test_they_end_the_run(self, sd3, interrupt, where):
        model = sd3.build()
        plain, _ = sample_ras(model, sd3, sd3.noise(), EAGER)
        armed = [True]

        class Interrupted(FrozenTape):
            def once(self, work):
                repeat = super().once(work)
                self._raise_in("capture")

                def again():
                    self._raise_in("replay")
                    repeat()

                return again

            def _raise_in(self, name):
                if armed and name == where:
                    armed.clear()
                    raise interrupt

        tape = Interrupted()
        store = capture_on(model, tape)
        with pytest.raises(interrupt):
            sample_ras(model, sd3, sd3.noise(), CAPTURED)
        assert store.capture_failure is None and not any(each.is_lent for each in store.buffers)
        latent, trace = sample_ras(model, sd3, sd3.noise(), CAPTURED)
        assert distance(latent, plain) < 2e-5 and not trace.notes
        assert store.count == 1 and tape.replayed > 0


def test_copies_of_the_model_on_other_devices(sd3, caplog):
    """ComfyUI can call copies of the model on several GPUs in threads, each with some of the prompts. The
    pack does not support this and runs dense.
    """
    model, tape = sd3.build(), FrozenTape()
    capture_on(model, tape)
    dense = sample(model, sd3, sd3.noise())
    patched = patch_model(model, CAPTURED)
    patched.model_options["multigpu_clones"] = {CPU: patched}
    with caplog.at_level("INFO"):
        latent = sample(patched, sd3, sd3.noise())
    assert distance(latent, dense) < 2e-5
    trace = last_trace(patched)
    assert trace.regional_steps == 0 and len(trace.notes) == 1 and "multi-GPU" in trace.notes[0]
    assert caplog.text.count("multi-GPU") == 2  # the warning, and the run's summary
    assert (tape.captured, tape.replayed) == (0, 0)
    assert trace.graphs.reason == "the run is dense"


def test_copies_attached_to_the_model_are_known_before_the_run(sd3, caplog):
    patched = patch_model(sd3.build(), CAPTURED)
    patched.set_additional_models("multigpu", [sd3.build()])
    with caplog.at_level("INFO"):
        sample(patched, sd3, sd3.noise())
    assert "multi-GPU" in last_trace(patched).notes[0] and "planned as regional" not in caplog.text


class TestInputsOfACallBesidesItsNetwork:
    """An input other than the network changes between two runs that use the same tape. The second run must
    equal an eager run.
    """

    def _second_run(self, family, change):
        model, noise = family.build(), family.noise()
        capture_on(model, FrozenTape())
        first, _ = sample_ras(model, family, noise, CAPTURED)
        changed = change(model) or model
        eager, _ = sample_ras(changed, family, noise, EAGER)
        assert distance(eager, first) > 1e-3, "the change has an effect"
        latent, trace = sample_ras(changed, family, noise, CAPTURED)
        assert distance(latent, eager) < 2e-5
        return trace

    def test_options_that_the_network_reads(self):
        def scaled(model):
            clone = model.clone()
            if not hasattr(clone, "set_model_rope_options"):
                pytest.skip("this ComfyUI scales no positions")
            clone.set_model_rope_options(
                scale_x=2.0, shift_x=0.0, scale_y=2.0, shift_y=0.0, scale_t=1.0, shift_t=0.0
            )
            return clone

        assert self._second_run(FAMILIES["lumina2"], scaled).graphs.replayed > 0

    def test_an_option_of_an_unknown_kind_is_not_captured(self, sd3):
        model = sd3.build()
        capture_on(model, FrozenTape())
        model.model_options["transformer_options"]["somebodys"] = object()
        _, trace = sample_ras(model, sd3, sd3.noise(), CAPTURED)
        assert "cannot be compared (somebodys)" in trace.graphs.reason and trace.regional_steps == 7

    def test_code_of_the_models_class(self, sd3, monkeypatch):
        def exchange(model):
            kind = type(model.model)
            original = kind._apply_model
            monkeypatch.setattr(kind, "_apply_model", lambda *args, **kwargs: original(*args, **kwargs) * 1.1)

        self._second_run(sd3, exchange)

    @pytest.mark.parametrize("on", ["class", "instance"])
    def test_code_of_the_noise_schedule(self, sd3, monkeypatch, on):
        def exchange(model):
            sampling = model.model.model_sampling
            original = type(sampling).calculate_denoised
            if on == "class":
                monkeypatch.setattr(
                    type(sampling), "calculate_denoised", lambda self, *args: original(self, *args) * 1.1
                )
            else:
                sampling.calculate_denoised = lambda *args: original(sampling, *args) * 1.1

        self._second_run(sd3, exchange)
