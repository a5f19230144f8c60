"""Calibration of tiny models with ComfyUI's own sampling, and its use by the nodes."""

import importlib
import itertools
import json
import os
import shutil

import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from ras_pack.nodes.plans import RASCalibrate, RASScheduler
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.host import calibration
from ras_pack.ras_core.host import plans as plans_module
from ras_pack.ras_core.host.fingerprint import fingerprint
from ras_pack.ras_core.host.measured_runs import (
    ReplayedStart,
    Task,
    block_costs,
    block_evaluations,
    closeness,
    rms,
)
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.host.plan_files import plans_folder, saved_plans
from ras_pack.ras_core.host.planned_model import has_ras
from ras_pack.ras_core.host.plans import OTHER_MODEL, levels_of, plans_for
from ras_pack.ras_core.host.speed import Speed
from ras_pack.ras_core.method.family_plans import family_plans
from ras_pack.ras_core.method.plan import PLAN_SPEEDS, Plan
from ras_pack.ras_core.method.plan_set import ELSEWHERE, HERE, MARGIN, PlanSet
from ras_pack.ras_core.method.sigma_grid import check_schedule
from ras_pack.ras_core.render.fronts import front, front_image
from support.families import FAMILIES
from support.sampling import sample

SIZE = (16, 12)
SAMPLERS = ("euler", "dpmpp_2m")


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def _as_comfyui_executes_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture
def short(monkeypatch):
    """Make calibration short."""
    _shorten(monkeypatch)


def _shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps on the fine grid, fewer blocks, and only the speed 3x."""
    for name, value in (("FINE_STEPS", 8), ("BLOCKS", 4), ("REFERENCE_STEPS", 12), ("PLAN_SPEEDS", ("3x",))):
        monkeypatch.setattr(calibration, name, value)


def latent(batch: int = 1) -> torch.Tensor:
    return torch.zeros(batch, 16, *SIZE)


def task(family, model=None, seeds: int = 1) -> Task:
    conditionings = (family.conditioning(1), family.conditioning(2))
    return Task.of(model or family.build(), conditionings, latent(), 4.0, seeds)


def calibrate(family, model, seeds: int = 1) -> PlanSet:
    conditionings = (family.conditioning(1), family.conditioning(2))
    return calibration.calibrate(model, conditionings, latent(), 4.0, seeds)


@pytest.fixture(scope="module")
def calibrated_once(tmp_path_factory):
    """The plans of a tiny SD3, and a user's folder in which they are saved."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patches, torch.inference_mode():
        patches.setattr(folder_paths, "user_directory", str(folder))
        _shorten(patches)
        return calibrate(FAMILIES["sd3"], FAMILIES["sd3"].build()), folder


@pytest.fixture
def calibrated(sd3, short, user_folder, calibrated_once):
    """A tiny SD3 and its plans, which are also saved in the user's folder."""
    plans, folder = calibrated_once
    shutil.copytree(folder, user_folder, dirs_exist_ok=True)
    return sd3.build(), plans


class TestBlocks:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_a_replayed_start_is_exact(self, sd3, sampler):
        """Calibration computes the common start of its runs once. The costs that it measures for the blocks
        of steps are bit-identical to those from whole runs.
        """
        measured, levels, expected = task(sd3), task(sd3).levels(8), []
        plain = comfy.samplers.sampler_object(sampler)
        reference = measured.sample(plain, levels)
        for block in range(4):
            skipping = (*levels[: 2 * block + 1], *levels[2 * block + 2 :])
            expected.append(rms(measured.sample(plain, skipping) - reference))
        assert block_costs(measured, sampler, levels, 4) == tuple(expected)
        assert min(expected) > 0

    def test_a_replayed_start_costs_no_evaluation(self, sd3):
        steps = []
        block_costs(task(sd3), "euler", task(sd3).levels(8), 4, steps.append)
        # The fine run, then the steps after each block of two.
        assert len(steps) == 8 + 6 + 4 + 2 + 0 == block_evaluations(8, 4)

    def test_a_replay_answers_the_samplers_queries_to_the_model(self, sd3):
        replay = ReplayedStart("euler")
        task(sd3).sample(replay.sampler(), (1.0, 0.5, 0.0))
        assert len(replay.estimates) == 2
        assert replay.inner_model is replay._model.inner_model

    def test_closeness_is_signal_over_error(self):
        reference = torch.tensor([3.0, -3.0]).view(1, 1, 1, 2)
        # Variance 9, squared error 0.09: a ratio of 100.
        assert closeness(reference + 0.3, reference) == pytest.approx((20,), abs=1e-4)

    def test_every_seed_is_the_one_of_a_single_run(self, sd3):
        both, one = task(sd3, seeds=2).noise, task(sd3).noise
        assert torch.equal(both[:1], one) and not torch.equal(both[1:], one)


