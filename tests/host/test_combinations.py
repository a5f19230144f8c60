"""RAS combined with other nodes of a workflow: the image is right, or the run is dense and names its reason.

The other parts are ComfyUI's own code (LoRA patches, SD3 ControlNet, area, mask, hooks) on tiny models.
"""

import comfy.cldm.mmdit
import comfy.controlnet
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.host.names import ATTENTION
from ras_pack.ras_core.host.outer_sample import OuterSample, begin_run
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.host.samplers import sample_multirate, sampler_of_run
from ras_pack.ras_core.method.schedule import step_of_sigma
from ras_pack.ras_core.models import adapter_for
from support.families import FAMILIES, draw_weights
from support.sampling import FAST, STEPS, distance, sample, sample_ras, unload_all_models
from support.tape import FrozenTape, capture_on

EAGER = RASConfig(**{**vars(FAST), "cuda_graphs": "off"})
NEARLY_ALL = RASConfig(paper=PaperSettings(), sample_ratio=0.9, start_step=2, error_reset_every=0)
"""58 of 64 tokens in eight regional steps of ten: close to dense, and wrong rows would be visible."""

LORA_LAYERS = ("qkv.weight", "fc1.weight", "w1.weight", "to_q.weight", "linear_1.weight")


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_of_comfyui_runs(sampler, sd3):
    model, noise = sd3.build(), sd3.noise(8, 8)
    config = RASConfig(paper=PaperSettings(), start_step=2, error_reset_every=0)
    latent, trace = sample_ras(model, sd3, noise, config, sampler=sampler, steps=6)
    assert torch.isfinite(latent).all()
    assert trace.regional_steps > 0
    assert 0.5 < trace.token_share < 1.0
    plain = comfy.samplers.KSampler(model, 6, torch.device("cpu"), sampler, "simple")
    sigmas = plain.sigmas.tolist()
    assert all(each.step == step_of_sigma(sigmas, each.sigma) for each in trace.evaluations)


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_sde"])
def test_samplers_with_two_evaluations_per_step_follow_the_plan(sampler, family):
    """A network evaluation belongs to the step between whose two noise levels its sigma lies. All evaluations
    of one step have the same active tokens.
    """
    _, trace = sample_ras(family.build(), family, family.noise(), sampler=sampler)
    plan = {0: 1.0, 1: 1.0, 6: 1.0}
    sets = {}
    for evaluation in trace.evaluations:
        assert evaluation.active_share == plan.get(evaluation.step, 0.5)
        key = sets.setdefault(evaluation.step, evaluation.active.tobytes())
        assert key == evaluation.active.tobytes()
    assert len(trace.evaluations) > STEPS


