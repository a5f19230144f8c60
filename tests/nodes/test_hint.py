"""The line in a node that estimates a run before it starts: time, steps and closeness, from the plan."""

import json
import os
import struct
import urllib.error
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from comfy_execution.graph import DynamicPrompt
from ras_pack.nodes import plans
from ras_pack.nodes.hint import answer_to, family_of, family_of_file
from ras_pack.nodes.model_source import digest, source_in_prompt
from ras_pack.ras_core.host.outlook import inpainting_outlook, outlook
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.host.plan_files import save_plans
from ras_pack.ras_core.host.speed import Speed
from ras_pack.ras_core.method.family_plans import family_closeness, family_plans
from ras_pack.ras_core.method.plan import PLAN_SPEEDS, Plan
from ras_pack.ras_core.method.plan_set import PlanSet
from ras_pack.ras_core.models import adapter_for
from support.comfy import ROOT
from support.families import FAMILIES
from support.other_families import OTHERS
from support.sampling import sample

NAMES = {
    "sd3": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
    "flux": ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"],
    "lumina2": ["noise_refiner.0.attention.qkv.weight", "cap_embedder.1.weight"],
}


def write_model(path: Path, names: list[str]) -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())


class TestOutlook:
    def test_a_speed_in_numbers(self):
        assert outlook("sd3", "2x", 28, None) == {"time": 0.5, "steps": 17, "dense": 5, "closeness": 36.0}
        assert outlook("sd3", "2x", 56, "dpmpp_2m")["steps"] == 34

    def test_a_family_that_was_not_measured(self):
        expected = {"time": 0.5, "steps": 14, "dense": 14, "closeness": None, "unmeasured": "family"}
        assert outlook(None, "2x", 28, None) == expected
        assert outlook("qwen_image", "2x", 28, None)["unmeasured"] == "family"  # it has the plans of another

    def test_few_steps_have_no_room_for_regional_ones(self):
        dense = {"time": 0.5, "steps": 6, "dense": 6, "closeness": None, "unmeasured": "few"}
        assert outlook("sd3", "2x", 12, None) == outlook("sd3", "2x", 12, None, pixels=64 * 64) == dense
        assert outlook("sd3", "2x", 12, "heun") == {"time": 1, "steps": 12, "dense": 12, "closeness": None}
        assert outlook("sd3", "2x", 16, "heun")["time"] == 0.5

    def test_closeness_is_that_of_the_plan_that_was_measured(self):
        for sampler in ("euler", "dpmpp_2m"):  # both share the plan
            assert outlook("sd3", "3x", 28, sampler)["closeness"] == 29.5

    def test_closeness_follows_from_the_cost_of_the_run(self):
        """20 steps at 2x cost as much as 28 at 2.8x."""
        asked = [(28, "2.5x"), (20, "2x"), (28, "3x"), (18, "2x"), (17, "2x")]
        found = [outlook("sd3", speed, steps, None)["closeness"] for steps, speed in asked]
        assert found == [32.5, 30.6, 29.5, 29.5, None]
        assert outlook("sd3", "2x", 50, None)["closeness"] == outlook("sd3", "1.5x", 28, None)["closeness"]

    @pytest.mark.small_images
    def test_a_small_image_has_dense_steps_only(self):
        dense = {"time": 0.5, "steps": 14, "dense": 14, "closeness": None, "unmeasured": "small"}
        asked = {"speed": "2x", "steps": "28", "family": "sd3"}
        assert answer_to({**asked, "width": "384", "height": "384"}) == dense
        assert answer_to({**asked, "width": "512", "height": "512"}) == answer_to(asked) != dense

    def test_closeness_is_not_told_for_a_higher_cfg_than_was_measured(self):
        for cfg, is_told in ((1.0, True), (5.0, True), (8.0, False)):
            asked = {"speed": "2x", "steps": "28", "family": "sd3", "cfg": str(cfg)}
            found = answer_to(asked)
            assert (found["closeness"] is not None) == is_told
            assert found.get("unmeasured") == (None if is_told else "cfg")
        assert answer_to({**asked, "steps": "12"})["unmeasured"] == "few"  # with any cfg

    def test_a_run_that_costs_less_than_any_that_was_measured(self):
        for family, speed, steps in (("sd3", "2x", 16), ("sd3", "3x", 24), ("lumina2", "3x", 20)):
            found = outlook(family, speed, steps, None)
            assert found["closeness"] is None and found["unmeasured"] == "low"

    def test_a_sampler_without_plans_keeps_its_steps(self):
        found = outlook("sd3", "3x", 28, "heun")
        assert found["steps"] is None and found["unmeasured"] == "sampler"

    @pytest.mark.parametrize("sampler", [None, "euler", "heun"])
    @pytest.mark.parametrize(("steps", "denoise"), [(1, 1.0), (4, 1.0), (8, 1.0), (4, 0.5), (8, 0.92)])
    def test_few_steps_gain_nothing(self, sampler, steps, denoise):
        found = outlook("sd3", "3x", steps, sampler, denoise)
        assert found == {"time": 1, "steps": steps, "dense": steps, "closeness": None}

    def test_few_steps_of_a_longer_schedule_gain(self):
        assert (
            outlook("sd3", "2x", 8, "euler", 0.5)["time"] == outlook("sd3", "2x", 10, "euler")["time"] == 0.5
        )
        assert outlook("sd3", "2x", 9, "euler")["time"] == 5 / 9  # at least five steps
        asked = {"speed": "2x", "steps": "8", "sampler": "euler"}
        assert answer_to(asked)["time"] == 1 and answer_to({**asked, "denoise": "0.5"})["time"] == 0.5

    @pytest.mark.parametrize("steps", [1, 4, 8, 9, 20])
    def test_the_estimate_matches_the_run(self, sd3, steps):
        model = patch_model(sd3.build(), Speed("2x"))
        sample(model, sd3, sd3.noise(), steps=steps)
        trace, found = last_trace(model), outlook("sd3", "2x", steps, "euler")
        assert (trace.n_steps, trace.n_steps - trace.regional_steps) == (found["steps"], found["dense"])
        assert trace.is_accelerated == (found["time"] < 1)

    @pytest.mark.parametrize("sampler", ["euler", "heun"])
    @pytest.mark.parametrize("steps", [8, 9, 20])
    def test_the_estimate_of_inpainting_matches_the_run(self, sd3, steps, sampler):
        model, noise = patch_model(sd3.build(), Speed("2x")), sd3.noise()
        mask = torch.zeros_like(noise[:, :1])
        mask[..., : mask.shape[-1] // 2] = 1
        sample(model, sd3, noise, steps=steps, sampler=sampler, noise_mask=mask)
        trace, found = last_trace(model), inpainting_outlook("sd3", "2x", steps, sampler, 1.0, None)
        assert trace.regional_steps == 0
        assert trace.n_steps / steps == found["time"]
        keeps_steps = sampler == "heun" and steps > 8
        assert found["steps"] == found["dense"] == (None if keeps_steps else trace.n_steps)
        assert found.get("unmeasured") == ("inpainting" if found["time"] < 1 else None)
        asked = {"speed": "2x", "steps": str(steps), "sampler": sampler, "family": "sd3", "inpainting": "1"}
        assert answer_to(asked) == found

    @pytest.mark.parametrize("family", NAMES)
    def test_a_higher_speed_is_less_close(self, family):
        found = [outlook(family, speed, 28, None)["closeness"] for speed in PLAN_SPEEDS]
        assert found == sorted(found, reverse=True)

    @pytest.mark.parametrize(
        "query",
        [
            {},
            {"speed": "2x"},
            {"speed": "9x", "steps": "4"},
            {"speed": "2x", "steps": "0"},
            {"speed": "2x", "steps": "28", "denoise": "2"},
            {"speed": "2x", "steps": "28", "denoise": "nan"},
        ],
    )
    def test_another_question_is_refused(self, query):
        with pytest.raises(ValueError):
            answer_to(query)


LOADER = ["CheckpointLoaderSimple", {"ckpt_name": "a.safetensors"}]
LORA = ["LoraLoaderModelOnly", {"lora_name": "b.safetensors", "strength_model": 1}]

SOME = (Plan("2x", "euler", (1.0,), (1.0,) * 14),)
PROMPT = {
    "1": {"class_type": LOADER[0], "inputs": LOADER[1]},
    "2": {"class_type": LORA[0], "inputs": {"model": ["1", 0], **LORA[1]}},
    "3": {"class_type": "RASPatchModel", "inputs": {"model": ["2", 0], "speed": "2x"}},
    "4": {"class_type": "ModelMergeSimple", "inputs": {"model1": ["1", 0], "model2": ["2", 0], "ratio": 1.0}},
}


class TestMeasured:
    """Plans that RAS Calibrate has saved for the graph's model and image size precede those of the family."""

    @pytest.fixture(autouse=True)
    def _own_user_folder(self, tmp_path, monkeypatch):
        import folder_paths

        monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))

    @pytest.fixture
    def model(self, sd3):
        return sd3.build()

    def asked(self, chain=(LORA, LOADER), size=(768, 1024), **changes):
        height, width = size
        query = {"speed": "2x", "steps": "28", "sampler": "euler", "family": "sd3"}
        size = {"source": json.dumps(chain), "width": str(width), "height": str(height)}
        return answer_to({**query, **size, **changes})

    def saved(self, model, chain=(LORA, LOADER), size=(96, 128), steps=16):
        shares = (1.0,) * 12 + (0.6,) * (steps - 12)
        plan = Plan("2x", "euler", (0.7, 0.3), shares, speedup=1.98, closeness=21.3)
        return save_plans(PlanSet((plan,), source=digest(chain)), model, size)

    def test_the_plan_of_this_model_and_size(self, model):
        assert self.asked()["steps"] == 17  # the family's
        self.saved(model)
        expected = {"time": 1 / 1.98, "steps": 16, "dense": 12, "closeness": None, "measured": 21.3}
        assert self.asked() == expected
        assert self.asked(sampler="") == expected
        assert self.asked(steps="56")["steps"] == 32

    @pytest.mark.parametrize(
        "changes",
        [
            {"chain": [LOADER]}, {"chain": [[LORA[0], {**LORA[1], "strength_model": 0.5}], LOADER]},
            {"chain": []}, {"chain": 3}, {"chain": "x"}, {"size": (1024, 768)}, {"size": (1024, 1024)},
            {"size": (0, 0)}, {"speed": "3x"}, {"sampler": "dpmpp_2m"}, {"sampler": "heun"},
        ],
    )  # fmt: skip
    def test_another_question_gets_the_familys_plan(self, model, changes):
        self.saved(model)
        assert "measured" not in self.asked(**changes)

    def test_the_latest_plan_applies(self, model):
        path = self.saved(model)
        assert self.asked()["steps"] == 16
        self.saved(model, steps=14)
        os.utime(path, ns=(2**62, 2**62))  # a file system may have coarse times
        assert self.asked()["steps"] == 14
        path.write_text("damaged")
        assert "measured" not in self.asked()

    @pytest.mark.parametrize(
        "changes",
        [
            {"source": "{"}, {"width": "x"}, {"source": "[" * 10**5}, {"source": "[" * 500 + "]" * 500},
            {"denoise": "1e-320"},
        ],
    )  # fmt: skip
    def test_a_malformed_question_is_refused(self, model, changes):
        self.saved(model)
        with pytest.raises(ValueError):
            self.asked(**changes)

    def test_calibration_keeps_the_nodes_that_the_model_comes_from(self, monkeypatch, sd3):
        kept = []
        monkeypatch.setattr(plans, "calibrate", lambda *args: kept.append(args[-1]) or PlanSet(SOME))
        monkeypatch.setattr(plans, "front_image", lambda plans: np.zeros((1, 8, 8, 3), np.float32))
        prompt = DynamicPrompt(
            {"7:3": {"class_type": "RASCalibrate", "inputs": {"model": ["2", 0]}}, **PROMPT}
        )
        hidden = SimpleNamespace(dynprompt=prompt, unique_id="7:3", prompt=None, extra_pnginfo=None)
        monkeypatch.setattr(plans.RASCalibrate, "hidden", hidden)
        latent = {"samples": torch.zeros(1, 16, 8, 8)}
        plans.RASCalibrate.execute(sd3.build(), sd3.conditioning(1), sd3.conditioning(2), latent, 4.0, 1)
        assert kept == [digest([LORA, LOADER])] != [""]