class TestCalibration:
    @pytest.mark.parametrize("name", ["sd3", "lumina2"])
    def test_plans_of_each_kind(self, name, short):
        family = FAMILIES[name]
        plans = calibrate(family, family.build())
        assert [plan.speed for plan in plans.chosen()] == ["3x"]
        assert all(np.isfinite(plan.closeness) for plan in plans.plans)
        assert {plan.sampler for plan in plans.plans} == set(SAMPLERS)
        assert {plan.is_plain for plan in plans.plans} == {True, False}
        assert any(plan.has_even_grid for plan in plans.plans)
        assert plans.note == "calibrated on this model at 96x128, 1 seed, cfg 4"

    def test_all_plans_of_a_speed_cost_the_same(self, calibrated):
        for plan in calibrated[1].plans:
            (plain,) = {p.speedup for p in calibrated[1].plans if p.is_plain and p.speed == plan.speed}
            assert plan.speedup == pytest.approx(plain, rel=0.02)  # of 48 tokens

    def test_no_plan_is_clearly_worse_than_plain_sampling(self, calibrated):
        plans = calibrated[1]
        assert plans.best("3x").closeness >= plans.best("3x", plain=True).closeness - MARGIN

    def test_the_progress_bar_reaches_its_announced_total(self, sd3, short, monkeypatch):
        seen = []
        monkeypatch.setattr(
            comfy.utils,
            "PROGRESS_BAR_HOOK",
            lambda value, total, preview, **kwargs: seen.append((value, total)),
        )
        calibrate(sd3, sd3.build())
        assert seen[-1][0] == seen[-1][1] == max(value for value, _ in seen)

    def test_ras_on_the_model_is_ignored(self, sd3, calibrated):
        model, plans = calibrated
        patched = patch_model(model, RASConfig(sample_ratio=0.1, start_step=1))
        assert calibrate(sd3, patched) == plans
        assert has_ras(patched) and not has_ras(model)

    def test_a_model_that_ras_does_not_support_gets_a_grid(self, sd3, short, monkeypatch):
        for module in (calibration, plans_module):
            monkeypatch.setattr(module, "adapter_of", lambda model: None)
        plans = calibrate(sd3, sd3.build())
        # The measured grid, half-way to even, and `simple`, for two samplers.
        assert len(plans.plans) == 6 and all(plan.is_plain for plan in plans.plans)

    def test_the_expected_plan_comes_first(self, sd3, monkeypatch):
        """It has the shares of the family's plan."""
        monkeypatch.setattr(calibration, "FINE_STEPS", calibration.BLOCKS)
        monkeypatch.setattr(calibration, "REFERENCE_STEPS", 12)
        plans, family = calibrate(sd3, sd3.build()).plans, family_plans("sd3")
        for speed in PLAN_SPEEDS:
            expected = next(plan for plan in plans if plan.speed == speed)
            wanted = family.best(speed)
            assert [share < 1 for share in expected.shares] == [share < 1 for share in wanted.shares]
            assert not expected.is_plain and expected.closeness is not None

    @pytest.mark.small_images
    def test_a_small_image_is_expected_to_have_dense_steps_only(self, sd3, short):
        plans = calibrate(sd3, sd3.build()).plans
        assert plans[0].is_plain and not all(plan.is_plain for plan in plans)

    def test_a_gain_of_one_image_alone_is_no_reason_for_another_plan(self, sd3, short, monkeypatch):
        gains = itertools.count()  # every run is 10 dB closer than the one before, in the first image
        monkeypatch.setattr(calibration, "closeness", lambda *latents: (20.0 + 10.0 * next(gains), 20.0))
        plans = calibrate(sd3, sd3.build())
        expected, *others = [plan for plan in plans.plans if plan.sampler == plans.plans[0].sampler]
        limit = round(expected.closeness + MARGIN, 3)
        assert others and all(plan.closeness <= limit for plan in others)
        assert plans.best("3x", expected.sampler) == expected

    def test_a_plan_that_gains_in_every_image_or_not_at_all_keeps_its_mean(self, sd3, short, monkeypatch):
        gains = itertools.count(step=0.7)
        monkeypatch.setattr(
            calibration, "closeness", lambda *latents: (20.0 + next(gains), 20.0 + next(gains))
        )
        measured = calibration.Calibration._measured
        means = {}

        def kept(self, plan):
            found = measured(self, plan)
            means[found.shares, found.density] = found.closeness
            return found

        monkeypatch.setattr(calibration.Calibration, "_measured", kept)
        plans = calibrate(sd3, sd3.build())
        assert len({plan.closeness for plan in plans.plans}) > 2
        assert all(plan.closeness == means[plan.shares, plan.density] for plan in plans.plans)

    def test_a_plan_that_did_not_run_as_planned_is_dropped(self, sd3, short, monkeypatch):
        monkeypatch.setattr(calibration, "KV_CACHE", "fp8")  # a CPU does not support it: such runs are dense
        monkeypatch.setattr("ras_pack.ras_core.host.cache_plan.has_float8", lambda device: False)
        assert all(plan.is_plain for plan in calibrate(sd3, sd3.build()).plans)

    def test_an_interrupted_calibration_saves_nothing(self, sd3, short):
        model = sd3.build()
        comfy.model_management.interrupt_current_processing()
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            calibrate(sd3, model)
        assert saved_plans(model) is None
        assert not comfy.model_management.processing_interrupted()

    def test_latents_of_video_are_refused(self, sd3):
        with pytest.raises(RASError, match="shape .*Expected: the latent of an image"):
            calibration.calibrate(sd3.build(), ([], []), torch.zeros(1, 16, 3, 8, 8), 4.0)

    def test_it_takes_at_most_three_minutes_for_sd3_at_1024_pixels(self, sd3):
        """The estimate assumes 64 ms per step for both prompts (measured on an H100), and adds a tenth for
        the overhead of regional steps.
        """
        steps = calibration.Calibration(task(sd3)).evaluations
        assert steps * 1.1 * calibration.SEEDS * 0.064 < 180