class TestSchedule:
    def test_denoise_counts_steps_from_this_runs_first(self, family):
        """With denoise 0.5 and ten steps, ComfyUI's KSampler runs the last ten steps of a schedule of twenty.
        The plan counts from the first step that is run.
        """
        image = family.noise(seed=9)
        _, trace = sample_ras(family.build(), family, family.noise(), latent_image=image, denoise=0.5)
        kinds = [step.kind.value for step in trace.steps]
        assert len(kinds) == STEPS
        assert [i for i, kind in enumerate(kinds) if kind == "dense"] == [0, 1, 6]

    def test_too_few_steps_run_dense_with_a_message(self, family, caplog):
        model, noise = family.build(), family.noise()
        latent, trace = sample_ras(
            model, family, noise, RASConfig(paper=PaperSettings(), start_step=4), steps=4
        )
        assert torch.equal(latent, sample(model, family, noise, steps=4))
        assert caplog.text.count("no regional step fits") == 1
        assert "no regional step fits: the run has 4 steps, and the first 4 are dense" in trace.summary()

    def test_a_dense_run_by_request_needs_no_warning(self, family, caplog):
        _, trace = sample_ras(family.build(), family, family.noise(), RASConfig(sample_ratio=1.0))
        assert not trace.notes and "WARNING" not in caplog.text

    def test_the_gain_is_logged_before_the_run_and_the_trace_after_it(self, family, caplog):
        caplog.set_level("INFO")
        _, trace = sample_ras(family.build(), family, family.noise())
        before, after = caplog.text.index("7 of 10 steps planned as regional"), caplog.text.index("measured")
        assert before < after
        assert f"speed-up {trace.expected_speedup:.2f}x (FLOPs)" in caplog.text[before:after]

    def test_a_dense_run_by_request_never_reads_from_the_device(self, sd3, monkeypatch):
        """Reading a value from the device would make the CPU wait. A dense run needs no such read for a
        complete trace.
        """
        reads = []
        read = torch.Tensor.__float__
        monkeypatch.setattr(torch.Tensor, "__float__", lambda t: (reads.append(1), read(t))[1])
        counts = []

        def count(executor, *args, **kwargs):
            counts.append(len(reads))
            return executor(*args, **kwargs)

        for config in (RASConfig(sample_ratio=1.0), FAST):
            model, noise = sd3.build(), sd3.noise()
            model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
            counts.clear()
            _, trace = sample_ras(model, sd3, noise, config)
            assert [evaluation.step for evaluation in trace.evaluations] == list(range(STEPS))
            assert trace.evaluations[0].sigma == 1.0 and trace.evaluations[-1].sigma < 0.5
            assert (counts[-1] - counts[0] >= STEPS - 1) == (config is FAST)

    def test_a_schedule_with_repeated_levels_keeps_the_plain_sampler(self, sd3):
        """With a very low denoise, some noise levels of the schedule are equal. Then the run is dense, and
        ComfyUI's sampler is not replaced by the corrected one.
        """
        model, noise = sd3.build(), sd3.noise()
        config = RASConfig(corrections=True)
        arguments = {"steps": 28, "denoise": 0.02, "latent_image": sd3.noise(seed=9)}
        latent, trace = sample_ras(model, sd3, noise, config, **arguments)
        assert any("not strictly decreasing" in note for note in trace.notes)
        assert torch.equal(latent, sample(model, sd3, noise, **arguments))

    def test_a_schedule_of_one_value_has_nothing_to_warn_about(self, sd3, caplog):
        import comfy.sample

        patched = patch_model(sd3.build(), FAST)
        noise, euler = sd3.noise(), comfy.samplers.sampler_object("euler")
        prompts = (sd3.conditioning(1), sd3.conditioning(2))
        comfy.sample.sample_custom(
            patched, noise, 1.0, euler, torch.tensor([0.5]), *prompts, noise, disable_pbar=True, seed=0
        )
        assert "no step to run" in last_trace(patched).summary() and "WARNING" not in caplog.text

    def test_a_rising_schedule_runs_dense(self, sd3, caplog):
        import comfy.sample

        model, noise = sd3.build(), sd3.noise()
        sigmas = torch.linspace(0.1, 0.9, 8)
        euler = comfy.samplers.sampler_object("euler")
        args = (noise, 1.0, euler, sigmas, sd3.conditioning(1), sd3.conditioning(2), noise)
        patched = patch_model(model, FAST)
        inverted = comfy.sample.sample_custom(patched, *args, disable_pbar=True, seed=0)
        assert torch.equal(inverted, comfy.sample.sample_custom(model, *args, disable_pbar=True, seed=0))
        assert caplog.text.count("not strictly decreasing") == 1


class TestLoRA:
    @pytest.fixture
    def lora(self, family):
        def patches(model):
            generator = torch.Generator().manual_seed(4)
            keys = [k for k in model.model.state_dict() if k.endswith(LORA_LAYERS)]
            weights = {k: model.model.state_dict()[k] for k in keys}
            return {
                k: (0.2 * torch.randn(w.shape, generator=generator) * w.std(),) for k, w in weights.items()
            }

        return patches

    def test_before_and_after_the_patch_are_the_same(self, family, lora):
        noise = family.noise()
        before = family.build()
        before.add_patches(lora(before), 1.0)
        after = patch_model(family.build(), FAST).clone()
        after.add_patches(lora(after), 1.0)
        with_lora, trace = sample_ras(before, family, noise)
        assert trace.regional_steps == 7 and not trace.notes
        assert torch.equal(sample(after, family, noise), with_lora)
        plain, _ = sample_ras(family.build(), family, noise)
        assert distance(with_lora, plain) > 0.01

    def test_removing_it_leaves_no_trace(self, family, lora):
        model, noise = family.build(), family.noise()
        first, _ = sample_ras(model, family, noise)
        styled = model.clone()
        styled.add_patches(lora(styled), 1.0)
        sample_ras(styled, family, noise)
        unload_all_models()
        again, _ = sample_ras(model, family, noise)
        assert torch.equal(again, first)


