"""A trace belongs to the latent that it came with, and its numbers are the same wherever they are shown."""

import re
from dataclasses import replace

import comfy.model_management
import comfy.sample
import comfy.samplers
import numpy as np
import pytest
import torch
from ras_pack.nodes import compare, live
from ras_pack.nodes.live import end_message
from ras_pack.nodes.mask_preview import RASMaskPreview
from ras_pack.nodes.trace import RASTrace
from ras_pack.ras_core.config import RASConfig, Window
from ras_pack.ras_core.host import traces
from ras_pack.ras_core.host.outer_sample import CustomSettings
from ras_pack.ras_core.host.patch import NO_RUN, OTHER_LATENT, last_trace, patch_model
from ras_pack.ras_core.host.speed import Speed
from ras_pack.ras_core.method.family_plans import family_plans
from ras_pack.ras_core.method.plan_set import PlanSet
from ras_pack.ras_core.method.shares import percent
from ras_pack.ras_core.render import comparison, frames, masks
from support.sampling import FAST, STEPS, sample


@pytest.fixture
def patched(sd3):
    return patch_model(sd3.build(), FAST)


def trace_of(model, samples, **others):
    latent = {"samples": samples, **others}
    with torch.inference_mode():
        passed, trace = RASTrace.execute(model, latent).args
    assert passed is latent
    return trace


class TestWhoseTrace:
    def test_two_passes_of_one_model(self, sd3, patched):
        """Two samplers in a row, the second with denoise below 1, as in workflows that add details."""
        first = sample(patched, sd3, sd3.noise())
        second = sample(patched, sd3, sd3.noise(), latent_image=first, denoise=0.5, steps=6)
        assert trace_of(patched, first).n_steps == STEPS and trace_of(patched, second).n_steps == 6

    def test_a_list_of_latents(self, sd3, patched):
        """ComfyUI samples all latents of a list before it executes the next node for each of them."""
        made = [sample(patched, sd3, sd3.noise(16, 8 * i), steps=3 + i) for i in (1, 2, 3)]
        for i, latent in enumerate(made, start=1):
            trace = trace_of(patched, latent.clone())
            assert (trace.n_steps, trace.grid.size) == (3 + i, (16, 8 * i))

    def test_the_denoised_output_of_a_custom_sampler(self, sd3, patched):
        """SamplerCustomAdvanced has two outputs; both come from one run."""
        from comfy_extras import nodes_custom_sampler as nodes

        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(sd3.conditioning(1), sd3.conditioning(2))
        guider.set_cfg(4.0)
        sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 8)[:6]
        noise, sampler = nodes.Noise_RandomNoise(3), comfy.samplers.sampler_object("heun")
        image = {"samples": torch.ones(1, 16, 16, 16)}
        execute = (
            getattr(nodes.SamplerCustomAdvanced, "execute", None) or nodes.SamplerCustomAdvanced().sample
        )
        with torch.inference_mode():
            made = execute(noise, guider, sampler, sigmas, image)
        made, denoised = getattr(made, "args", made)
        assert not torch.equal(made["samples"], denoised["samples"])
        assert trace_of(patched, **made) is trace_of(patched, **denoised) is last_trace(patched)

    def test_another_models_latent(self, sd3, patched, caplog):
        sample(patched, sd3, sd3.noise())
        other = sample(sd3.build(), sd3, sd3.noise())
        trace = trace_of(patched, other)
        assert trace.notes == (OTHER_LATENT,) and not trace.evaluations
        assert caplog.text.count("no trace") == 1
        frames, summary = RASMaskPreview.execute(trace, torch.rand(1, 64, 64, 3)).args
        assert summary.shape == (1, 720, 1080, 3) and len(frames) == 1

    @pytest.mark.parametrize(
        "change",
        [lambda x: x + 1e-6, lambda x: x[..., :-2], lambda x: x.repeat(2, 1, 1, 1), lambda x: x.flip(2)],
    )
    def test_a_latent_that_another_node_changed(self, sd3, patched, change):
        assert trace_of(patched, change(sample(patched, sd3, sd3.noise()))).notes == (OTHER_LATENT,)

    def test_no_step_to_run(self, sd3, patched):
        """With denoise 0, KSampler returns its input latent. The node says so and lets the image pass."""
        image = sd3.noise(seed=9)
        latent = sample(patched, sd3, sd3.noise(), latent_image=image, denoise=0.0)
        assert torch.equal(latent, image) and trace_of(patched, latent).notes == (NO_RUN,)
        sample(patched, sd3, sd3.noise())
        assert trace_of(patched, latent).notes == (OTHER_LATENT,)

    @pytest.mark.parametrize(
        "latent", [None, [], "none", np.zeros(4), torch.zeros(0), torch.ones(2, 2).to_sparse()]
    )
    def test_a_latent_of_an_odd_kind(self, sd3, patched, latent):
        sample(patched, sd3, sd3.noise(8, 8), steps=3)
        assert trace_of(patched, latent).notes == (OTHER_LATENT,)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_comfyui_may_convert_the_latent(self, sd3, patched, dtype, monkeypatch):
        monkeypatch.setattr(comfy.model_management, "intermediate_dtype", lambda: dtype, raising=False)
        latent = sample(patched, sd3, sd3.noise()).to(dtype)
        assert trace_of(patched, latent) is last_trace(patched)

    def test_old_traces_are_dropped(self, sd3, patched, monkeypatch):
        monkeypatch.setattr(traces, "KEPT_BYTES", 1)
        first, second = (sample(patched, sd3, sd3.noise(seed=i), steps=4) for i in (1, 2))
        assert trace_of(patched, first).notes == (OTHER_LATENT,)
        assert trace_of(patched, second).n_steps == 4

    def test_a_failed_run_leaves_the_traces_as_they_are(self, sd3, patched):
        latent = sample(patched, sd3, sd3.noise())

        def fail(*args):
            raise RuntimeError("planted")

        with pytest.raises(RuntimeError, match="planted"):
            sample(patched, sd3, sd3.noise(), callback=fail)
        assert trace_of(patched, latent) is last_trace(patched)


