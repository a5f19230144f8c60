"""What happens to a model and its memory over several runs, and in runs that fail."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import pytest
import torch
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.kv import update as kv
from ras_pack.ras_core.models import adapter_for
from support.families import Family
from support.sampling import sample, unload_all_models

from .cells import with_ras, without_ras
from .guidance import EVERY
from .patches import lora
from .rows import CONFIG, DENSE, STEPS, Group, Row, Run, small

PROOFS = "tests/models/test_proofs.py"
KV = "tests/kv/test_kv_cache.py"


def _sampled(model: Any, family: Family, **more: Any) -> torch.Tensor:
    return sample(model, family, family.noise(), steps=STEPS, **more)


def _hooks(model: Any) -> int:
    modules = model.model.diffusion_model.modules()
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules)


def ends_by(error: type[BaseException]) -> Callable[[Family], None]:
    """The run ends with this error after any step. The next run is the same as with a fresh model."""

    def cell(family: Family) -> None:
        expected, _ = with_ras(family, Run())
        model = small(family)
        patched = patch_model(model, CONFIG)
        for last in range(STEPS):

            def end(step: int, *_: Any, last: int = last) -> None:
                if step == last:
                    raise error("planted")

            with pytest.raises(error):
                _sampled(patched, family, callback=end)
            assert _hooks(model) == 0
        assert torch.equal(_sampled(patched, family), expected)
        assert last_trace(patched).regional_steps == STEPS - 2

    return cell


def fails_in_a_call(family: Family) -> None:
    """An error inside the network ends the run, in a dense call and in the last regional one."""
    model = small(family)
    patched, network = patch_model(model, CONFIG), model.model.diffusion_model
    for number in (1, STEPS):
        calls: list[int] = []

        def fail(module: Any, args: Any, calls: list[int] = calls, number: int = number) -> None:
            calls.append(1)
            if len(calls) == number:
                raise MemoryError("planted")

        handle = adapter_for(network).final_layer(network).register_forward_pre_hook(fail)
        with pytest.raises(MemoryError, match="planted"):
            _sampled(patched, family)
        handle.remove()
        assert _hooks(model) == 0
    assert torch.equal(_sampled(patched, family), with_ras(family, Run())[0])


def unloaded_between(family: Family) -> None:
    latent, model = with_ras(family, Run())
    unload_all_models()
    assert torch.equal(_sampled(model, family), latent)


def lora_is_removed(family: Family) -> None:
    """With the LoRA removed, the result is that of the model without it."""
    model = small(family)
    plain = patch_model(model, CONFIG)
    first = _sampled(plain, family)
    assert not torch.equal(_sampled(lora(plain, family), family), first)
    unload_all_models()
    assert torch.equal(_sampled(plain, family), first)


def many_runs(family: Family) -> None:
    """12 runs are the same, and memory does not grow."""
    model, noise, counts = patch_model(small(family), CONFIG), family.noise(8, 8), []
    first = sample(model, family, noise, steps=3, cfg=1.0)
    for number in range(1, 12):
        assert torch.equal(sample(model, family, noise, steps=3, cfg=1.0), first)
        if number in (1, 11):
            gc.collect()
            alive = [each for each in gc.get_objects() if type(each) is torch.Tensor]
            counts.append(sum(each.nbytes for each in alive))
    assert counts[1] - counts[0] < 10 * 1024  # the kept data of ten traces is smaller


def with_and_without_in_turn(family: Family) -> None:
    """Each of the two models gives its own result, whatever the other did before."""
    model = small(family)
    patched = patch_model(model, CONFIG)
    expected = without_ras(family, Run()), with_ras(family, Run())[0]
    for each, latent in zip((model, patched, model, patched), expected * 2, strict=True):
        assert torch.equal(_sampled(each, family), latent)


def without_memory(function: str) -> Callable[[], Any]:
    """The device has no memory for the cache when it is filled, or in a regional call."""

    @contextmanager
    def around() -> Iterator[None]:
        def full(*args: Any) -> None:
            raise comfy.model_management.OOM_EXCEPTION("planted")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kv, function, full)
            yield

    return around


MEMORY = {"reason": "not enough memory", "note": "The K/V cache does not fit in memory."}

GROUP = Group(
    "Several runs, and runs that fail",
    (
        Row(
            "the same run again",
            families=EVERY,
            note="The image is identical.",
            test=f"{PROOFS}::TestLifeCycle::test_second_run_and_changed_size_equal_a_fresh_model",
        ),
        Row(
            "cancelled after any step",
            families=("sd3", "lumina2"),
            cell=ends_by(comfy.model_management.InterruptProcessingException),
            note="The next run is identical to one with a fresh model.",
        ),
        Row(
            "an error of another node after any step",
            families=("flux",),
            cell=ends_by(RuntimeError),
            note="The next run is identical to one with a fresh model.",
        ),
        Row(
            "an error inside the network, in a dense or a regional step",
            families=("sd3",),
            cell=fails_in_a_call,
            note="The next run is identical to one with a fresh model.",
        ),
        Row(
            "models are unloaded between two runs",
            families=("sd3", "flux"),
            cell=unloaded_between,
            note="The image is identical.",
        ),
        Row(
            "a LoRA is added and removed again",
            families=("sd3", "lumina2", "flux"),
            cell=lora_is_removed,
            note="The image is identical to the one before.",
        ),
        Row(
            "a model with RAS and one without, alternating",
            families=("sd3", "lumina_next"),
            cell=with_and_without_in_turn,
            note="The model without RAS gives the image without RAS.",
        ),
        Row(
            "two branches of one workflow with different settings",
            families=EVERY,
            test=f"{PROOFS}::TestLifeCycle::test_two_branches_of_one_graph_are_independent",
        ),
        Row(
            "two passes of one model (hires fix)",
            note="Each pass has its own trace.",
            test="tests/nodes/test_trace.py::TestWhoseTrace::test_two_passes_of_one_model",
        ),
        Row(
            "two RAS nodes in a row",
            families=EVERY,
            note="The settings of the later node apply.",
            test=f"{PROOFS}::TestLifeCycle::test_the_last_of_two_patches_takes_effect",
        ),
        Row("many runs in a row", families=("sd3",), cell=many_runs, note="Memory does not grow."),
        Row(
            "memory after a run",
            families=EVERY,
            note="The K/V cache is freed when the run ends.",
            test=f"{PROOFS}::TestLifeCycle::test_no_memory_is_held_after_a_run",
        ),
        Row(
            "too little memory at the start",
            DENSE,
            ("sd3", "z_image", "lumina_next"),
            Run(around=without_memory("fill")),
            **MEMORY,
        ),
        Row(
            "memory runs out in a regional step",
            DENSE,
            ("lumina2", "flux", "sd35_medium"),
            Run(around=without_memory("update")),
            **MEMORY,
        ),
        Row(
            "no format of the K/V cache fits",
            DENSE,
            EVERY,
            note="The K/V cache does not fit in memory.",
            test=f"{KV}::TestAuto::test_the_first_form_that_fits_is_used",
        ),
    ),
)