class TestControlNet:
    @pytest.fixture
    def conditioned(self, sd3):
        """A function that makes the positive and the negative conditioning, with an SD3 ControlNet of two
        blocks (ComfyUI's class).
        """
        config = {k: v for k, v in sd3.unet_config().items() if k not in ("num_blocks", "out_channels")}
        network = comfy.cldm.mmdit.ControlNet(
            num_blocks=2, operations=comfy.ops.disable_weight_init, **config
        )
        draw_weights(network, 8)
        control = comfy.controlnet.ControlNet(network, compression_ratio=1, load_device=torch.device("cpu"))

        def make(strength=1.0, end_percent=1.0):
            hint = sd3.noise(seed=12)
            net = control.copy().set_cond_hint(hint, strength, (0.0, end_percent))
            return [
                [[context, {**extras, "control": net, "control_apply_to_uncond": False}]]
                for context, extras in (sd3.conditioning(1)[0], sd3.conditioning(2)[0])
            ]

        return make

    def test_regional_steps_get_the_active_tokens_residuals(self, sd3, conditioned):
        """If 90 % of the tokens are active, the latent must be close to that of the dense run."""
        model, noise = sd3.build(), sd3.noise()
        positive, negative = conditioned()
        dense = sample(model, sd3, noise, positive=positive, negative=negative)
        latent, trace = sample_ras(model, sd3, noise, NEARLY_ALL, positive=positive, negative=negative)
        assert trace.regional_steps == 8 and not trace.notes
        assert trace.steps[-1].active.sum() == 58
        assert distance(latent, dense) < 0.05
        uncontrolled = sample(model, sd3, noise)
        assert distance(uncontrolled, dense) > 0.1

    def test_each_token_gets_its_own_residual(self, sd3):
        """Two batch rows (prompts) have different active tokens. The ControlNet residual of token j in batch
        row i has the value 10 i + j.
        """
        residual = torch.arange(4.0)[None, :, None] + torch.tensor([0.0, 10.0])[:, None, None]
        control = {"output": [residual, None], "middle": [], "input": []}
        gathered = adapter_for(sd3.build().model.diffusion_model).gather_control(
            control, {}, torch.tensor([[1, 3], [2, 0]]), 4
        )
        assert gathered["output"][0][..., 0].tolist() == [[1, 3], [12, 10]]
        assert gathered["output"][1] is None

    def test_a_batch_with_a_controlnet_that_ends_half_way(self, sd3, conditioned):
        positive, negative = conditioned(end_percent=0.5)
        latent, trace = sample_ras(sd3.build(), sd3, sd3.noise(batch=2), positive=positive, negative=negative)
        assert trace.regional_steps == 7 and not trace.notes
        assert torch.isfinite(latent).all()

    @pytest.mark.parametrize("end_percent", [1.0, 0.5])
    def test_calls_with_residuals_are_captured(self, sd3, conditioned, end_percent):
        """The residuals have other values in each step. When the ControlNet ends during the run, later calls
        have no residuals, and need a graph of their own.
        """
        noise, model, tape = sd3.noise(), sd3.build(), FrozenTape()
        capture_on(model, tape)
        conds = dict(zip(("positive", "negative"), conditioned(end_percent=end_percent), strict=True))
        expected, _ = sample_ras(sd3.build(), sd3, noise, EAGER, **conds)
        replays = []
        for _ in range(2):
            latent, trace = sample_ras(model, sd3, noise, **conds)
            assert distance(latent, expected) < 2e-5 and not trace.notes
            replays.append(trace.graphs.replayed)
        assert tape.captured == (1 if end_percent == 1.0 else 2)
        assert replays == [7 - 2 * tape.captured, 7], (
            "of each form, the first call is eager and the second captured"
        )

    def test_residuals_of_an_unknown_form_run_dense_with_a_message(self, sd3, conditioned, caplog):
        model, noise = sd3.build(), sd3.noise()
        positive, negative = conditioned()
        net = positive[0][1]["control"]
        original = net.get_control

        def with_middle(*args, **kwargs):
            control = original(*args, **kwargs)
            return control if control is None else {**control, "middle": [torch.zeros(1)]}

        for cond in (positive, negative):
            cond[0][1]["control"].get_control = with_middle
        dense = sample(model, sd3, noise, positive=positive, negative=negative)
        latent, trace = sample_ras(model, sd3, noise, positive=positive, negative=negative)
        assert distance(latent, dense) < 1e-5
        assert trace.regional_steps == 0
        assert caplog.text.count("running dense from here") == 1


