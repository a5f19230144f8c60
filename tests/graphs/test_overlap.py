"""Captured calls that are launched before ComfyUI requests them, with guessed inputs.

The image stays the same, and the outputs of a wrong guess are never used without a warning."""

import comfy.hooks
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.graphs.capture import RegionalCall, capture
from ras_pack.ras_core.graphs.overlap import WRONG_GUESS, Overlap, _Check
from ras_pack.ras_core.graphs.store import GraphStore
from ras_pack.ras_core.host.names import GRAPHS
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.run.dense import DenseCalls
from ras_pack.ras_core.run.regional import RegionalCalls
from support.sampling import (
    FAST,
    STEPS,
    between_calls,
    distance,
    in_groups,
    positive_alone,
    sample,
    sample_ras,
    split_prompts,
)
from support.tape import BrokenTape, FrozenLateTape, FrozenTape, Tapes, capture_on

CAPTURED = RASConfig(**{**vars(FAST), "kv_cache": "gpu"})
EAGER = RASConfig(**{**vars(CAPTURED), "cuda_graphs": "off"})

# Of seven regional evaluations the first is eager, the second captured, the third compared; in a later run
# the first sets the inputs, the second is compared.
LAUNCHED, LAUNCHED_LATER = 4, 5


def _split(family, monkeypatch, kind):
    """A model whose network is called once per prompt, its tapes, and its image without graphs."""
    monkeypatch.setattr("ras_pack.ras_core.host.graphs_of_model.may_outlive_run", lambda *_: True)
    plain_model, model, tapes = family.build(), family.build(), Tapes(kind)
    for each in (plain_model, model):
        split_prompts(monkeypatch, each)
    capture_on(model, tapes)
    return model, tapes, sample_ras(plain_model, family, family.noise(), EAGER)[0]


def test_the_image_is_the_same_if_the_device_runs_the_launch_at_once(sd3, monkeypatch):
    _check_two_runs(sd3, FrozenTape, monkeypatch)


def test_the_image_is_the_same_if_the_device_runs_the_launch_late(family, monkeypatch):
    _check_two_runs(family, FrozenLateTape, monkeypatch)


def _check_two_runs(family, kind, monkeypatch):
    model, tapes, plain = _split(family, monkeypatch, kind)
    for launched in (LAUNCHED, LAUNCHED + LAUNCHED_LATER):
        latent, trace = sample_ras(model, family, family.noise(), CAPTURED)
        assert distance(latent, plain) < 2e-5
        assert trace.regional_steps == 7 and not trace.notes
        assert (tapes.launched, tapes.waiting, tapes.captured) == (launched, 0, 2)


@pytest.mark.parametrize("format_name", ["fp8", "forecast"])
def test_other_formats_of_the_cache(sd3, format_name, monkeypatch):
    results = []
    for graphs in ("off", "auto"):
        model, tapes = sd3.build(), Tapes(FrozenLateTape)
        split_prompts(monkeypatch, model)
        capture_on(model, tapes)
        config = RASConfig(**{**vars(FAST), "kv_cache": format_name, "cuda_graphs": graphs})
        results.append(sample_ras(model, sd3, sd3.noise(), config, steps=16)[0])
    assert tapes.launched > 3
    assert distance(results[1], results[0]) < 2e-5


@pytest.mark.parametrize("name", ["positive", "negative"])
def test_a_run_with_another_prompt_launches_early_too(sd3, name, monkeypatch):
    model, tapes, _ = _split(sd3, monkeypatch, FrozenLateTape)
    plain_model = sd3.build()
    split_prompts(monkeypatch, plain_model)
    sample_ras(model, sd3, sd3.noise(), CAPTURED)
    other = {name: sd3.conditioning(7)}
    latent, trace = sample_ras(model, sd3, sd3.noise(), CAPTURED, **other)
    plain, _ = sample_ras(plain_model, sd3, sd3.noise(), EAGER, **other)
    assert distance(latent, plain) < 2e-5 and not trace.notes
    assert (tapes.launched, tapes.captured) == (LAUNCHED + LAUNCHED_LATER, 2)


def test_three_calls_have_two_tapes(sd3, monkeypatch):
    """There are three calls and two tapes. The third call is not launched early, because it shares its tape
    with another call, and a tape must not be used by two calls at once.
    """
    tapes, traces = _grouped(sd3, monkeypatch, [[1, 1, 1]] * STEPS)
    assert [trace.regional_steps for trace in traces] == [7, 7]
    assert (tapes.launched, tapes.captured) == (LAUNCHED, 3)