class TestNumbers:
    """Every place that shows a run's numbers shows the same ones."""

    def _texts(self, trace, monkeypatch) -> list[str]:
        """All that the summary image says."""
        drawn = []
        draw = masks.ImageDraw.ImageDraw.text
        monkeypatch.setattr(
            masks.ImageDraw.ImageDraw,
            "text",
            lambda own, at, text, **k: (drawn.append(text), draw(own, at, text, **k)),
        )
        masks.summary_image(trace)
        return drawn

    @pytest.mark.parametrize("sampler", ["euler", "heun"])
    def test_log_summary_panel_and_frames_agree(self, sd3, sampler, monkeypatch):
        model = patch_model(sd3.build(), FAST)
        latent = sample(model, sd3, sd3.noise(), sampler=sampler)
        trace = trace_of(model, latent)
        log, stats, panel = trace.summary(), trace.as_dict(), end_message(trace)
        headline, subline, *_ = self._texts(trace, monkeypatch)
        assert headline in log and subline.split(";")[0] in log
        assert log.count(f"{stats['regional_steps']} of {stats['steps']} steps regional") == 1
        assert f"{percent(stats['token_share'])} of tokens" in log
        assert f"{stats['expected_speedup']:.2f}x" in log
        assert f"measured {stats['measured_speedup']:.2f}x" in log
        assert (panel["regional_steps"], panel["steps"]) == (stats["regional_steps"], stats["steps"])
        assert panel["share"] == round(stats["token_share"], 4)
        assert panel["speedup"] == stats["measured_speedup"]
        assert len(panel["timeline"]) == stats["steps"] == len(frames.mask_frames(trace))
        assert ("evaluations" in log) == (sampler == "heun")

    def test_graphs_are_counted_in_the_unit_that_is_meant(self, sd3):
        from ras_pack.ras_core.graphs.eligibility import GraphReport

        model = patch_model(sd3.build(), FAST)
        sample(model, sd3, sd3.noise(), sampler="heun")
        trace = replace(last_trace(model), graphs=GraphReport(captured=1, replayed=5))
        regional = trace.regional_evaluations
        assert regional > trace.regional_steps
        assert f"5 of {regional} regional evaluations replayed as CUDA graphs" in trace.summary()

    @pytest.mark.parametrize(("speed", "steps"), [("custom", 8), ("2x", 16), ("2x", 20)])
    def test_compare_states_one_speed_up(self, sd3, speed, steps, monkeypatch, caplog):
        class Vae:
            def decode(self, samples):
                return samples[:, :3].movedim(1, -1).sigmoid()

        for name in ("is_disturbed", "is_implausible"):
            monkeypatch.setattr(f"ras_pack.ras_core.run.trace.{name}", lambda *given: False)
        monkeypatch.setattr(compare, "checked", lambda ras, fewer: ras)
        lines = []
        draw = comparison.ImageDraw.ImageDraw.text
        monkeypatch.setattr(
            comparison.ImageDraw.ImageDraw,
            "text",
            lambda own, at, text, **k: (lines.append(text), draw(own, at, text, **k)),
        )
        caplog.set_level("INFO")
        with torch.inference_mode():
            result = compare.RASCompare.execute(
                Vae(), model=sd3.build(), speed=speed, plan=None, seed=3, steps=steps, cfg=4.0,
                sampler_name="euler", scheduler="simple", positive=sd3.conditioning(1),
                negative=sd3.conditioning(2), latent_image={"samples": torch.zeros(1, 16, 16, 16)},
                denoise=1.0, sample_ratio=0.25, start_percent=0.3, end_percent=1.0, error_reset_every=0,
            )  # fmt: skip
        (stats,) = result.ui["ras"]
        begin, log = [line for line in caplog.messages if f"over {steps} dense steps" in line]
        assert f"expected speed-up {stats['expected_speedup']:.2f}x (FLOPs)" in begin
        shown = [line for line in [*lines, log] if "measured" in line or "faster" in line]
        shown = [
            line for line in shown if not re.match(r"fewer steps: \d+ steps on the measured grid ", line)
        ]
        found = [re.search(r"measured (\d+\.\d\d)x|^(\d+\.\d\d)x faster", line) for line in shown]
        assert {each[1] or each[2] for each in found} == {f"{stats['measured_speedup']:.2f}"}
        assert len(found) == 3  # headline, the summary, the log
        expected = {each for line in shown for each in re.findall(r"expected (\d+\.\d\d)x", line)}
        assert expected == {f"{stats['expected_speedup']:.2f}"}

    def test_a_run_without_ras_says_nothing_of_speed(self, sd3, monkeypatch):
        model = patch_model(sd3.build(), RASConfig(sample_ratio=1.0))
        sample(model, sd3, sd3.noise())
        trace = last_trace(model)
        assert "speed-up" not in trace.summary() + "".join(self._texts(trace, monkeypatch))
        assert trace.summary().endswith("0 of 10 steps regional, 100 % of tokens processed")

    def test_the_log_says_each_fact_of_a_plan_once(self, sd3):
        """It repeats the numbers of steps and tokens only if they differ from those of the plan."""
        model = patch_model(sd3.build(), FAST)
        sample(model, sd3, sd3.noise())
        trace = replace(last_trace(model), asked_steps=20)
        share = percent(trace.token_share)
        trace = replace(trace, plan=f"2x: 10 steps instead of 20, 3 dense, {share} of tokens")
        assert trace.summary().startswith(f"Multirate RAS: {trace.plan}; speed-up expected ")
        other = replace(trace, plan=trace.plan.replace("3 dense", "2 dense"))
        assert f"; 7 of 10 steps regional, {share} of tokens processed, speed-up " in other.summary()


