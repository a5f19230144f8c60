"""The CPU work of the pack's own code in a regional step without CUDA graphs."""

import statistics
from itertools import pairwise

import comfy.ldm.flux.math
import comfy.ldm.lumina.model
import comfy.ldm.modules.attention as host_attention
import comfy.ldm.modules.diffusionmodules.mmdit
import pytest
import ras_pack.lumina_next.network
import torch
from ras_pack.bench.profile import eager_run
from ras_pack.bench.profile.counts import Counts, OperationCounter, counted_functions
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host.attention import grouped_attention
from ras_pack.ras_core.host.names import ATTENTION
from ras_pack.ras_core.host.patch import patch_model
from ras_pack.ras_core.kv.formats import keeper
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.rows import Scratch
from ras_pack.ras_core.run import grouped_attention as grouped
from ras_pack.ras_core.run.partial_forward import CallContext, NetworkCall
from support.families import FAMILIES, Family

DEPTHS = (3, 5)
SINGLE = "depth_single_blocks"
DEPTH = {
    "SD3": "num_blocks",
    "Lumina2": "n_layers",
    "ZImage": "n_layers",
    "Flux": SINGLE,
    "FluxInpaint": SINGLE,
}
"""What a family's configuration calls the number of its main blocks; the pack's own says num_layers."""

Bound = tuple[float, float, float]
"""PyTorch operations: all, those that launch work on the device, and those that allocate."""

OF_AN_ATTENTION: dict[str, Bound] = {"gpu": (8, 2, 0), "fp8": (58, 24, 8), "forecast": (45, 24, 18)}
"""Cost of an attention by form of the cache, without Triton; every second attention judges a forecast."""

OF_A_CALL: dict[str, Bound] = {"gpu": (55, 12, 10), "fp8": (71, 16, 14), "forecast": (112, 36, 34)}
"""Additional cost of a call, partly because an older ComfyUI passes a mask to the image refiners."""


@pytest.fixture(autouse=True)
def _pytorch_attention(monkeypatch):
    """Make the networks use PyTorch's attention, as on a GPU. With ComfyUI's other attention functions,
    shared K/V heads would have to be repeated.
    """
    function = host_attention.attention_pytorch
    monkeypatch.setattr(comfy.ldm.modules.diffusionmodules.mmdit, "optimized_attention", function)
    monkeypatch.setattr(comfy.ldm.lumina.model, "optimized_attention_masked", function)
    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", function)
    monkeypatch.setattr(ras_pack.lumina_next.network, "optimized_attention", function)


@torch.inference_mode()
def _calls(family: Family, format_name: str, depth: int) -> tuple[Counts, Counts]:
    """Count the operations of a regional call with 16 of 64 active tokens, and those of a call by ComfyUI
    alone on an image of 16 tokens.
    """
    name = DEPTH.get(family.model_class, "num_layers")
    model = family.build(**{name: depth})
    network, slots = model.model.diffusion_model, {}
    active = torch.arange(0, 64, 4)[None]
    counted, inputs = OperationCounter(), family.inputs(model, family.noise(16, 16))
    for sigma, tokens in ((0.9, None), (0.8, None), (0.7, active), (0.6, active)):
        level = torch.full((1,), sigma) if format_name == "forecast" else None
        context = CallContext(inputs, sigma=level, keep=keeper(format_name), grouped=grouped_attention())
        call = NetworkCall(adapter_for(network), network, 64, slots, tokens, context)
        with call.attached():
            _apply(model, family, 16, {ATTENTION: call.attend}, sigma, counted if sigma == 0.6 else None)
    assert call.gathered
    alone = OperationCounter()
    _apply(model, family, 8, {}, 0.7, alone)
    return counted.counts, alone.counts


def _apply(model, family: Family, side: int, options: dict, sigma: float, counter=None) -> None:
    x = family.noise(side, side)
    ready = family.inputs(model, x)
    with counter or OperationCounter():
        model.model.apply_model(x, torch.full((1,), sigma), transformer_options=options, **ready)


@pytest.mark.parametrize("format_name", OF_AN_ATTENTION)
def test_a_call_and_each_of_its_attentions_stay_within_their_costs(family, format_name):
    """The work is counted for networks of two depths. The difference is the work of the additional
    attentions; what remains is the work of the call itself.
    """
    (shallow, host_shallow), (deep, host_deep) = (_calls(family, format_name, depth) for depth in DEPTHS)
    of_one = ((deep - shallow) - (host_deep - host_shallow)) / (DEPTHS[1] - DEPTHS[0])
    besides = shallow - host_shallow - of_one * sum(family.block_attentions)
    for found, bound in ((of_one, OF_AN_ATTENTION), (besides, OF_A_CALL)):
        numbers = found.operations, found.kernels, found.allocations
        assert all(n <= most for n, most in zip(numbers, bound[format_name], strict=True)), numbers


def test_support_for_grouped_heads_is_checked_once_per_form(monkeypatch):
    """Whether attention supports grouped heads is checked once per call for each form of attention, not in
    each layer: the check takes six operations, and all layers have the same result.
    """
    asked, ask = [], grouped._same_kernel
    monkeypatch.setattr(grouped, "_same_kernel", lambda *tensors: asked.append(1) or ask(*tensors))
    _calls(FAMILIES["lumina2"], "gpu", 4)
    assert len(asked) == 4  # of image refiners and of main blocks, in each of two regional calls


def test_inputs_of_attentions_are_allocated_once_per_call(monkeypatch):
    places, taken = [], Scratch._taken
    monkeypatch.setattr(Scratch, "_taken", lambda *args: places.append(args[1]) or taken(*args))
    _calls(FAMILIES["sd3"], "fp8", 5)
    assert places == [0, 1, 0, 1]  # keys and values, in each of two regional calls


def test_each_kind_of_work_is_counted():
    a = torch.ones(4)
    with OperationCounter() as counter:
        a.view(2, 2)
        a.add_(1)
        a + 1
    assert (counter.counts.operations, counter.counts.kernels, counter.counts.allocations) == (3, 2, 1)
    with counted_functions() as found:
        (lambda: len([]))()
    assert found["call"] >= 1 and found["c_call"] >= 1


@torch.inference_mode()
def _python_calls(model, shape) -> list[float]:
    """The number of calls of Python functions in each step of a run but the first."""
    runner = eager_run.Runner(shape, model, eager_run.SIDE)
    runner.run(lambda: None)  # what is found out once in a process, is
    with counted_functions() as found:
        marks = runner.run(lambda: found["call"])
    return [after - before for before, after in pairwise(marks)]


def test_the_pack_makes_few_python_calls_of_its_own():
    """A walk through all modules of a network of this depth takes 3000 calls, if PyTorch's own is used."""
    shape = eager_run.narrow("sd3_medium")
    model = shape.build(torch.device("cpu"))
    config = RASConfig(sample_ratio=0.25, start_step=4, error_reset_every=4, cuda_graphs="off")
    plain, ras = _python_calls(model, shape), _python_calls(patch_model(model, config), shape)
    usual = statistics.median(plain)
    regional, dense = ras[5], ras[7]  # after a regional step; dense, for the error reset in step 8
    assert regional < 1.3 * usual and usual < dense < 1.9 * usual, (usual, ras[1:])