def test_calls_that_are_regrouped_during_the_run(sd3, monkeypatch):
    """The grouping of prompts changes during the run, so that a call with one prompt, which could be launched
    early, sometimes precedes and sometimes follows a call with two prompts.
    """
    monkeypatch.setattr("ras_pack.ras_core.host.graphs_of_model.may_outlive_run", lambda *_: True)
    tapes, _ = _grouped(sd3, monkeypatch, [[1, 1, 1]] * 12 + [[2, 1]] * 8 + [[1, 2]] * 8 + [[1, 1, 1]] * 8)
    assert tapes.launched > 0 and tapes.waiting == 0


def _grouped(sd3, monkeypatch, groups):
    """Make an eager and a captured run with three prompts, whose calls have the numbers of prompts `groups`.

    Checks that both images are equal. Returns the tapes of the captured run, and the traces of both runs.
    """
    latents, traces = [], []
    for config in (EAGER, CAPTURED):
        model, tapes = sd3.build(), Tapes(FrozenLateTape)
        capture_on(model, tapes)
        patched = patch_model(model, config)
        between_calls(monkeypatch, in_groups(groups.__getitem__))
        two = sd3.conditioning(1) + sd3.conditioning(3)
        latents.append(sample(patched, sd3, sd3.noise(), positive=two, steps=len(groups)))
        traces.append(last_trace(patched))
    assert distance(*latents) < 2e-5 and not any(trace.notes for trace in traces)
    return tapes, traces


def test_nothing_is_in_flight_when_the_network_is_called(sd3, monkeypatch):
    """Guidance skips the negative prompt in some steps, so the call that was launched early for it is never
    requested. The pack must wait for this call, too, before the network is called.
    """
    model, tapes, _ = _split(sd3, monkeypatch, FrozenLateTape)
    patched = patch_model(model, CAPTURED)
    calls = []
    for kind in (DenseCalls, RegionalCalls):
        original = kind.run

        def watched(*args, original=original):
            calls.append(tapes.waiting)
            return original(*args)

        monkeypatch.setattr(kind, "run", watched)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "other", positive_alone(lambda step: step > 6))
    sample(patched, sd3, sd3.noise())
    assert tapes.launched > 0 and not any(calls) and tapes.waiting == 0


def test_one_tape_is_enough_if_memory_is_short(sd3, monkeypatch):
    class ShortTape(FrozenTape):
        def capture(self, work, *around):
            if made.index(self):
                raise torch.cuda.OutOfMemoryError("planted")
            return super().capture(work, *around)

    made = []

    def make(number: int) -> ShortTape:
        made.append(ShortTape())
        return made[-1]

    model, _, plain = _split(sd3, monkeypatch, FrozenTape)
    store = GraphStore(make)
    setattr(model.model, GRAPHS, store)
    for replayed in (2 * 5, 2 * 5 + 2 * 7):
        latent, trace = sample_ras(model, sd3, sd3.noise(), CAPTURED)
        assert distance(latent, plain) < 2e-5 and not trace.notes
        assert store.count == 2 and store.capture_failure is None
        assert made[0].replayed == replayed and made[0].launched == 0


def test_both_prompts_in_one_call_need_no_guess(family):
    model, tapes = family.build(), Tapes()
    capture_on(model, tapes)
    sample_ras(model, family, family.noise(), CAPTURED)
    assert (tapes.launched, tapes.captured) == (0, 1)