class TestConditioning:
    def test_an_area_runs_dense_with_a_message(self, family, caplog):
        model, noise = family.build(), family.noise()
        area = family.conditioning(3)
        area[0][1]["area"] = (8, 8, 4, 4)
        positive = family.conditioning(1) + area
        latent, trace = sample_ras(model, family, noise, positive=positive)
        assert torch.equal(latent, sample(model, family, noise, positive=positive))
        assert trace.regional_steps == 0
        assert caplog.text.count("area conditioning") == 1

    def test_a_prompt_frees_its_memory_when_its_range_ends(self, family):
        """Each of four positive prompts applies to a quarter of the run. K/V data are kept for at most three
        prompts at once: the previous and the current positive prompt, and the negative prompt.
        """
        prompts = []
        for i in range(4):
            prompt = family.conditioning(10 + i)
            prompt[0][1]["start_percent"], prompt[0][1]["end_percent"] = i / 4, (i + 1) / 4
            prompts += prompt
        config = RASConfig(paper=PaperSettings(), start_step=2, error_reset_every=0)
        _, trace = sample_ras(family.build(), family, family.noise(), config, positive=prompts, steps=20)
        _, one = sample_ras(family.build(), family, family.noise(), config, steps=20)
        assert trace.kv_bytes <= 2 * one.kv_bytes
        assert trace.regional_steps > 10

    def test_a_masked_prompt_runs_regional(self, family):
        masked = family.conditioning(3)
        masked[0][1]["mask"] = torch.zeros(1, 16, 16)
        masked[0][1]["mask"][:, :, 8:] = 1.0
        latent, trace = sample_ras(
            family.build(), family, family.noise(), positive=family.conditioning(1) + masked
        )
        assert trace.regional_steps == 7 and not trace.notes
        assert torch.isfinite(latent).all()

    def test_a_prompt_that_joins_half_way_runs_dense_once(self, family, caplog):
        late = family.conditioning(3)
        late[0][1]["start_percent"], late[0][1]["end_percent"] = 0.5, 1.0
        latent, trace = sample_ras(
            family.build(), family, family.noise(), positive=family.conditioning(1) + late
        )
        assert torch.isfinite(latent).all()
        assert (
            trace.regional_steps == 6
        )  # one of the seven planned ones ran dense to fill the new prompt's cache
        assert caplog.text.count("without cached data") == 1

    @pytest.mark.parametrize("inside", [1.0, 0.5])
    def test_inpainting_runs_dense_with_a_reason(self, sd3, inside, caplog):
        """Inpainting runs dense, because the cached keys and values outside the mask would become too old."""
        model, noise, image = sd3.build(), sd3.noise(), sd3.noise(seed=21)
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., 4:12, 4:12] = inside
        latent, trace = sample_ras(model, sd3, noise, latent_image=image, noise_mask=mask)
        assert trace.regional_steps == 0 and len(trace.notes) == 1 and "inpainting" in trace.notes[0]
        assert caplog.text.count("inpainting") == 1
        assert torch.equal(latent, sample(model, sd3, noise, latent_image=image, noise_mask=mask))

    def test_a_mask_of_the_whole_image_is_not_inpainting(self, family):
        image, mask = family.noise(seed=21), torch.ones(1, 1, 16, 16)
        _, trace = sample_ras(family.build(), family, family.noise(), latent_image=image, noise_mask=mask)
        assert trace.regional_steps == 7 and not trace.notes

    def test_without_guidance(self, family):
        """At cfg 1, ComfyUI evaluates only the positive prompt. RAS must work with this one prompt."""
        _, trace = sample_ras(family.build(), family, family.noise(), cfg=1.0)
        assert trace.regional_steps == 7 and not trace.notes