class TestSource:
    @pytest.fixture(autouse=True)
    def _known_nodes(self, monkeypatch):
        import comfy_extras.nodes_model_merging as merging

        import nodes as host_nodes

        for name, node in merging.NODE_CLASS_MAPPINGS.items():
            monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, name, node)

    def source(self, origin: str, **others) -> str:
        prompt = {**PROMPT, **others, "9": {"class_type": "RASCalibrate", "inputs": {"model": [origin, 0]}}}
        return source_in_prompt(prompt.__getitem__, "9")

    def test_all_nodes_that_change_the_model_count(self):
        assert self.source("2") == digest([LORA, LOADER]) != self.source("1") == digest([LOADER])

    def test_merged_models_have_none(self):
        assert self.source("4") == ""

    def test_the_text_encoder_does_not_matter(self):
        lora = {"lora_name": "b.safetensors", "strength_model": 1, "strength_clip": 1}
        inputs = {"model": ["1", 0], "clip": ["1", 1], **lora}
        found = self.source("5", **{"5": {"class_type": "LoraLoader", "inputs": inputs}})
        assert found == digest([["LoraLoader", lora], LOADER])

    @pytest.mark.parametrize(
        ("kind", "inputs"),
        [
            ("CheckpointLoaderSimple", {"ckpt_name": ["8", 0]}),  # the name of the file comes from a node
            ("ModelSamplingLTXV", {"model": ["1", 0], "latent": ["8", 0], "max_shift": 2.05}),
            ("AnySwitch", {"any": ["1", 0]}),
        ],
    )
    def test_models_that_depend_on_another_node_have_none(self, kind, inputs, monkeypatch):
        """With a digest, the hint would show the plans of one such model for all of them."""
        import comfy_extras.nodes_lt as video

        import nodes as host_nodes

        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, "ModelSamplingLTXV", video.ModelSamplingLTXV)
        assert self.source("5", **{"5": {"class_type": kind, "inputs": inputs}}) == ""

    def test_numbers_are_those_of_a_browser(self):
        other = ["LoraLoaderModelOnly", {"strength_model": 1.0, "lora_name": "b.safetensors"}]
        assert digest([other, LOADER]) == digest([LORA, LOADER])