class TestReason:
    """The live view says why nothing, or less than planned, was accelerated."""

    def _end(self, sd3, settings, steps: int, sampler: str = "euler") -> dict:
        model = patch_model(sd3.build(), settings)
        sample(model, sd3, sd3.noise(8, 8), sampler=sampler, steps=steps)
        assert last_trace(model).as_dict()["reason"] == last_trace(model).reason
        return end_message(last_trace(model))

    def test_as_planned(self, sd3, monkeypatch):
        monkeypatch.setattr(live, "SMALL", 0)  # times of so small an image are no measure
        end = self._end(sd3, FAST, steps=10)
        assert (end["accelerated"], end["reason"]) == (True, "")
        plain = PlanSet((family_plans(None).best("2x", "euler", plain=True),))
        end = self._end(sd3, Speed("2x", plain), steps=10)  # fewer steps, all dense
        assert (end["accelerated"], end["reason"], end["regional_steps"]) == (True, "", 0)

    def test_a_small_image_gains_less_than_its_flops(self, sd3, monkeypatch):
        model = patch_model(sd3.build(), FAST)
        sample(model, sd3, sd3.noise())
        trace = replace(last_trace(model), is_comparison_disturbed=False)
        for name in ("is_disturbed", "is_implausible"):
            monkeypatch.setattr(f"ras_pack.ras_core.run.trace.{name}", lambda *given: False)
        expected = trace.expected_gain
        for share, reason in ((0.5, live.SMALL_IMAGE), (0.9, ""), (1.2, "")):
            told = replace(trace, measured_speedup=share * expected)
            assert end_message(told)["reason"] == reason and told.reason == ""
        monkeypatch.setattr(live, "SMALL", trace.grid.n - 1)
        assert end_message(replace(trace, measured_speedup=0.5 * expected))["reason"] == ""

    def test_too_few_steps_for_a_regional_one(self, sd3):
        end = self._end(sd3, CustomSettings(RASConfig(sample_ratio=0.5), Window()), steps=2)
        assert not end["accelerated"] and end["reason"].startswith("no regional step fits")

    def test_a_speed_with_few_steps(self, sd3):
        end = self._end(sd3, Speed("3x"), steps=8)
        assert not end["accelerated"] and "nothing to gain in 8 or fewer steps" in end["reason"]

    def test_a_speed_that_the_steps_cannot_reach(self, sd3):
        end = self._end(sd3, Speed("3x"), steps=24, sampler="lms")
        assert "is all that 24 steps can reach" in end["reason"]
        assert "the noise levels are kept" in end["reason"]


def test_a_dense_run_by_request_has_nothing_to_explain(sd3):
    model = patch_model(sd3.build(), RASConfig(sample_ratio=1.0))
    sample(model, sd3, sd3.noise(8, 8), sampler="heun", steps=4)
    trace = last_trace(model)
    assert (trace.n_steps, trace.regional_steps, trace.notes) == (4, 0, ())
    assert [step.step for step in trace.steps] == [0, 1, 2, 3]