class TestFiles:
    def test_they_are_found_by_model_and_size(self, sd3, calibrated):
        model, plans = calibrated
        assert saved_plans(sd3.build(), SIZE) == plans  # loaded again
        assert saved_plans(model) == plans
        assert saved_plans(model, (8, 8)) is None
        assert saved_plans(sd3.build(seed=1)) is None

    def test_without_a_size_the_newest_is_used(self, calibrated):
        model, plans = calibrated
        (path,) = plans_folder().iterdir()
        older = path.with_name(path.name.replace("16x12", "8x8"))
        older.write_text(PlanSet(plans.plans[:1]).to_json(), encoding="utf-8")
        os.utime(older, (1, 1))
        assert saved_plans(model) == plans
        assert len(saved_plans(model, (8, 8)).plans) == 1

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"version": 7}', b'{"version": 1}'])
    def test_a_broken_file_is_ignored_and_rewritten(self, sd3, calibrated, caplog, content):
        model, plans = calibrated
        (path,) = plans_folder().iterdir()
        path.write_bytes(content)
        assert saved_plans(model, SIZE) is None
        assert "saved plans are ignored" in caplog.text and path.name in caplog.text
        assert plans_for(model, SIZE).note == "noise levels of the SD3 family"
        calibration.save_plans(plans, model, SIZE)
        assert saved_plans(model, SIZE) == plans
        assert [each.name for each in plans_folder().iterdir()] == [path.name]


class TestFingerprint:
    def test_it_depends_on_the_weights(self, sd3):
        model = sd3.build()
        before = fingerprint(model)
        assert before == fingerprint(sd3.build()) == fingerprint(model.clone())
        assert before != fingerprint(sd3.build(seed=1))

    def test_it_depends_on_a_lora_and_its_strength(self, sd3):
        plain, found = fingerprint(sd3.build()), set()
        for strength in (0.5, 1.0):
            model = sd3.build().clone()
            name = "diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"
            weight = dict(model.model.named_parameters())[name]
            assert model.add_patches({name: ("diff", (torch.ones_like(weight),))}, strength)
            found.add(fingerprint(model))
        assert len(found | {plain}) == 3

    def test_it_is_the_same_once_a_lora_is_in_the_weights(self, sd3):
        model = sd3.build()
        name = "diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"
        model.add_patches(
            {name: ("diff", (torch.ones_like(dict(model.model.named_parameters())[name]),))}, 1.0
        )
        before = fingerprint(model)
        comfy.model_management.load_models_gpu([model])
        assert fingerprint(model) == before
        model.detach()

    def test_a_checkpoint_with_quantised_weights(self, sd3, monkeypatch):
        """The state dict of a quantised checkpoint contains scales, which are not attributes of the layer.
        The fingerprint of the model must depend on them.
        """
        monkeypatch.setattr("ras_pack.ras_core.host.fingerprint.TENSORS", 10**6)  # all, so this layer too
        found = {fingerprint(quantised(sd3.build(), scale)) for scale in (1.0, 1.0, 0.5)}
        assert len(found) == 2 and fingerprint(sd3.build()) not in found

    def test_it_depends_on_the_schedule(self, sd3):
        model = sd3.build()
        assert fingerprint(shifted(model, 6.0)) != fingerprint(model)

    def test_it_does_not_depend_on_ras(self, sd3):
        model = sd3.build()
        assert fingerprint(patch_model(model, RASConfig())) == fingerprint(model)


