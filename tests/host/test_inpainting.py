"""Inpainting through ComfyUI's own nodes: a speed takes fewer dense steps, and nothing else changes.

All expected results are those of ComfyUI alone, to the last bit.
"""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import comfy.samplers
import folder_paths
import pytest
import torch
from ras_pack.nodes.patch_model import RASPatchModel
from ras_pack.nodes.plans import RASScheduler
from ras_pack.nodes.sampler import RASKSampler
from ras_pack.nodes.settings import CUSTOM
from ras_pack.ras_core.host.measured_runs import simple_levels
from ras_pack.ras_core.host.patch import last_trace
from ras_pack.ras_core.host.plan_files import save_plans
from ras_pack.ras_core.host.plans import plans_for
from ras_pack.ras_core.host.run_facts import NEEDS_PLAN_SAMPLER
from ras_pack.ras_core.host.samplers import multirate_sampler
from ras_pack.ras_core.method.few_steps import AT_LEAST
from ras_pack.ras_core.method.plan import Plan
from ras_pack.ras_core.method.plan_set import PlanSet
from support.families import FAMILIES

import nodes as host_nodes

STEPS = 16
"""With 2x, 8 dense steps take their place."""
SETTINGS = {
    "sample_ratio": 0.5, "start_percent": 0.2, "end_percent": 1.0, "error_reset_every": 0,
    "cuda_graphs": "off", "kv_cache": "auto",
}  # fmt: skip
REGIONAL = PlanSet((Plan("2x", "euler", (0.7, 0.3), (1.0,) * 11 + (0.5,) * 6),))
"""Plans among which there is no plain one."""

NEARLY_ALL = PlanSet((replace(REGIONAL.plans[0], shares=(1.0,) * 7 + (0.9,) * 2, full_steps=STEPS),))
"""With these, a regional step on right rows is close to a dense one, even in a network of random weights."""


