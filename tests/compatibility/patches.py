"""Nodes that change weights or parts of the model: LoRA, ControlNet, attention, noise levels, caches."""

from __future__ import annotations

import inspect
from functools import lru_cache, partial
from typing import Any

import comfy.cldm.mmdit
import comfy.controlnet
import comfy.hooks
import comfy.ops
import torch
from ras_pack.ras_core.host.names import ATTENTION
from ras_pack.ras_core.host.patch import last_trace, patch_model
from support.families import FAMILIES, Family, draw_weights
from support.sampling import distance

from .cells import Result, with_ras, without_ras
from .guidance import EVERY
from .rows import CONFIG, DENSE, NEAR, STEPS, Group, Row, Run, in_turn, ksampler, node, part_of, small

USUAL = tuple(name for name in EVERY if name not in ("flux_fill", "flux_kontext"))
BOTH = ("before", "after")
LORA_LAYERS = ("qkv.weight", "fc1.weight", "w1.weight", "to_q.weight", "linear_1.weight")
FOREIGN = "tests/host/test_foreign_code.py"
CACHES = "tests/host/test_step_caches.py"
COMPILE = "tests/host/test_compile.py"


def lora_of(model: Any, strength: float = 0.4) -> dict[str, tuple]:
    """A LoRA for the model, as weight patches by the names of the weights."""
    generator = torch.Generator().manual_seed(4)
    weights = {name: each for name, each in model.model.state_dict().items() if name.endswith(LORA_LAYERS)}
    return {
        name: (strength * torch.randn(each.shape, generator=generator) * each.float().std(),)
        for name, each in weights.items()
    }


@lru_cache
def _stored_lora(name: str) -> dict[str, tuple]:
    """The LoRA for a family. It is computed from a model without patches."""
    return lora_of(small(FAMILIES[name]))


def lora(model: Any, family: Family, strength: float = 1.0) -> Any:
    model = model.clone()
    model.add_patches(_stored_lora(family.name), strength)
    return model


def lora_on_each_side(family: Family) -> None:
    dense = without_ras(family, Run(in_turn(lora, lora)))
    with torch.inference_mode():
        model = lora(patch_model(lora(small(family), family), CONFIG), family)
        latent = ksampler(model, family, Run())
    assert distance(latent, dense) < NEAR and last_trace(model).regional_steps == STEPS - 2
    assert distance(without_ras(family, Run(lora)), dense) > NEAR


def bypass_lora(model: Any, family: Family) -> Any:
    """A LoRA of rank 4, which ComfyUI adds to each layer's output instead of its weights."""
    load = part_of("comfy.sd", "load_bypass_lora_for_models")
    generator, weights = torch.Generator().manual_seed(4), {}
    for name, weight in small(family).model.state_dict().items():
        if name.endswith(LORA_LAYERS):
            rows, columns = weight.shape
            key = name.removesuffix(".weight")
            weights[f"{key}.lora_up.weight"] = 0.2 * torch.randn(rows, 4, generator=generator)
            weights[f"{key}.lora_down.weight"] = 0.2 * torch.randn(4, columns, generator=generator)
    return load(model, None, weights, 1.0, 0)[0]


def hooked(family: Family, keyframes: tuple[tuple[float, float], ...] = ()) -> dict[str, list]:
    """Prompts; the positive one has its own LoRA. Keyframes are (strength, start_percent)."""
    patches = {f"{name.removesuffix('.weight')}.diff": d for name, (d,) in _stored_lora(family.name).items()}
    group = comfy.hooks.create_hook_lora(patches, 1.0, 1.0)
    if keyframes:
        frames = comfy.hooks.HookKeyframeGroup()
        for strength, start in keyframes:
            frames.add(comfy.hooks.HookKeyframe(strength, start))
        group.set_keyframes_on_hooks(frames)
    return {"positive": comfy.hooks.set_hooks_for_conditioning(family.conditioning(1), group)}


def _sd3_control(name: str) -> torch.nn.Module:
    config = FAMILIES[name].unet_config()
    kept = {key: config[key] for key in config if key not in ("num_blocks", "out_channels")}
    network = comfy.cldm.mmdit.ControlNet(num_blocks=2, operations=comfy.ops.disable_weight_init, **kept)
    draw_weights(network, 8)
    return network


def controlled(family: Family, end: float = 1.0, is_known: bool = True) -> dict[str, list]:
    """Prompts with an SD3 ControlNet of two blocks, ComfyUI's class."""
    cpu = torch.device("cpu")
    control = comfy.controlnet.ControlNet(_sd3_control(family.name), compression_ratio=1, load_device=cpu)
    net = control.set_cond_hint(family.noise(seed=12), 1.0, (0.0, end))
    if not is_known:
        original = net.get_control

        def same_for_all_rows(*args: Any, **kwargs: Any) -> Any:
            given = original(*args, **kwargs)
            return given and {**given, "output": [each.mean(dim=1, keepdim=True) for each in given["output"]]}

        net.get_control = same_for_all_rows
    added = {"control": net, "control_apply_to_uncond": False}
    pairs = (("positive", 1), ("negative", 2))
    return {
        name: [[text, {**extras, **added}] for text, extras in family.conditioning(seed)]
        for name, seed in pairs
    }