def shifted(model, shift: float):
    """The model after ComfyUI's node ModelSamplingSD3, which sets the shift."""
    node = ModelSamplingSD3()
    return getattr(node, node.FUNCTION)(model, shift)[0]


def scheduled(model, **changes) -> list[float]:
    values = {"speed": "2x", "steps": 28, "denoise": 1.0, "sampler": "dpmpp_2m", **changes}
    return RASScheduler.execute(model=model, **values).result[0].tolist()


class TestScheduler:
    @pytest.mark.parametrize(("speed", "steps"), [("1.5x", 19), ("2x", 14), ("2.5x", 11), ("3x", 9)])
    def test_without_a_calibration_the_grid_of_the_family_is_used(self, family, speed, steps):
        found = scheduled(family.build(), speed=speed)
        assert len(found) == steps + 1 and found[-1] == 0
        check_schedule(found)

    @pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
    def test_any_shift_gives_a_grid_from_its_first_level_to_zero(self, sd3, shift):
        model = shifted(sd3.build(), shift)
        found = scheduled(model, speed="3x")
        check_schedule(found)
        first = float(model.get_model_object("model_sampling").sigmas[-1])
        assert (found[0], found[-1]) == (pytest.approx(first), 0)

    @pytest.mark.parametrize("denoise", [0.3, 0.6, 0.95])
    def test_denoise_starts_where_ksampler_does(self, sd3, denoise):
        model = sd3.build()
        ksampler = comfy.samplers.KSampler(model, 20, torch.device("cpu"), "euler", "simple", denoise)
        found = scheduled(model, steps=20, denoise=denoise)
        assert found[0] == pytest.approx(float(ksampler.sigmas[0])) and len(found) == 11
        check_schedule(found)

    def test_one_step_and_none(self, sd3):
        model = sd3.build()
        assert scheduled(model, steps=1) == [pytest.approx(1.0), 0.0]
        assert scheduled(model, denoise=0.0) == []

    def test_a_saved_calibration_is_found(self, sd3, calibrated, caplog):
        model, plans = calibrated
        plain = plans.best("3x", "dpmpp_2m", plain=True)
        with caplog.at_level("INFO"):
            assert scheduled(model, speed="3x") == pytest.approx(levels_of(model, plain, 28))
        assert "3x: 9 steps instead of 28, all dense (dpmpp_2m; " in caplog.text

    def test_after_ras_the_grid_is_that_of_the_best_plan(self, sd3):
        plain = Plan("2x", "dpmpp_2m", (1.0,), (1.0,) * 14, closeness=20.0)
        regional = Plan("2x", "dpmpp_2m", (0.7, 0.3), (1.0,) * 6 + (0.5,) * 11, closeness=25.0)
        model, plans = sd3.build(), PlanSet((plain, regional))
        assert len(scheduled(model, plan=plans)) == 15
        assert len(scheduled(patch_model(model, RASConfig()), plan=plans)) == 18

    def test_the_size_is_read_from_the_latent(self, sd3, calibrated):
        model, _ = calibrated
        other = torch.zeros(1, 16, 8, 8)
        own, newest = (
            scheduled(model, speed="3x", **given) for given in ({"latent_image": {"samples": latent()}}, {})
        )
        family = levels_of(model, plans_for(sd3.build(seed=1)).best("3x", "dpmpp_2m", plain=True), 28)
        assert own == newest != pytest.approx(family)
        assert scheduled(model, speed="3x", latent_image={"samples": other}) == pytest.approx(family)