@pytest.fixture(autouse=True)
def _as_comfyui_executes_nodes(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    with torch.inference_mode():
        yield


def image(family, batch=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, family.channels, 16, 12, generator=generator)


def half(inside=1.0):
    """A mask of the right half of the image, in the form of ComfyUI's MASK."""
    mask = torch.zeros(1, 16, 12)
    mask[..., 6:] = inside
    return mask


def masked(family, mask=None, batch=1):
    """A LATENT from ComfyUI's node SetLatentNoiseMask."""
    mask = half() if mask is None else mask
    return host_nodes.SetLatentNoiseMask().set_mask({"samples": image(family, batch)}, mask)[0]


def with_ras(family, speed="2x", model=None, plan=None):
    return RASPatchModel.execute(model or family.build(), speed=speed, plan=plan, **SETTINGS).result[0]


def values(family, **changes):
    return {
        "seed": 3, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple",
        "positive": family.conditioning(1), "negative": family.conditioning(2),
        "latent_image": masked(family), "denoise": 1.0, **changes,
    }  # fmt: skip


def ksampler(model, family, **changes):
    return host_nodes.KSampler().sample(model, **values(family, **changes))[0]["samples"]


def on_levels(model, family, sigmas, solver="ab2", **changes):
    """The latent of sampling at given noise levels, with the solver of a plan for 2x; with solver=None, by
    the user's sampler.
    """
    given = values(family, **changes)
    latent = given["latent_image"]
    own = comfy.samplers.sampler_object(given["sampler_name"])
    sampler = multirate_sampler(solver) if solver else own
    noise = comfy.sample.prepare_noise(latent["samples"], given["seed"])
    return comfy.sample.sample_custom(
        model, noise, given["cfg"], sampler, sigmas, given["positive"], given["negative"], latent["samples"],
        noise_mask=latent.get("noise_mask"), seed=given["seed"],
    )  # fmt: skip


def levels_of(trace):
    return torch.tensor([*(evaluation.sigma for evaluation in trace.evaluations), 0.0])


def levels_of_plain_plan(family, model, sampler_name, given):
    plan = plans_for(model).best("2x", sampler_name, plain=True)
    return torch.tensor(plan.levels_of_part(simple_levels(model, 200), given))


def gradient_model(model):
    module = importlib.import_module("comfy_extras.nodes_differential_diffusion")
    return module.DifferentialDiffusion.execute(model).result[0]


class TestSpeed:
    @pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m"])
    @pytest.mark.parametrize("denoise", [1.0, 0.6])
    def test_it_is_plain_sampling_on_the_plans_grid(self, sd3, sampler_name, denoise):
        changes = {"sampler_name": sampler_name, "denoise": denoise}
        plain, model = sd3.build(), with_ras(sd3)
        found = ksampler(model, sd3, **changes)
        trace = last_trace(model)
        assert (trace.n_steps, trace.regional_steps, trace.notes) == (8, 0, ())
        own = comfy.samplers.KSampler(
            plain, STEPS, torch.device("cpu"), sampler_name, "simple", denoise
        ).sigmas
        wanted = levels_of_plain_plan(sd3, plain, sampler_name, own.tolist())
        assert torch.equal(found, on_levels(plain, sd3, wanted, **changes))
        assert torch.allclose(found[..., :6], image(sd3)[..., :6], atol=1e-6)
        inputs = {"speed": "2x", "plan": None, **SETTINGS, **values(sd3, **changes)}
        latent, _ = RASKSampler.execute(model=sd3.build(), **inputs).result
        assert torch.equal(latent["samples"], found)

    def test_at_least_five_steps(self, sd3):
        model = with_ras(sd3, "3x")
        ksampler(model, sd3, steps=12)
        assert (last_trace(model).n_steps, last_trace(model).shortfall) == (5, AT_LEAST)

    def test_every_family_and_speed(self, family):
        for speed, steps in (("1.5x", 11), ("3x", 5)):
            model = with_ras(family, speed)
            ksampler(model, family, steps=STEPS)
            assert (last_trace(model).n_steps, last_trace(model).regional_steps) == (steps, 0)

    @pytest.mark.parametrize(
        ("name", "rows", "denoise", "is_even"),
        [
            ("lumina2", 2, 1.0, True),
            ("lumina2", 2, 0.6, False),
            ("lumina2", 8, 1.0, False),
            ("sd3", 2, 1.0, False),
        ],
    )
    def test_only_some_families_take_evenly_spaced_steps_in_a_small_mask(
        self, name, rows, denoise, is_even, info
    ):  # fmt: skip
        """Where the plan's noise levels are worse: measured in bench/results/2026-11-27-h200/inpaint."""
        family = FAMILIES[name]
        mask = half()
        mask[:, rows:] = 0
        model = with_ras(family)
        changes = {"latent_image": masked(family, mask), "denoise": denoise}
        found = ksampler(model, family, **changes)
        levels = levels_of(last_trace(model))
        own = comfy.samplers.KSampler(
            family.build(), 8, torch.device("cpu"), "euler", "simple", denoise
        ).sigmas
        assert torch.allclose(levels, own, atol=0.02) == is_even
        assert ("evenly spaced steps" in info.text) == is_even
        assert torch.equal(found, on_levels(family.build(), family, levels, **changes))

    def test_the_log_and_the_panel_say_what_was_taken(self, sd3, info):
        model = with_ras(sd3)
        ksampler(model, sd3)
        line = "2x: 8 steps instead of 16, all dense (inpainting)"
        assert last_trace(model).plan == line
        origin = "sampler ab2 in place of euler, noise levels of the SD3 family"
        assert f"Multirate RAS: {line[:-1]}; {origin})." in info.text
        assert not [record for record in info.records if record.levelname == "WARNING"]

    def test_plans_without_a_plain_one_lend_their_grid(self, sd3, info):
        model = with_ras(sd3, plan=REGIONAL)
        found = ksampler(model, sd3)
        trace = last_trace(model)
        assert (trace.n_steps, trace.regional_steps) == (8, 0)
        assert torch.equal(found, on_levels(sd3.build(), sd3, levels_of(trace)))
        even = torch.tensor(simple_levels(model, 8))
        assert levels_of(trace)[3] > even[3] + 0.05  # more steps at the start, as the plan has them

    def test_saved_plans_are_used(self, sd3):
        model = sd3.build()
        shares = (1.0,) * 16  # of 28
        save_plans(PlanSet((Plan("2x", "euler", (0.5, 0.5), shares), *REGIONAL.plans)), model, (16, 12))
        patched = with_ras(sd3, model=model)
        ksampler(patched, sd3)
        assert (last_trace(patched).n_steps, last_trace(patched).regional_steps) == (9, 0)

    @pytest.mark.parametrize("sampler_name", ["lms", "euler_ancestral", "heun"])
    def test_a_sampler_whose_levels_must_stay_runs_dense_with_both_reasons(self, sd3, info, sampler_name):
        model = with_ras(sd3)
        found = ksampler(model, sd3, steps=9, sampler_name=sampler_name)
        trace = last_trace(model)
        assert (trace.n_steps, trace.plan) == (9, "2x: 9 of 9 steps, all dense")
        assert len(trace.notes) == 1 and "inpainting" in trace.notes[0]
        assert f"the noise levels are kept: {NEEDS_PLAN_SAMPLER}" in info.text
        assert torch.equal(found, ksampler(sd3.build(), sd3, steps=9, sampler_name=sampler_name))

    @pytest.mark.parametrize(
        ("sigmas", "reason"),
        [
            ((14.6, 9.0, 6.0, 4.0, 2.0, 1.5, 1.0, 0.7, 0.5, 0.0), "outside the range of the model's own"),
            ((1.0, 0.7, 0.7, 0.5, 0.2, 0.0), "not strictly decreasing"),
        ],
    )
    def test_levels_of_another_kind_stay(self, sd3, info, sigmas, reason):
        sigmas, model = torch.tensor(sigmas), with_ras(sd3)
        found = on_levels(model, sd3, sigmas, solver=None)
        trace = last_trace(model)
        assert trace.n_steps == len(sigmas) - 1 and len(trace.notes) == 1 and reason in info.text
        assert torch.equal(found, on_levels(sd3.build(), sd3, sigmas, solver=None))

    @pytest.mark.parametrize("plan", [None, REGIONAL], ids=["family", "regional"])
    def test_levels_of_ras_scheduler_are_not_shortened_again(self, sd3, plan):
        model = with_ras(sd3, plan=plan)
        sigmas = RASScheduler.execute(model, "2x", STEPS, 1.0, "euler", plan).result[0]
        found = on_levels(model, sd3, sigmas, solver=None)
        steps = len(sigmas) - 1  # the made levels are kept
        trace = last_trace(model)
        assert trace.plan == f"2x: {steps} steps instead of 16, all dense (inpainting)"
        assert (trace.n_steps, trace.regional_steps) == (steps, 0)
        assert torch.equal(found, on_levels(sd3.build(), sd3, sigmas))

    @pytest.mark.parametrize(("whole", "solver"), [(18, "ab2"), (14, "euler")])
    def test_a_part_of_the_levels_of_ras_scheduler(self, sd3, whole, solver, info):
        """Which method integrates the part depends on the steps of the whole run. Half of the plan's steps
        are in the first tenth of the `simple` schedule, so by that schedule, the run would have many more.
        """
        model = with_ras(sd3)
        made = RASScheduler.execute(model, "2x", whole, 1.0, "euler").result[0]
        first, last = made[: len(made) // 2 + 1], made[len(made) // 2 :]
        for part in (first, last):
            info.clear()
            found = on_levels(model, sd3, part, solver=None)
            assert (f"sampler {solver} in place of euler" in info.text) == (solver == "ab2")
            own = None if solver == "euler" else solver  # the user's sampler is euler
            assert torch.equal(found, on_levels(sd3.build(), sd3, part, solver=own))

    def test_parts_of_a_schedule(self, sd3):
        """Both halves of a run as KSamplerAdvanced makes them, the second on the latent of the first."""
        model, node = with_ras(sd3), host_nodes.KSamplerAdvanced()
        given = values(sd3)
        latent, seed = given.pop("latent_image"), given.pop("seed")
        given.pop("denoise")
        steps = []
        for start, end in ((0, 8), (8, STEPS)):
            latent = node.sample(
                model, add_noise="disable" if start else "enable", noise_seed=seed, latent_image=latent,
                start_at_step=start, end_at_step=end, **given,
                return_with_leftover_noise="disable" if start else "enable",
            )[0]  # fmt: skip
            steps.append((last_trace(model).n_steps, last_trace(model).regional_steps))
        assert steps == [(4, 0), (4, 0)] and torch.isfinite(latent["samples"]).all()


class TestMasks:
    @pytest.mark.parametrize(
        "mask",
        [
            half(0.5),
            half()[:, ::2, ::2],
            torch.zeros(1, 16, 12),
            torch.stack([half()[0], 1 - half()[0]]),
            torch.full((1, 16, 12), torch.nan),
        ],
        ids=["soft", "another size", "empty", "one for each image", "not a number"],
    )
    def test_any_mask_gives_the_result_of_comfyui(self, sd3, mask):
        latent, model = masked(sd3, mask, batch=len(mask)), with_ras(sd3)
        found = ksampler(model, sd3, latent_image=latent)
        trace = last_trace(model)
        assert (trace.n_steps, trace.regional_steps) == (8, 0)
        plain = on_levels(sd3.build(), sd3, levels_of(trace), latent_image=latent)
        assert torch.equal(found.nan_to_num(), plain.nan_to_num())

    @pytest.mark.parametrize("denoise", [1.0, 0.6])
    def test_differential_diffusion(self, sd3, denoise):
        mask = torch.linspace(0, 1, 12).expand(1, 16, 12).clone()
        changes = {"latent_image": masked(sd3, mask), "denoise": denoise}
        model = gradient_model(with_ras(sd3))
        found = ksampler(model, sd3, **changes)
        trace = last_trace(model)
        assert (trace.n_steps, trace.regional_steps) == (8, 0)
        plain = gradient_model(sd3.build())
        assert torch.equal(found, on_levels(plain, sd3, levels_of(trace), **changes))

    @pytest.mark.parametrize("speed", ["2x", CUSTOM])
    def test_a_function_that_narrows_a_full_mask_is_inpainting_too(self, sd3, speed):
        """A function of another pack gives each evaluation its mask. The mask of the latent itself is full,
        so it does not show that a half of the image is given.
        """

        def narrowed(sigma, mask, extra_options):
            return mask * half().to(mask)

        def own(model):
            model = model.clone()
            model.set_model_denoise_mask_function(narrowed)
            return model

        latent = masked(sd3, torch.ones(1, 16, 12))
        model = own(with_ras(sd3, speed))
        found = ksampler(model, sd3, latent_image=latent)
        trace = last_trace(model)
        assert trace.regional_steps == 0
        assert len(trace.notes) == (speed == CUSTOM)
        plain, solver = own(sd3.build()), "ab2" if speed == "2x" else None
        assert torch.equal(found, on_levels(plain, sd3, levels_of(trace), solver, latent_image=latent))

    def test_a_full_mask_keeps_regional_steps(self, sd3):
        model = with_ras(sd3, plan=REGIONAL)
        ksampler(model, sd3, latent_image=masked(sd3, torch.ones(1, 16, 12)))
        assert last_trace(model).regional_steps == 3

    @pytest.mark.parametrize("noise_mask", [True, False])
    @pytest.mark.parametrize("name", ["sd3", "flux_fill"])
    def test_inpaint_model_conditioning(self, name, noise_mask):
        """Without `noise_mask`, ComfyUI samples the whole image; a network such as Flux Fill then reads the
        given part from its inputs.
        """
        family = FAMILIES[name]
        vae = SimpleNamespace(encode=lambda pixels: image(family))
        pixels = torch.rand(1, 128, 96, 3, generator=torch.Generator().manual_seed(4))
        positive, negative, latent = host_nodes.InpaintModelConditioning().encode(
            family.conditioning(1), family.conditioning(2), pixels, vae, half(), noise_mask
        )
        changes = {"positive": positive, "negative": negative, "latent_image": latent}
        model = with_ras(family, plan=NEARLY_ALL)
        found = ksampler(model, family, **changes)
        trace = last_trace(model)
        dense = on_levels(family.build(), family, levels_of(trace), **changes)
        if noise_mask:
            assert (trace.n_steps, trace.regional_steps) == (8, 0) and torch.equal(found, dense)
        else:
            assert (trace.n_steps, trace.regional_steps, trace.notes) == (9, 2, ())
            assert (found - dense).norm() < 0.2 * dense.norm()