def attention(model: Any, family: Family) -> Any:
    """Another attention function with ComfyUI's results, which stores the numbers of rows that it
    received.
    """
    model, rows = model.clone(), []

    def other(func: Any, q: Any, k: Any, v: Any, heads: int, *args: Any, **kwargs: Any) -> Any:
        axis = 2 if kwargs.get("skip_reshape") else 1
        other.rows.append((q.shape[axis], k.shape[axis]))
        return func(q, k, v, heads, *args, **kwargs)

    other.rows = rows
    model.model_options["transformer_options"][ATTENTION] = other
    return model


def _has_seen_the_whole_cache(found: Result) -> None:
    """The other function gets the queries of active tokens, and the keys of all."""
    rows = found.model.model_options["transformer_options"][ATTENTION].rows
    assert any(queries < keys for queries, keys in rows) and max(keys for _, keys in rows) >= 64


def _is_the_same_in_both_orders(found: Result) -> None:
    before = with_ras(found.family, found.run, "before")[0]
    assert torch.equal(found.latent, before)


def merge(model: Any, family: Family) -> Any:
    kind = part_of("comfy_extras.nodes_model_merging", "ModelMergeSimple")
    return kind().merge(model, small(family, seed=7), 0.7)[0]


def skipped_block(number: int) -> Any:
    """As skip-layer guidance in its additional pass."""

    def patch(model: Any, family: Family) -> Any:
        model = model.clone()
        model.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", number)
        return model

    return patch


def _lazy_cache_answers(found: Result) -> None:
    assert len(found.trace.evaluations) < found.run.steps


def _cache(name: str, threshold: float) -> Any:
    return node("comfy_extras.nodes_easycache", name, threshold, 0.15, 0.95, False)


def context_windows(model: Any, family: Family) -> Any:
    """ComfyUI's node, with windows of 8 of 16 rows of the latent."""
    windows = part_of("comfy_extras.nodes_context_windows", "ContextWindowsManualNode").execute
    inputs = {
        "context_length": 8, "context_overlap": 4, "context_schedule": "standard_static", "context_stride": 1,
        "closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": False,
    }  # fmt: skip
    known = inspect.signature(windows).parameters  # an older ComfyUI has fewer
    return windows(model, **{name: inputs[name] for name in inputs if name in known}).args[0]


def _levels(name: str, *inputs: Any) -> Any:
    return node("comfy_extras.nodes_model_advanced", name, *inputs)


