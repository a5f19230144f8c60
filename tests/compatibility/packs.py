"""The ways in which other packs hook into a run, each implemented as these packs do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.models import adapter_for
from support.families import Family

from .rows import DENSE, FAST, Group, Patch, Row, Run

BOTH = ("before", "after")
FOREIGN = "tests/host/test_foreign_code.py"
CACHES = "tests/host/test_step_caches.py::TestWholeEvaluations"
INSIDE = "tests/host/test_step_caches.py::TestInsideTheNetwork"


def function_wrapper(model: Any, family: Family) -> Any:
    """A wrapper of the network's calls that changes the result a little."""
    model = model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, given: 0.8 * apply(given["input"], given["timestep"], **given["c"])
    )
    return model


def post_cfg(model: Any, family: Family) -> Any:
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.8)
    return model


def pre_cfg(model: Any, family: Family) -> Any:
    model = model.clone()
    model.set_model_sampler_pre_cfg_function(lambda args: [each * 0.8 for each in args["conds_out"]])
    return model


def own_cfg(model: Any, family: Family) -> Any:
    """A function that replaces CFG."""
    model = model.clone()
    model.set_model_sampler_cfg_function(lambda args: args["uncond"] + 2.0 * (args["cond"] - args["uncond"]))
    return model


def own_batches(model: Any, family: Family) -> Any:
    """A function that replaces ComfyUI's evaluation of all prompts of a step."""

    def calc(given: dict[str, Any]) -> list:
        names = ("model", "conds", "input", "sigma", "model_options")
        found = comfy.samplers.calc_cond_batch(*(given[name] for name in names))
        return [each * 0.8 for each in found]

    model = model.clone()
    model.model_options["sampler_calc_cond_batch_function"] = calc
    return model


def tiled(model: Any, family: Family) -> Any:
    """A wrapper of model calls that calls the model for the left and the right half of the latent."""

    def halves(apply: Any, given: dict[str, Any]) -> torch.Tensor:
        parts = given["input"].chunk(2, dim=3)
        return torch.cat([apply(part, given["timestep"], **given["c"]) for part in parts], dim=3)

    model = model.clone()
    model.set_model_unet_function_wrapper(halves)
    return model


def wrapper(kind: str) -> Patch:
    """A wrapper of ComfyUI's patcher_extension that changes the result a little."""

    def scaled(executor: Any, *args: Any, **kwargs: Any) -> Any:
        result = executor(*args, **kwargs)
        return [each * 0.8 for each in result] if isinstance(result, list) else result * 0.8

    def patch(model: Any, family: Family) -> Any:
        model = model.clone()
        model.add_wrapper_with_key(kind, "another pack", scaled)
        return model

    return patch


def with_hook(model: Any, family: Family) -> Any:
    """A forward hook on the first main block that adds a number to each token's row."""
    network = model.model.diffusion_model
    made: list[torch.Tensor] = []

    def hook(module: Any, args: Any, output: Any) -> Any:
        parts = list(output) if isinstance(output, tuple) else [output]
        longest = max(range(len(parts)), key=lambda i: parts[i].shape[1])  # the image, not the text
        if not made:
            made.append(torch.full((parts[longest].shape[1], 1), 0.1))
        parts[longest] = parts[longest] + made[0]
        return tuple(parts) if isinstance(output, tuple) else parts[0]

    adapter_for(network).main_blocks(network)[0].register_forward_hook(hook)
    return model


class _NoHandle:
    def remove(self) -> None:
        pass


def ignores_hooks(model: Any, family: Family) -> Any:
    """Compiled code does not run hooks that are added later."""
    network = model.model.diffusion_model
    for block in adapter_for(network).blocks(network):
        block.register_forward_pre_hook = lambda *args, **kwargs: _NoHandle()
    return model


