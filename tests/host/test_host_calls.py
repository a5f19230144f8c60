"""Reading the arguments with which ComfyUI calls the network.

They may be given by position or by name, and later versions of ComfyUI add further arguments."""

import pytest
import torch
from ras_pack.ras_core.graphs.eligibility import RESIDUAL
from ras_pack.ras_core.host.call import ModelCall
from ras_pack.ras_core.host.names import ATTENTION
from ras_pack.ras_core.host.outer_sample import OuterSample

X, T, CONTEXT, RESIDUALS = torch.zeros(1, 4, 2, 2), torch.ones(1), torch.zeros(1, 3, 8), torch.zeros(1, 4, 8)
EXTRA, OPTIONS = {"y": CONTEXT}, {"uuids": [1]}
CONTROL = {"output": [RESIDUALS, None]}


def answer(*args, **kwargs):
    """The arguments of a call as the model would receive them."""
    return args, kwargs


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X, T, None, CONTEXT, CONTROL, OPTIONS), EXTRA),
        ((X, T), {"c_crossattn": CONTEXT, "control": CONTROL, "transformer_options": OPTIONS, **EXTRA}),
    ],
    ids=["by position", "by name"],
)
def test_a_model_call_is_passed_on_unchanged(args, kwargs):
    call = ModelCall.of(answer, *args, **kwargs)
    assert call() == ((X, T, None, CONTEXT, CONTROL, OPTIONS), EXTRA)
    assert list(call.inputs) == ["x", "t", "c_concat", "c_crossattn", "y"] and call.conditionings == [1]


def test_a_call_without_options():
    call = ModelCall.of(answer, X, T)
    assert call() == ((X, T, None, None, None, {}), {})
    assert (call.conditionings, call.replaced_blocks, call.other_attention) == (None, (), None)
    assert not call.wraps_network and call.captured_inputs == call.inputs


def test_more_arguments_than_are_known_are_refused():
    with pytest.raises(ValueError):
        ModelCall.of(answer, *range(7))


def test_an_attention_function_is_added_for_one_call_only():
    options = {"uuids": [1]}
    call = ModelCall.of(answer, X, T, None, None, None, options)
    assert call(answer)[0][-1] == {"uuids": [1], ATTENTION: answer} and options == {"uuids": [1]}


def test_residuals_are_inputs_of_a_captured_call():
    call = ModelCall.of(answer, X, T, control=CONTROL)
    inputs = call.captured_inputs
    assert inputs == call.inputs | {f"{RESIDUAL}output.0": RESIDUALS, f"{RESIDUAL}output.1": None}
    other = torch.ones_like(RESIDUALS)
    args, kwargs = call.on(inputs | {f"{RESIDUAL}output.0": other})()
    assert args[4] == {"output": [other, None]} and kwargs == {} and CONTROL["output"][0] is RESIDUALS


def test_sampling_arguments_by_name_and_of_a_later_version():
    given = OuterSample.of(X, X, "sampler", T, disable_pbar=True, seed=3, latent_shapes=[1])
    assert given.sample(answer) == ((X, X, "sampler", T, None, None, True, 3), {"latent_shapes": [1]})
    assert given.nothing_to_do().notes  # one sigma: no step


def test_a_latent_that_is_not_an_image_is_reported(caplog):
    video = torch.zeros(1, 4, 2, 2, 2)
    assert OuterSample.of(video, video, None, torch.tensor([1.0, 0.0])).nothing_to_do().notes
    assert "the latent is not an image (shape (1, 4, 2, 2, 2))" in caplog.text
    assert OuterSample.of(X, X, None, torch.tensor([1.0, 0.0])).nothing_to_do() is None