class TestNodes:
    def test_from_calibration_to_an_image(self, sd3, short):
        model = sd3.build()
        positive, negative = sd3.conditioning(1), sd3.conditioning(2)
        made = RASCalibrate.execute(model, positive, negative, {"samples": latent()}, 4.0, 1)
        plans, image = made.result
        assert image.shape[0] == 1 and image.shape[-1] == 3 and image.dtype == torch.float32
        assert json.loads((next(plans_folder().iterdir())).read_text("utf-8"))["note"] == plans.note
        sigmas = RASScheduler.execute(model, "3x", 28, 1.0, "euler", plans).result[0]
        sampler = comfy.samplers.sampler_object("euler")
        node = SamplerCustom()
        run = getattr(node, "sample", None) or node.execute
        result = run(model, True, 3, 4.0, positive, negative, sampler, sigmas, {"samples": latent()})
        samples = (result.result if hasattr(result, "result") else result)[0]["samples"]
        assert torch.isfinite(samples).all() and samples.shape == latent().shape

    def test_the_image_shows_three_fronts(self):
        def plan(speed, steps, dB, **values):
            shares = (1.0,) * steps
            return Plan(speed, "euler", **{"density": (3, 1), "shares": shares, **values}, closeness=dB)

        plans = PlanSet(
            (plan("2x", 14, 20.0, speedup=2.0), plan("2x", 14, 18.0, density=(1, 1), speedup=2.0),
             plan("2x", 14, 24.0, shares=(1.0, 1.0, 0.5), speedup=2.0), plan("3x", 9, None)), "a note",
        )  # fmt: skip
        assert front(plans.plans) == [(2.0, 24.0)]
        image = front_image(plans)
        assert image.shape == (1, 640, 960, 3) and image.dtype == np.float32
        masks = importlib.import_module("ras_pack.ras_core.render.masks")
        drawing = importlib.import_module("ras_pack.ras_core.render.drawing")
        for colour in (drawing.FAINT, masks.DENSE, masks.ACTIVE):
            same = np.abs(image[0, 80:560] * 255 - np.array(colour)).max(-1) < 1
            assert same.sum() >= 20  # a dot of nine pixels across

    def test_plans_without_measurements_draw_an_empty_image(self, sd3):
        assert front_image(plans_for(sd3.build())).shape == (1, 640, 960, 3)


def quantised(model, scale: float):
    """The model with one layer replaced by ComfyUI's mixed-precision layer, whose fp8 weight has a scale."""
    layer = model.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1
    operations = comfy.ops.mixed_precision_ops({}, torch.float32)
    form = json.dumps({"format": "float8_e4m3fn"}).encode()
    with torch.inference_mode(False), torch.no_grad():
        quant = operations.Linear(layer.in_features, layer.out_features, device="cpu", dtype=torch.float32)
        quant.load_state_dict(
            {
                "weight": layer.weight.detach().to(torch.float8_e4m3fn),
                "weight_scale": torch.tensor(scale),
                "bias": layer.bias.detach(),
                "comfy_quant": torch.tensor(list(form), dtype=torch.uint8),
            }
        )
    model.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1 = quant
    return model


def _with_lora(model):
    model = model.clone()
    weights = {name: each for name, each in model.model.state_dict().items() if each.ndim == 2}
    model.add_patches({name: ("diff", (0.1 * each,)) for name, each in [*weights.items()][:3]})
    return model


class TestPlansOfAnotherModel:
    """Plans that are connected to a node may have been calibrated on another model."""

    @pytest.mark.parametrize(
        ("name", "change", "is_other"),
        [
            ("sd3", lambda model: model, False),
            ("sd3", lambda model: model.clone(), False),
            ("sd3", _with_lora, True),
            ("lumina2", lambda model: model, True),
        ],
    )
    def test_a_run_says_so(self, name, change, is_other, calibrated, caplog):
        family, plans = FAMILIES[name], calibrated[1]
        patched = patch_model(change(family.build()), Speed("3x", plans))
        caplog.set_level("INFO")
        for _ in range(2):
            sample(patched, family, family.noise())
        trace = last_trace(patched)
        assert trace.remarks == (OTHER_MODEL,) * is_other and (OTHER_MODEL in trace.summary()) is is_other
        assert caplog.text.count(f"RAS: {OTHER_MODEL}") == is_other
        assert (HERE in caplog.text) is not is_other and (ELSEWHERE in caplog.text) is is_other

    @pytest.mark.parametrize("change", [lambda model: model, _with_lora])
    def test_ras_scheduler_says_so(self, change, calibrated, caplog):
        choice = {"speed": "3x", "steps": 28, "denoise": 1.0, "sampler": "euler", "plan": calibrated[1]}
        RASScheduler.execute(change(calibrated[0]), **choice)
        assert (OTHER_MODEL in caplog.text) is (change is _with_lora)

    def test_saved_plans_are_those_of_the_model(self, calibrated):
        model, plans = calibrated
        assert plans.model == fingerprint(model) == saved_plans(model, SIZE).model
