"""Details of runs with other nodes of a workflow: messages, schedules, captured calls, replaced samplers.

The outcomes of runs with these nodes are in the compatibility table (tests/compatibility).
"""

import comfy.cldm.mmdit
import comfy.controlnet
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.host.outer_sample import OuterSample, begin_run
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.host.samplers import sample_multirate, sampler_of_run
from ras_pack.ras_core.models import adapter_for
from support.families import draw_weights
from support.sampling import FAST, STEPS, distance, sample, sample_ras
from support.tape import FrozenTape, capture_on

EAGER = RASConfig(**{**vars(FAST), "cuda_graphs": "off"})
NEARLY_ALL = RASConfig(paper=PaperSettings(), sample_ratio=0.9, start_step=2, error_reset_every=0)
"""58 of 64 tokens in eight regional steps of ten: close to dense, and wrong rows would be visible."""


class TestSchedule:
    def test_too_few_steps_run_dense_with_a_message(self, family, caplog):
        model, noise = family.build(), family.noise()
        latent, trace = sample_ras(
            model, family, noise, RASConfig(paper=PaperSettings(), start_step=4), steps=4
        )
        assert torch.equal(latent, sample(model, family, noise, steps=4))
        assert caplog.text.count("no regional step fits") == 1
        assert "no regional step fits: the run has 4 steps, and the first 4 are dense" in trace.summary()

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

    def test_a_schedule_of_one_value_has_nothing_to_warn_about(self, sd3, caplog):
        import comfy.sample

        patched = patch_model(sd3.build(), FAST)
        noise, euler = sd3.noise(), comfy.samplers.sampler_object("euler")
        prompts = (sd3.conditioning(1), sd3.conditioning(2))
        comfy.sample.sample_custom(
            patched, noise, 1.0, euler, torch.tensor([0.5]), *prompts, noise, disable_pbar=True, seed=0
        )
        assert "no step to run" in last_trace(patched).summary() and "WARNING" not in caplog.text


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


class TestOtherPatches:
    @pytest.mark.parametrize("second", ["2", "1, 2"])
    def test_two_kinds_of_skip_layer_guidance_do_not_share_a_cache(self, sd3, second):
        """In the middle of the run, a second skip-layer guidance replaces the first. No cached data exist for
        the pass of the second one, so it runs dense once.
        """
        guided = _skip_layers(_skip_layers(sd3.build(), "1", 0.0, 0.45), second, 0.4501, 1.0)
        _, trace = sample_ras(guided, sd3, sd3.noise(), NEARLY_ALL)
        assert trace.notes == ("a conditioning without cached data ran dense once",)
        assert trace.regional_steps == 8


def _skip_layers(model, layers: str, start: float, end: float):
    """ComfyUI's own skip-layer guidance node."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    call = getattr(SkipLayerGuidanceDiT, "execute", None) or SkipLayerGuidanceDiT().skip_guidance
    return call(
        model=model, double_layers=layers, single_layers="", scale=3.0, start_percent=start, end_percent=end
    )[0]


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
        (comfy.samplers.ksampler("euler", {"s_churn": 1.0}), "with the options of this sampler"),
        (comfy.samplers.ksampler("heun"), "only possible with the samplers euler and dpmpp_2m"),
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