class TestWrongGuesses:
    @pytest.fixture(autouse=True)
    def _monkeypatch(self, monkeypatch):
        self._patch = monkeypatch

    def _model(self, sd3, kind, shift):
        """A model with RAS. In each evaluation, the second call gets another image than the first call."""
        model, tapes = sd3.build(), Tapes(kind)
        capture_on(model, tapes)
        patched = patch_model(model, CAPTURED)
        between_calls(self._patch, _each_alone(shift))
        return patched, tapes

    def test_calls_that_always_differ_are_never_launched_early(self, sd3):
        latents = []
        for kind in (FrozenTape, BrokenTape):
            patched, tapes = self._model(sd3, kind, lambda step: 0.1)
            latents.append(sample(patched, sd3, sd3.noise()))
            assert last_trace(patched).regional_steps == 7 and not last_trace(patched).notes
            assert tapes.launched == 0 and (tapes.replayed > 0) == (kind is FrozenTape)
        assert distance(*latents) < 2e-5

    def test_calls_that_start_to_differ_are_detected(self, sd3, caplog):
        patched, tapes = self._model(sd3, FrozenTape, lambda step: 0.1 * (step >= 7))
        sample(patched, sd3, sd3.noise())
        assert tapes.launched > 0 and tapes.waiting == 0
        assert caplog.text.count(WRONG_GUESS) == 1 and "running dense from here" in caplog.text
        assert last_trace(patched).steps[-1].kind.value == "dense"

    def test_within_two_evaluations(self, sd3, monkeypatch, caplog):
        """A wrong guess is detected within two evaluations, even if the CPU is far ahead of the device."""
        monkeypatch.setattr(_Check, "is_ready", lambda check, wait: wait)
        patched, tapes = self._model(sd3, FrozenTape, lambda step: 0.1 * (step >= 11))
        sample(patched, sd3, sd3.noise(), steps=20)
        assert caplog.text.count(WRONG_GUESS) == 1
        kinds = [step.kind.value for step in last_trace(patched).steps]
        assert kinds[11:13] == ["regional"] * 2 and set(kinds[13:]) == {"dense"}

    def test_even_after_the_graphs_were_dropped(self):
        """Memory runs out, and the graphs are dropped, before the result of the comparison is read. The wrong
        guess must still be reported.
        """
        (first, second), calls, idx = _two_captured_calls(), Overlap(), torch.zeros(1, 2, dtype=torch.long)
        for step, shift in enumerate((0.0, 0.0, 0.0, 1.0)):
            assert calls.begin_evaluation(True) is None
            for each, x in ((first, step), (second, step + shift)):
                calls.settle()
                now = {"x": torch.full((1, 1, 2, 2), float(x)), "t": torch.ones(1), "prompt": PROMPT}
                calls.run(each, now, idx)
        calls.forget()
        assert calls.end() == WRONG_GUESS

    def test_even_in_the_last_step(self, sd3, caplog):
        patched, tapes = self._model(sd3, FrozenTape, lambda step: 0.1 * (step == STEPS - 1))
        sample(patched, sd3, sd3.noise())
        assert tapes.launched > 0 and caplog.text.count(WRONG_GUESS) == 1

    def test_weights_that_differ_between_prompts(self, sd3, monkeypatch):
        """ComfyUI's hooks patch the weights before the call for one prompt, and remove the patch before the
        call for the other. So no call may be launched early.
        """
        model, tapes, unhooked = _split(sd3, monkeypatch, FrozenLateTape)
        prompts = {"positive": _with_lora(sd3, sd3.conditioning(1)), "negative": sd3.conditioning(2)}
        plain, _ = sample_ras(sd3.build(), sd3, sd3.noise(), EAGER, **prompts)
        assert distance(plain, unhooked) > 1e-3
        latent, trace = sample_ras(model, sd3, sd3.noise(), CAPTURED, **prompts)
        assert distance(latent, plain) < 2e-5
        assert tapes.launched == 0 and tapes.replayed > 0 and not trace.notes

    def test_other_packs_functions_between_the_calls(self, sd3, monkeypatch):
        """Another pack's function changes a prompt during the run. An early launch would use the old one."""

        def negated(executor, model, conds, x_in, timestep, model_options):
            evaluations.append(1)
            for each in conds[1] if len(evaluations) > 8 else ():
                inputs = {**each["model_conds"]}
                prompt = inputs["c_crossattn"]
                inputs["c_crossattn"] = prompt._copy_with(-prompt.cond)
                conds = [conds[0], [{**each, "model_conds": inputs}]]
            return executor(model, conds, x_in, timestep, model_options)

        latents = []
        for config in (EAGER, CAPTURED):
            evaluations = []
            model, tapes, _ = _split(sd3, monkeypatch, FrozenTape)
            patched = patch_model(model, config)
            patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "other", negated)
            latents.append(sample(patched, sd3, sd3.noise()))
            assert last_trace(patched).regional_steps == 7 and not last_trace(patched).notes
        assert distance(*latents) < 2e-5
        assert tapes.launched == 0 and tapes.replayed > 0

    def test_a_wrapper_that_may_do_anything(self, sd3, monkeypatch):
        model, tapes, plain = _split(sd3, monkeypatch, FrozenTape)
        patched = patch_model(model, CAPTURED)
        patched.set_model_unet_function_wrapper(
            lambda apply, given: apply(given["input"], given["timestep"], **given["c"])
        )
        assert distance(sample(patched, sd3, sd3.noise()), plain) < 2e-5
        assert tapes.launched == 0 and tapes.replayed > 0