class TestOtherPatches:
    def test_another_attention_override_is_called_with_the_whole_cache(self, family):
        model, noise = family.build(), family.noise()
        rows = []

        def other(func, q, k, v, heads, *args, **kwargs):
            axis = 2 if kwargs.get("skip_reshape") else 1
            rows.append((q.shape[axis], k.shape[axis]))
            return func(q, k, v, heads, *args, **kwargs)

        plain, _ = sample_ras(model, family, noise)
        model.model_options["transformer_options"][ATTENTION] = other
        latent, _ = sample_ras(model, family, noise)
        assert torch.equal(latent, plain)
        assert any(q < k for q, k in rows) and max(k for _, k in rows) >= 64

    @pytest.mark.parametrize("skipped", [0, 1])
    def test_a_skipped_block(self, sd3, skipped):
        """A block is skipped, as skip-layer guidance does in its additional pass. RAS must still run regional
        steps.
        """
        model, noise = sd3.build(), sd3.noise()
        model.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", skipped)
        latent, trace = sample_ras(model, sd3, noise, NEARLY_ALL)
        assert trace.regional_steps == 8 and not trace.notes
        assert trace.steps[-1].active.sum() == 58
        assert distance(latent, sample(model, sd3, noise)) < 0.2

    def test_skip_layer_guidance_node(self, sd3):
        guided, noise = _skip_layers(sd3.build(), "1", 0.01, 0.6), sd3.noise()
        latent, trace = sample_ras(guided, sd3, noise, NEARLY_ALL)
        assert trace.regional_steps >= 6
        assert distance(latent, sample(guided, sd3, noise)) < 0.2

    @pytest.mark.parametrize("second", ["2", "1, 2"])
    def test_two_kinds_of_skip_layer_guidance_do_not_share_a_cache(self, sd3, second):
        """In the middle of the run, a second skip-layer guidance replaces the first. No cached data exist for
        the pass of the second one, so it runs dense once.
        """
        guided = _skip_layers(_skip_layers(sd3.build(), "1", 0.0, 0.45), second, 0.4501, 1.0)
        _, trace = sample_ras(guided, sd3, sd3.noise(), NEARLY_ALL)
        assert trace.notes == ("a conditioning without cached data ran dense once",)
        assert trace.regional_steps == 8

    def test_a_patch_that_expects_every_token_runs_dense_with_a_message(self, family, caplog):
        """Another pack's hook adds a tensor with a row for every token. A regional step, which computes fewer
        rows, would fail, so this is found out before.
        """
        model, noise = family.build(), family.noise()
        network = model.model.diffusion_model
        block = adapter_for(network).main_blocks(network)[1]
        handle = block.register_forward_hook(_add_full_length())
        dense = sample(model, family, noise)
        latent, trace = sample_ras(model, family, noise)
        handle.remove()
        assert torch.equal(latent, dense)
        assert trace.regional_steps == 0
        assert caplog.text.count("running dense from here") == 1
        assert "another node's hook changes rows" in trace.summary()

    def test_compiled_code_that_ignores_hooks_is_detected(self, family, caplog):
        """Compiled code does not run hooks that were added later: the run is dense, with one warning."""
        model, noise = family.build(), family.noise()
        network = model.model.diffusion_model
        for block in adapter_for(network).blocks(network):
            block.register_forward_pre_hook = lambda *args, **kwargs: _NoHandle()
        latent, trace = sample_ras(model, family, noise)
        assert distance(latent, sample(model, family, noise)) < 1e-5
        assert trace.regional_steps == 0
        assert caplog.text.count("running dense from here") == 1

    @pytest.mark.parametrize("corrections", [False, True])
    def test_lazy_cache_in_front(self, family, corrections):
        """ComfyUI's LazyCache skips whole steps, so that RAS does not see them. At the next evaluation, RAS
        continues from the last one that it saw.
        """
        from comfy_extras.nodes_easycache import LazyCacheNode

        config = RASConfig(sample_ratio=0.5, start_step=2, corrections=corrections)
        cached = LazyCacheNode.execute(patch_model(family.build(), config), 1.5, 0.15, 0.95, False)[0]
        latent = sample(cached, family, family.noise())
        trace = last_trace(cached)
        assert trace.regional_steps > 0 and len(trace.evaluations) < STEPS
        assert torch.isfinite(latent).all()

    def test_easy_cache_on_a_network_that_runs_its_wrapper(self, caplog):
        """EasyCache would store the outputs of regional calls, which lack the cached tokens. So the run is
        dense, with one warning.
        """
        from comfy_extras.nodes_easycache import EasyCacheNode

        lumina = FAMILIES["lumina2"]
        eased = EasyCacheNode.execute(lumina.build(), 0.2, 0.15, 0.95, False)[0]
        latent, trace = sample_ras(eased, lumina, lumina.noise())
        assert torch.equal(latent, sample(eased, lumina, lumina.noise()))
        assert trace.regional_steps == 0 and caplog.text.count("EasyCache") == 1

    def test_too_little_memory_runs_dense_with_a_message(self, family, caplog, monkeypatch):
        import comfy.model_management
        from ras_pack.ras_core.kv import update as kv

        def full(*args):
            raise comfy.model_management.OOM_EXCEPTION("planted")

        model, noise = family.build(), family.noise()
        for function in ("fill", "update"):
            with monkeypatch.context() as patch:
                patch.setattr(kv, function, full)
                latent, trace = sample_ras(model, family, noise)
            assert distance(latent, sample(model, family, noise)) < 1e-5
            assert trace.regional_steps == 0 and "not enough memory" in trace.summary()

    def test_a_guider_that_bypasses_comfyuis_standard_path_is_detected(self, family, caplog, monkeypatch):
        """With a guider that never calls PREDICT_NOISE, RAS has no effect and must warn."""
        monkeypatch.setattr(
            comfy.samplers.CFGGuider, "__call__",
            lambda self, x, t, model_options, seed: self.predict_noise(x, t, model_options, seed),
        )  # fmt: skip
        model, noise = family.build(), family.noise()
        latent, trace = sample_ras(model, family, noise)
        assert torch.equal(latent, sample(model, family, noise))
        assert caplog.text.count("nothing was accelerated") == 1 and trace.regional_steps == 0
        assert "this guider does not call the model through ComfyUI's standard path" in caplog.text