GROUP = Group(
    "LoRA, ControlNet, attention and other patches of the model",
    (
        Row(
            "LoRA, before or after RAS Patch Model",
            families=USUAL,
            run=Run(lora),
            orders=BOTH,
            acts=True,
            check=_is_the_same_in_both_orders,
        ),
        Row("two LoRAs, one on each side", cell=lora_on_each_side),
        Row("LoRA in bypass mode", families=("sd3", "flux"), run=Run(bypass_lora), orders=BOTH, acts=True),
        Row(
            "LoRA on one prompt (Create Hook LoRA)",
            families=("sd3", "lumina2"),
            run=Run(prompts=hooked),
            acts=True,
        ),
        Row(
            "LoRA on one prompt, scheduled (Hook Keyframes)",
            families=("flux",),
            run=Run(prompts=partial(hooked, keyframes=((1.0, 0.0), (0.4, 0.3), (0.0, 0.6)))),
        ),
        Row("merged models (ModelMergeSimple)", run=Run(merge), orders=BOTH, acts=True),
        Row(
            "SD3 ControlNet",
            families=("sd3", "sd35_large"),
            run=Run(prompts=controlled),
            acts=True,
        ),
        Row(
            "SD3 ControlNet that ends half-way, batch of two",
            run=Run(prompts=partial(controlled, end=0.5), batch=2),
            acts=True,
        ),
        Row(
            "ControlNet with residuals of an unknown form",
            DENSE,
            run=Run(prompts=partial(controlled, is_known=False)),
            reason="running dense from here",
            note="RAS does not know to which tokens the residuals of this ControlNet belong.",
        ),
        Row(
            "a ControlNet that the model ignores",
            families=(),
            note="The ControlNet itself has no effect; the log says so.",
            test="tests/models/test_features_of_families.py"
            "::test_residuals_of_a_controlnet_that_a_family_ignores",
        ),
        Row(
            "Z-Image Fun ControlNet",
            DENSE,
            ("z_image",),
            note="It patches the blocks of the network, and runs its own blocks in step with them.",
            test=f"{FOREIGN}::TestPatchesOfBlocks::test_comfyuis_z_image_controlnet",
        ),
        Row(
            "attention by another function (for example SageAttention), set before or after",
            families=USUAL,
            run=Run(attention),
            orders=BOTH,
            check=_has_seen_the_whole_cache,
        ),
        Row(
            "attention in another precision",
            test=f"{FOREIGN}::TestAttention::test_of_another_precision",
        ),
        Row(
            "attention whose results are not ComfyUI's",
            DENSE,
            note="With fewer tokens it could give other results, or it keeps results from step to step.",
            test=f"{FOREIGN}::TestAttention::test_that_is_not_comfyuis",
        ),
        Row(
            "attention that needs as many queries as keys",
            DENSE,
            note="A regional step has fewer queries than keys.",
            test=f"{FOREIGN}::TestAttention::test_that_asserts_as_many_queries_as_keys",
        ),
        Row(
            "attention patches on Flux (ToMe, HyperTile, Hypernetworks)",
            DENSE,
            ("flux",),
            note="An attention patch may need all tokens. On other families these nodes have no effect.",
            test="tests/models/test_flux.py::TestPatches::test_patches_of_attention_make_the_run_dense",
        ),
        Row(
            "IP-Adapter, and other patches that add something to the result of a block",
            DENSE,
            note="The added tensor has a row for each token of the whole image.",
            test=f"{FOREIGN}::TestReplacedBlocks::test_that_add_a_residual_for_each_token",
        ),
        Row(
            "USO style rows on Flux",
            families=("flux",),
            test="tests/models/test_flux.py::TestPatches::test_rows_that_a_patch_adds_to_the_text",
        ),
        Row("the first block is skipped", run=Run(skipped_block(0)), acts=True),
        Row("a middle block is skipped", families=("sd35_large",), run=Run(skipped_block(1)), acts=True),
        Row(
            "torch.compile (ComfyUI's node), before or after",
            note="Regional steps run uncompiled, or as CUDA graphs.",
            test=f"{COMPILE}::test_regional_steps_run_and_are_captured_and_a_second_run_compiles_nothing",
        ),
        Row(
            "torch.compile by other nodes, inside the model",
            note="Regional steps run uncompiled, or as CUDA graphs.",
            test=f"{COMPILE}::test_what_other_nodes_compile",
        ),
        Row(
            "copies of the model on several GPUs (MultiGPU)",
            DENSE,
            note="The steps run on several devices at once.",
            test="tests/graphs/test_network_identity.py::"
            "test_copies_attached_to_the_model_are_known_before_the_run",
        ),
        Row("ModelSamplingSD3 (shift)", run=Run(_levels("ModelSamplingSD3", 1.5)), orders=BOTH, acts=True),
        Row(
            "ModelSamplingAuraFlow (shift)",
            families=("lumina2", "z_image"),
            run=Run(_levels("ModelSamplingAuraFlow", 3.0)),
            orders=BOTH,
        ),
        Row(
            "ModelSamplingFlux",
            families=("flux",),
            run=Run(_levels("ModelSamplingFlux", 1.15, 0.5, 1024, 1024)),
            orders=BOTH,
        ),
        Row(
            "ScaleROPE",
            families=("lumina2",),
            run=Run(node("comfy_extras.nodes_rope", "ScaleROPE", 8.0, 3.0, 8.0, 3.0, 1.0, 0.0)),
            orders=BOTH,
            acts=True,
        ),
        Row(
            "LazyCache",
            DENSE,
            ("lumina2", "flux", "sd3"),
            Run(_cache("LazyCacheNode", 1.5), steps=10),
            orders=BOTH,
            reason="LazyCache",
            also="another node answered evaluations",
            check=_lazy_cache_answers,
            note="LazyCache would skip too many steps, because regions that RAS skips do not change.",
        ),
        Row(
            "EasyCache, on all families but SD3",
            DENSE,
            ("lumina2", "z_image", "flux"),
            Run(_cache("EasyCacheNode", 0.2)),
            orders=BOTH,
            reason="EasyCache",
            also="another node answered evaluations",
            note="EasyCache would keep results without the regions that RAS skipped.",
        ),
        Row(
            "EasyCache, on SD3",
            run=Run(_cache("EasyCacheNode", 0.2)),
            orders=BOTH,
            note="EasyCache itself has no effect on SD3.",
        ),
        Row(
            "context windows",
            DENSE,
            ("sd3", "flux"),
            Run(context_windows),
            orders=BOTH,
            reason="area",
            note="The model gets parts of the image, not the whole image.",
        ),
    ),
)
