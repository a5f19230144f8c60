"""The multirate integrator in ComfyUI's place: dense steps are ComfyUI's own to the last bit."""

from dataclasses import replace

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.k_diffusion import sampling
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.host.speed import Speed
from ras_pack.ras_core.kv import update as kv
from ras_pack.ras_core.method.adams import LAST_WEIGHT
from ras_pack.ras_core.run.sampler import Start, integrate
from support.sampling import sample, sample_ras

CORRECTED = RASConfig(sample_ratio=0.5, start_step=2, error_reset_every=0, corrections=True)


def _area(family):
    area = family.conditioning(3)
    area[0][1]["area"] = (4, 4, 0, 0)
    return family.conditioning(1) + area


def _out_of_memory(*args):
    raise comfy.model_management.OOM_EXCEPTION("planted")


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
class TestDenseSteps:
    """Corrections replace euler and dpmpp_2m. If no step is regional after all, the result is theirs."""

    @pytest.mark.parametrize("fails", ["area", "fill", "update"])
    def test_a_run_that_turns_dense_equals_the_dense_run(self, sd3, sampler, fails, monkeypatch):
        model, noise = sd3.build(), sd3.noise(8, 8)
        prompts = {"positive": _area(sd3) if fails == "area" else sd3.conditioning(1)}
        dense = sample(model, sd3, noise, sampler=sampler, steps=6, **prompts)
        if fails != "area":
            monkeypatch.setattr(kv, fails, _out_of_memory)
        latent, trace = sample_ras(model, sd3, noise, CORRECTED, sampler=sampler, steps=6, **prompts)
        assert trace.regional_steps == 0 and len(trace.notes) == 1
        assert torch.equal(latent, dense)

    def test_the_callback_is_called_once_for_each_step(self, sd3, sampler):
        steps = []
        patched = patch_model(sd3.build(), CORRECTED)
        sample(patched, sd3, sd3.noise(8, 8), sampler=sampler, callback=lambda i, *rest: steps.append(i))
        assert steps == list(range(10)) and len(last_trace(patched).evaluations) == 10

    @pytest.mark.parametrize("settings", [CORRECTED, Speed("2x"), replace(CORRECTED, sample_ratio=1.0)])
    def test_the_console_has_one_bar_for_the_whole_run(self, sd3, sampler, settings, monkeypatch):
        bars, make = [], sampling.trange

        def made(*args, **kwargs):
            bar = make(*args, **kwargs)
            bars.extend([] if bar.disable else [bar])
            return bar

        monkeypatch.setattr(sampling, "trange", made)
        patched, family = patch_model(sd3.build(), settings), sd3
        comfy.sample.sample(
            patched, family.noise(8, 8), 28, 4.0, sampler, "simple", family.conditioning(1),
            family.conditioning(2), torch.zeros_like(family.noise(8, 8)), seed=5,
        )  # fmt: skip
        (bar,) = bars
        assert bar.n == bar.total == last_trace(patched).n_steps

    @pytest.mark.parametrize("settings", [CORRECTED, Speed("2x"), Speed("3x")])
    @pytest.mark.parametrize("end", [None, 15])
    def test_the_second_output_is_the_first_where_the_run_ends_at_zero(self, sd3, sampler, settings, end):
        """ComfyUI's samplers end at noise level 0 with the model's last estimate, the output `denoised`."""
        nodes = pytest.importorskip("comfy_extras.nodes_custom_sampler")
        patched = patch_model(sd3.build(), settings)
        simple = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 28)
        guider = nodes.Guider_Basic(patched)
        guider.set_conds(sd3.conditioning(1))
        run = getattr(nodes.SamplerCustomAdvanced, "execute", None) or nodes.SamplerCustomAdvanced().sample
        with torch.inference_mode():
            found = run(
                nodes.Noise_RandomNoise(3), guider, comfy.samplers.sampler_object(sampler), simple[:end],
                {"samples": torch.zeros_like(sd3.noise(8, 8))},
            )  # fmt: skip
        output, denoised = (each["samples"] for each in getattr(found, "result", found))
        assert last_trace(patched).regional_steps > 0
        assert torch.equal(output, denoised) is (end is None)


@pytest.mark.parametrize("levels", [[1.0, 0.75, 0.5, 0.25, 0.0], [1.0, 0.7, 0.4, 0.1]])
def test_ab2_extrapolates_the_last_step_too(levels):
    """With a velocity of 2 + 3 sigma and equal steps, every step of ab2 but the first is exact. A step to
    noise level 0 takes half of the extrapolation only.
    """
    x = torch.full((1, 1, 1, 1), 5.0, dtype=torch.float64)

    def denoised(i, x):
        return x - levels[i] * (2 + 3 * levels[i])

    found = integrate(denoised, Start.at(x, None), levels, None, "ab2", range(len(levels) - 1))
    first, last = levels[1], levels[-1]
    after_euler = 5.0 + (first - 1) * (2 + 3)
    exact = after_euler + 2 * (last - first) + 1.5 * (last**2 - first**2)
    step = last - levels[-2]
    left_out = 0.0 if last else (1 - LAST_WEIGHT) * step * (3 * step) / 2
    assert found.item() == pytest.approx(exact - left_out)