class TestFamily:
    @pytest.mark.parametrize("family", NAMES)
    def test_the_names_of_tensors_tell_it(self, family):
        assert family_of(NAMES[family]) == family

    @pytest.mark.parametrize("name", [name for name in {**FAMILIES, **OTHERS} if name != "lumina_next"])
    def test_the_hint_has_the_plans_of_the_run(self, name):
        """Lumina-Next is loaded from a folder, not from a file."""
        network = {**FAMILIES, **OTHERS}[name].build().model.diffusion_model
        module = type(adapter_for(network)).__module__.rpartition(".")[2]
        found = family_of(network.state_dict())
        assert found == ("qwen_image" if module == "mage_flow" else module)
        plans = (family_plans(each).plans for each in (found, module))
        hinted, followed = ([replace(plan, origin="") for plan in each] for each in plans)
        assert hinted == followed
        is_measured = module in NAMES
        assert all((family_closeness(found, cost) is not None) == is_measured for cost in (9.3, 14, 28))

    def test_the_demo_models_are_of_their_families(self, monkeypatch):
        import folder_paths

        weights = ROOT / "demo" / "weights"
        monkeypatch.setattr(folder_paths, "get_full_path", lambda folder, name: str(weights / name))
        assert family_of_file("sd3.safetensors") == "sd3"
        assert family_of_file("lumina2.safetensors") == "lumina2"

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 20, struct.pack("<Q", 4) + b"[[[["])
    def test_a_damaged_file_has_none(self, monkeypatch, tmp_path, content):
        import folder_paths

        (tmp_path / "x.safetensors").write_bytes(content)
        monkeypatch.setattr(folder_paths, "get_full_path", lambda folder, name: str(tmp_path / name))
        assert family_of_file("x.safetensors") is None

    @pytest.mark.parametrize("name", ["", "../../x.safetensors", "/etc/passwd", "no such file"])
    def test_only_model_files_are_read(self, name):
        assert family_of_file(name) is None


@pytest.mark.parametrize("more", [{}, {"inpainting": "1"}])
def test_steps_of_a_missing_file_are_unknown(more):
    """They depend on the model's family."""
    asked = {"speed": "2x", "steps": "28", **more}
    assert answer_to({**asked, "file": "not there.safetensors"})["unknown"]
    for known in ({}, {"family": "sd3", "file": "not there.safetensors"}, {"file": ""}):
        assert "unknown" not in answer_to({**asked, **known})
    few = answer_to({**asked, "steps": "4", "file": "not there.safetensors"})
    assert "unknown" not in few  # RAS stays out of any model


@pytest.mark.server
def test_a_server_answers(server):
    base = server.log.parent / "models" / "diffusion_models"
    base.mkdir(parents=True, exist_ok=True)
    write_model(base / "hint_flux.safetensors", NAMES["flux"])
    asked = {"speed": "3x", "steps": 28, "file": "hint_flux.safetensors"}
    assert server.read(f"/multirate_ras/hint?{urlencode(asked)}")["closeness"] == 30.7
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.fetch("/multirate_ras/hint?speed=2x")
    assert refused.value.code == 400