@contextmanager
def guider_of_its_own() -> Iterator[None]:
    """A guider that calls the model without ComfyUI's wrappers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            comfy.samplers.CFGGuider, "__call__",
            lambda self, x, t, model_options, seed: self.predict_noise(x, t, model_options, seed),
        )  # fmt: skip
        yield


def _fast(name: str, patch: Patch, *families: str, **more: Any) -> Row:
    return Row(name, families=families or ("sd3",), run=Run(patch), acts=True, **more)


def _cited(name: str, test: str, note: str, *families: str, outcome: Any = DENSE) -> Row:
    return Row(name, outcome, families or ("sd3",), note=note, test=test)


ROWS = "It may rely on the rows of all tokens."
KEEPS = "It may keep results of regional steps, which lack the cached tokens."
GROUP = Group(
    "Other packs: how they hook into a run",
    (
        _fast(
            "a wrapper of model calls (`set_model_unet_function_wrapper`)",
            function_wrapper,
            "sd3",
            "flux",
            orders=BOTH,
        ),
        Row(
            "tiled diffusion: a wrapper that calls the model for parts of the image",
            DENSE,
            ("sd3", "lumina2"),
            Run(tiled),
            orders=BOTH,
            reason="tiling",
            note="The model gets parts of the image, not the whole image.",
        ),
        _fast("a function after CFG (`post_cfg`)", post_cfg, "lumina2", orders=BOTH),
        _fast("a function before CFG (`pre_cfg`)", pre_cfg, "sd3", orders=BOTH),
        _fast("a function in place of CFG (`sampler_cfg_function`)", own_cfg, "flux", orders=BOTH),
        _fast(
            "a function that evaluates the prompts (`sampler_calc_cond_batch_function`)",
            own_batches,
            "lumina2",
            orders=BOTH,
        ),
        _fast(
            "wrapper APPLY_MODEL",
            wrapper(WrappersMP.APPLY_MODEL),
            "sd35_large",
            note="Added to the model before sampling.",
        ),
        _fast("wrapper CALC_COND_BATCH", wrapper(WrappersMP.CALC_COND_BATCH), "sd3", orders=BOTH),
        _fast("wrapper PREDICT_NOISE", wrapper(WrappersMP.PREDICT_NOISE), "lumina_next", orders=BOTH),
        _cited(
            "wrapper SAMPLER_SAMPLE that keeps a part of the noise levels, with a speed",
            "tests/host/test_guiders.py::TestSamplingTwice"
            "::test_a_wrapper_of_the_sampler_that_cuts_noise_levels_by_index",
            "The run has other steps than the plan. The sampler's own noise levels are kept.",
        ),
        _fast("wrapper SAMPLER_SAMPLE", wrapper(WrappersMP.SAMPLER_SAMPLE), "sd3", orders=BOTH),
        _fast("wrapper OUTER_SAMPLE", wrapper(WrappersMP.OUTER_SAMPLE), "flux", orders=BOTH),
        Row(
            "wrapper DIFFUSION_MODEL on Lumina 2, Z-Image and Flux",
            DENSE,
            ("lumina2", "z_image", "flux"),
            Run(wrapper(WrappersMP.DIFFUSION_MODEL)),
            reason="wraps the network",
            orders=BOTH,
            note="It sees the network's result before RAS completes it.",
        ),
        _cited(
            "a wrapper that is added after RAS has started",
            f"{FOREIGN}::TestWrappersInside::test_a_wrapper_of_the_models_calls",
            "It sees the network's result before RAS completes it.",
        ),
        _cited(
            "a replaced function of ComfyUI's model",
            f"{FOREIGN}::TestWrappersInside::test_a_replaced_function_of_the_model",
            "It sees the network's result before RAS completes it.",
        ),
        Row(
            "a guider that calls the model without ComfyUI's wrappers",
            DENSE,
            ("sd3", "lumina2"),
            Run(around=guider_of_its_own),
            reason="nothing was accelerated",
            note="RAS gets no control over this guider's calls.",
        ),
        Row(
            "a hook that adds a residual to each token",
            DENSE,
            ("sd3", "sd35_medium", "lumina2", "z_image", "lumina_next", "flux"),
            Run(with_hook),
            reason="another node's hook changes rows",
            orders=("before",),
            note=ROWS,
        ),
        _cited(
            "a hook that changes rows in any other way",
            f"{FOREIGN}::TestHooks::test_any_change_of_rows",
            ROWS,
        ),
        _cited("a hook that only reads rows", f"{FOREIGN}::TestHooks::test_an_observer", "", outcome=FAST),
        _cited(
            "a hook that expects as many rows as in dense steps",
            f"{FOREIGN}::TestHooks::test_an_observer_that_asserts_the_number_of_rows",
            "It fails in the first regional step. The whole run is as without RAS.",
        ),
        _cited(
            "a hook that is added during the run",
            f"{FOREIGN}::TestHooks::test_hooked_later_in_the_run",
            "Steps are regional until then, and dense afterwards.",
            outcome=FAST,
        ),
        Row(
            "an engine that ignores hooks (for example TensorRT)",
            DENSE,
            ("sd3", "lumina2", "flux"),
            Run(ignores_hooks),
            reason="running dense from here",
            note="RAS cannot shorten the calls of such an engine.",
        ),
        _cited(
            "a block patch that keeps state",
            f"{FOREIGN}::TestPatchesOfBlocks::test_with_state_through_a_call",
            ROWS,
            "lumina2",
        ),
        _cited(
            "a layer that is wrapped in another module",
            f"{FOREIGN}::TestReplacedModules::test_a_layer",
            "The new module may rely on the rows of all tokens.",
            "sd3",
            "sd35_large",
            "sd35_medium",
            "lumina2",
            "z_image",
            "lumina_next",
            "flux",
        ),
        _cited(
            "the whole network replaced by another module",
            f"{FOREIGN}::TestReplacedModules::test_the_whole_network",
            "RAS does not know this network.",
        ),
        _cited(
            "a replaced function of a layer that computes each row independently",
            f"{FOREIGN}::TestReplacedFunctions::test_that_compute_each_row_alone",
            "",
            outcome=FAST,
        ),
        _cited(
            "a replaced function of a layer that needs all rows or keeps state",
            f"{FOREIGN}::TestReplacedFunctions::test_that_need_all_rows_or_keep_state",
            ROWS,
        ),
        _cited(
            "a replaced forward function of the network or of a block",
            f"{FOREIGN}::TestReplacedFunctions::test_of_the_network_or_a_block",
            ROWS,
            "lumina2",
        ),
        _cited(
            "a block replacement that only runs or skips the block",
            f"{FOREIGN}::TestReplacedBlocks::test_that_skip_or_run_the_block",
            "",
            outcome=FAST,
        ),
        _cited(
            "a block replacement that changes rows in place",
            f"{FOREIGN}::TestReplacedBlocks::test_that_change_rows_in_place",
            ROWS,
        ),
        _cited(
            "all blocks replaced",
            f"{FOREIGN}::TestReplacedBlocks::test_all_of_them",
            "No block of the network runs.",
        ),
        _cited(
            "an attention function that ignores overrides",
            f"{FOREIGN}::TestAttention::test_a_function_that_runs_no_override",
            "Active tokens would attend only to each other.",
        ),
        _cited(
            "calls from several threads",
            f"{FOREIGN}::test_calls_in_threads_of_another_pack",
            "The order of a step's calls is not known.",
        ),
        _cited(
            "a step cache that skips whole evaluations",
            f"{CACHES}::test_they_do_not_count",
            "Steps that it skips count neither as dense nor as regional. All regions are still computed.",
            outcome=FAST,
        ),
        _cited(
            "a step cache that skips the evaluation of one of two prompts",
            f"{CACHES}::test_one_prompt_of_two",
            "That prompt's next evaluation is dense.",
            outcome=FAST,
        ),
        _cited(
            "a step cache that skips every regional step",
            f"{CACHES}::test_a_cache_that_answers_every_regional_step_is_the_reason",
            "The cache leaves no steps for RAS.",
        ),
        _cited(
            "a step cache around the network", f"{INSIDE}::test_diffusion_model_wrapper", KEEPS, "lumina2"
        ),
        _cited(
            "a step cache that skips blocks",
            f"{INSIDE}::test_patches_that_replace_blocks",
            KEEPS,
            "sd3",
            "flux",
        ),
        _cited(
            "a step cache with all blocks in one module",
            f"{INSIDE}::test_blocks_in_one_module_for_the_time_of_a_call",
            KEEPS,
            "lumina2",
        ),
        _cited("a step cache that skips attentions", f"{INSIDE}::test_attention_override", KEEPS),
    ),
    "The tests imitate the nodes of other packs, one for each way in which such nodes hook into a run.",
)
