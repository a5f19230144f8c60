"""Conditionings are copied to the device once per run, and ComfyUI samples with the copies."""

import comfy.conds
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host import conditionings, wrappers
from ras_pack.ras_core.host.conditionings import on_device
from ras_pack.ras_core.host.patch import last_trace, patch_model
from support.sampling import FAST, distance, sample, sample_ras

ELSEWHERE = torch.device("meta")


def _conds() -> dict:
    inputs = {
        "c_crossattn": comfy.conds.CONDCrossAttn(torch.zeros(1, 3, 4)),
        "y": comfy.conds.CONDRegular(torch.ones(1, 2)),
        "ref_latents": comfy.conds.CONDList([torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 3, 3)]),
        "num_tokens": comfy.conds.CONDConstant(7),
    }
    return {"positive": [{"uuid": 1, "strength": 1.0, "model_conds": inputs}], "negative": [{"uuid": 2}]}


def test_tensors_are_copied_and_everything_else_is_unchanged():
    given = _conds()
    found = on_device(given, ELSEWHERE)
    inputs = found["positive"][0]["model_conds"]
    assert inputs["c_crossattn"].cond.device == inputs["y"].cond.device == ELSEWHERE
    assert type(inputs["c_crossattn"]) is comfy.conds.CONDCrossAttn and inputs["y"].cond.shape == (1, 2)
    assert [each.device for each in inputs["ref_latents"].cond] == [ELSEWHERE] * 2
    assert inputs["num_tokens"].cond == 7
    assert found["positive"][0]["uuid"] == 1 and found["negative"] == given["negative"]
    assert given["positive"][0]["model_conds"]["y"].cond.device.type == "cpu"  # others may use it


def test_a_tensor_on_the_device_stays_the_same_object():
    given = _conds()
    inputs = on_device(given, torch.device("cpu"))["positive"][0]["model_conds"]
    assert inputs["y"] is given["positive"][0]["model_conds"]["y"]


def test_without_memory_comfyui_copies_them_itself(monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(conditionings, "_copied", full)
    given = _conds()
    assert on_device(given, ELSEWHERE) == given


class TestRuns:
    """Tests of whole runs on a CPU, where nothing is really copied to another device. So the function that
    copies is watched, and its copies are marked.
    """

    @pytest.fixture
    def arrivals(self, monkeypatch):
        seen = []

        def bring(conds, device):
            seen.append(device)
            return on_device(conds, device)

        def copied(held, device):
            tensor = getattr(held, "cond", None)
            if not isinstance(tensor, torch.Tensor):
                return held
            there = held._copy_with(tensor.clone())
            there.cond.arrived = True
            return there

        monkeypatch.setattr(wrappers, "on_device", bring)
        monkeypatch.setattr(conditionings, "_input_copied", copied)
        return seen

    def test_the_sampler_receives_them_and_nothing_else_changes(self, family, arrivals):
        expected = sample(patch_model(family.build(), RASConfig(sample_ratio=1.0)), family, family.noise())
        assert not arrivals  # a run without regional steps is ComfyUI's own
        patched, found = patch_model(family.build(), FAST), []

        def look(executor, x, timestep, model_options, seed):
            conds = [each for group in executor.class_obj.conds.values() for each in group]
            inputs = [held.cond for each in conds for held in each["model_conds"].values()]
            found.extend(hasattr(each, "arrived") for each in inputs if isinstance(each, torch.Tensor))
            return executor(x, timestep, model_options, seed)

        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "other", look)
        latent = sample(patched, family, family.noise())
        assert len(arrivals) == 1 and found and all(found)
        assert last_trace(patched).regional_steps == 7 and latent.shape == expected.shape

    def test_the_latent_is_the_same(self, family, arrivals, monkeypatch):
        with_them, trace = sample_ras(family.build(), family, family.noise())
        monkeypatch.setattr(wrappers, "on_device", lambda conds, _: conds)
        without, _ = sample_ras(family.build(), family, family.noise())
        assert distance(with_them, without) < 1e-6 and not trace.notes