def _skip_layers(model, layers: str, start: float, end: float):
    """ComfyUI's own skip-layer guidance node."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    call = getattr(SkipLayerGuidanceDiT, "execute", None) or SkipLayerGuidanceDiT().skip_guidance
    return call(
        model=model, double_layers=layers, single_layers="", scale=3.0, start_percent=start, end_percent=end
    )[0]


class _NoHandle:
    def remove(self) -> None:
        pass


def _add_full_length():
    """A hook that adds the same tensor in each call. The tensor has as many rows as the first call, which is
    dense, so it does not fit a regional call.
    """
    made = []

    def hook(module, args, output):
        outputs = list(output) if isinstance(output, tuple) else [output]
        longest = max(range(len(outputs)), key=lambda i: outputs[i].shape[1])  # the image, not the text
        if not made:
            made.append(torch.full((outputs[longest].shape[1], 1), 0.01))
        outputs[longest] = outputs[longest] + made[0]
        return tuple(outputs) if isinstance(output, tuple) else outputs[0]

    return hook


def test_a_sampler_with_its_own_options_is_not_replaced(sd3):
    """Euler's s_churn adds noise, which the multirate integrator does not support."""
    import comfy.sample

    model, noise = sd3.build(), sd3.noise()
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 8)
    churning = comfy.samplers.ksampler("euler", {"s_churn": 5.0})
    prompts = (sd3.conditioning(1), sd3.conditioning(2))
    latents = {}
    for corrections in (False, True):
        patched = patch_model(model, RASConfig(sample_ratio=0.5, start_step=2, corrections=corrections))
        torch.manual_seed(0)
        latents[corrections] = comfy.sample.sample_custom(
            patched, noise, 4.0, churning, sigmas, *prompts, noise, disable_pbar=True, seed=0
        )
        assert last_trace(patched).regional_steps > 0
    assert torch.equal(latents[False], latents[True])


class OwnKSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER whose class another node pack derives from ComfyUI's class KSAMPLER."""


def sample_euler(model, x, sigmas, **others):
    """A sampler function of another node pack that has the same name as ComfyUI's function."""
    return comfy.k_diffusion.sampling.sample_euler(model, x, sigmas, **others)


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [
        (OwnKSampler(comfy.k_diffusion.sampling.sample_euler), "another pack"),
        (comfy.samplers.KSAMPLER(sample_euler), "another pack"),
        (comfy.samplers.ksampler("euler", {"s_churn": 1.0}), "has options"),
        (comfy.samplers.ksampler("heun"), "no multirate form"),
    ],
    ids=["subclass", "same name", "options", "heun"],
)
def test_only_comfyuis_own_samplers_are_replaced(sampler, reason, sd3, caplog):
    run = begin_run(
        OuterSample(sd3.noise(), sd3.noise(), sampler, torch.linspace(1, 0, 9)),
        sd3.build().model.diffusion_model, adapter_for(sd3.build().model.diffusion_model),
        RASConfig(corrections=True), None,
    )  # fmt: skip
    with caplog.at_level("INFO"):
        assert sampler_of_run(sampler, run) is sampler
    assert caplog.text.count(reason) == 1 and "not corrected" in caplog.text
    plain = comfy.samplers.ksampler("euler")
    assert sampler_of_run(plain, run).sampler_function is sample_multirate