def test_an_interrupt_between_two_calls_leaves_nothing_in_flight(sd3, monkeypatch):
    model, tapes = sd3.build(), Tapes(FrozenLateTape)
    capture_on(model, tapes)
    patched = patch_model(model, CAPTURED)

    def stop(step: int) -> float:
        if step == 8:
            assert tapes.waiting == 1
            raise KeyboardInterrupt
        return 0.0

    between_calls(monkeypatch, _each_alone(stop))
    with pytest.raises(KeyboardInterrupt):
        sample(patched, sd3, sd3.noise())
    assert tapes.launched > 0 and tapes.waiting == 0


def test_a_prompt_on_another_device_is_compared_there():
    """An early launch guesses the prompt. If the prompt has changed when ComfyUI requests the output, the
    call runs again, and is not launched early any more.
    """
    (first, second), calls, idx = _two_captured_calls(), Overlap(), torch.zeros(1, 2, dtype=torch.long)
    second.off_device["prompt"] = PROMPT.clone()  # pretends that the device is another one
    found = []
    for step, prompt in enumerate((1.0, 1.0, 1.0, 3.0, 3.0)):
        assert calls.begin_evaluation(True) is None
        now = {"x": torch.full((1, 1, 2, 2), float(step)), "t": torch.ones(1)}
        calls.run(first, now | {"prompt": PROMPT}, idx)
        calls.settle()
        found.append(float(calls.run(second, now | {"prompt": PROMPT * prompt}, idx).mean()))
    assert found == [1.0, 2.0, 3.0, 6.0, 7.0]
    assert second.tape.launched == 2 and calls.end() is None


def test_a_graph_that_serves_another_call_is_not_launched_with_the_old_inputs():
    (first, second), calls, idx = _two_captured_calls(), Overlap(), torch.zeros(1, 2, dtype=torch.long)
    for step in range(6):
        assert calls.begin_evaluation(True) is None
        if step == 4:
            calls.forget([second])
        now = {"x": torch.full((1, 1, 2, 2), float(step)), "t": torch.ones(1)}
        calls.run(first, now | {"prompt": PROMPT}, idx)
        calls.settle()
        output = calls.run(second, now | {"prompt": PROMPT if step < 4 else 3 * PROMPT}, idx)
        assert float(output.mean()) == step + (1 if step < 4 else 3)
    assert second.tape.launched == 2 and calls.end() is None


PROMPT = torch.ones(1)


def _two_captured_calls():
    """Two captured stand-ins for network calls: each returns the sum of image and prompt."""
    idx = torch.zeros(1, 2, dtype=torch.long)
    inputs = {"x": torch.zeros(1, 1, 2, 2), "t": torch.ones(1), "prompt": PROMPT}
    call = RegionalCall(inputs, idx, {}, lambda now, *_: now["x"] + now["prompt"])
    return [capture(FrozenTape(), call) for _ in "ab"]


def _each_alone(shift):
    """Evaluate each prompt in its own call; the second call gets the image plus `shift(step)`."""
    evaluations = []

    def wrapper(executor, model, conds, x_in, timestep, model_options):
        evaluations.append(1)
        found = executor(model, conds[:1], x_in, timestep, model_options)
        shifted = x_in + shift(len(evaluations) - 1)
        return found + executor(model, conds[1:], shifted, timestep, model_options)

    return wrapper


def _with_lora(family, conditioning):
    """The conditioning with ComfyUI's LoRA hook, which patches weights while this prompt is evaluated."""
    name = "diffusion_model.joint_blocks.0.x_block.attn.qkv"
    weight = family.build().model.get_parameter(f"{name}.weight")
    hooks = comfy.hooks.create_hook_lora({f"{name}.diff": torch.full_like(weight, 0.05)}, 1.0, 1.0)
    return comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)
