"""What only some of the families of support/other_families.py have: residuals of ControlNets, masks that the
network makes before its blocks, a guider with two networks, reference images that a conditioning turns off.
"""

from dataclasses import replace

import comfy.controlnet
import comfy.hooks
import comfy.samplers
import pytest
import torch
from models.test_proofs import _call, _network_call
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.errors import RegionalAbort
from ras_pack.ras_core.host.cache_plan import rows_of_cond
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.run.partial_forward import CallContext, NetworkCall
from ras_pack.ras_core.run.references import CHANGED, DENSE_ONLY, OUTDATED
from ras_pack.ras_core.run.regional import IGNORED
from support.families import FAMILIES, Family
from support.other_families import OTHERS
from support.sampling import FAST, distance, sample

FLOAT = 2e-5
EAGER = RASConfig(**{**vars(FAST), "cuda_graphs": "off"})
ACTIVE = torch.arange(1, 64, 3)[None]


def _family(name: str) -> Family:
    return (FAMILIES | OTHERS).get(name) or pytest.skip(f"this ComfyUI has no {name}")


@pytest.mark.parametrize("name", ["chroma", "flux2", "qwen_image_edit", "mage_flow", "hunyuan_image"])
def test_each_token_gets_its_own_residual_of_a_controlnet(name):
    family = _family(name)
    model, x, slots = family.build(), family.noise(), {}
    adapter, inputs = adapter_for(model.model.diffusion_model), family.inputs(model, x)
    generator = torch.Generator().manual_seed(7)
    lists = {
        each: [None, torch.randn(1, 64, family.kv_width, generator=generator)] for each in ("input", "output")
    }
    if len(family.block_attentions) == 2 and "output" in adapter.control_lists:  # one block of each kind
        lists = {each: residuals[1:] for each, residuals in lists.items()}
    control = {each: lists.get(each, []) if each in adapter.control_lists else [] for each in lists}
    t = torch.full((1,), 0.7)

    def call(hooks=None, control=control):
        options = {} if hooks is None else {"optimized_attention_override": hooks.attend}
        given = {
            each: [r if r is None else r.clone() for r in residuals] for each, residuals in control.items()
        }
        if hooks is None:
            return model.model.apply_model(x, t, control=given, transformer_options=options, **inputs)
        with hooks.attached():
            return model.model.apply_model(x, t, control=given, transformer_options=options, **inputs)

    with torch.no_grad():
        plain = _call(model, family, x)
        dense = call(_network_call(model, family, x, slots))
        assert torch.equal(dense, call())
        gathered = adapter.gather_control(control, {}, ACTIVE, 64)
        regional = call(_network_call(model, family, x, slots, ACTIVE), gathered)
    pixels = family.grid(tuple(x.shape[-2:])).active_pixels(ACTIVE).expand_as(dense)
    assert distance(regional[pixels], dense[pixels]) < FLOAT
    assert distance(dense[pixels], plain[pixels]) > 0.01


def test_networks_that_ignore_controlnets_refuse_their_residuals():
    adapters = {name: adapter_for(each.build().model.diffusion_model) for name, each in OTHERS.items()}
    ignoring = {name for name, adapter in adapters.items() if not adapter.control_lists}
    assert ignoring >= OTHERS.keys() & {"krea2", "aura_flow", "hidream", "kandinsky5"}
    for name in ignoring:
        with pytest.raises(RegionalAbort, match="residuals of an unknown kind"):
            adapters[name].gather_control({"input": [torch.zeros(1, 64, 64)]}, {}, ACTIVE, 64)


def test_a_mask_that_the_network_makes_before_its_blocks():
    """HunyuanImage 2.1 masks padding of the text for all queries alike. ComfyUI makes this mask only for one
    image and one prompt, and without a second text.
    """
    family = _family("hunyuan_image")
    model, x, slots = family.build(), family.noise(), {}
    inputs = {name: each for name, each in family.inputs(model, x).items() if name != "txt_byt5"}
    inputs["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    network, t = model.model.diffusion_model, torch.full((1,), 0.7)

    def call(active=None, **changes):
        hooks = NetworkCall(adapter_for(network), network, 64, slots, active, CallContext(inputs))
        with hooks.attached(), torch.no_grad():
            options = {"optimized_attention_override": hooks.attend}
            return model.model.apply_model(x, t, transformer_options=options, **(inputs | changes))

    unmasked, dense = call(attention_mask=None), call()
    pixels = family.grid(tuple(x.shape[-2:])).active_pixels(ACTIVE).expand_as(dense)
    assert distance(unmasked, dense) > 1e-4
    assert distance(call(ACTIVE)[pixels], dense[pixels]) < FLOAT


@torch.inference_mode()
def test_a_network_for_the_positive_and_one_for_the_negative_prompt():
    """Without a negative prompt, the second network of ComfyUI's guider for Ideogram 4 gets no text."""
    family = _family("ideogram4")
    node = pytest.importorskip("comfy_extras.nodes_custom_sampler").DualModelGuider
    noise, found = family.noise(), {}
    for config in (EAGER, RASConfig(sample_ratio=1.0)):
        patched, second = patch_model(family.build(), config), family.build(seed=1)
        guider = node.execute(patched, family.conditioning(1), 4.0, second).result[0]
        sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 10)
        sampler = comfy.samplers.sampler_object("euler")
        empty = torch.zeros_like(noise)
        latent = guider.sample(noise, empty, sampler, sigmas, disable_pbar=True, seed=5)
        found[config] = latent, last_trace(patched)
    (regional, trace), (dense, dense_trace) = found.values()
    assert (trace.regional_steps, trace.notes, dense_trace.regional_steps) == (7, (), 0)
    assert 0.001 < distance(regional, dense) < 1
    n, width, layers = 64, family.kv_width, 2
    assert trace.kv_bytes == 2 * layers * width * 4 * ((n + 7) + n)  # K and V of both networks, in float32


def test_replaced_blocks_of_both_kinds_that_run_the_original():
    """AuraFlow's image rows are the second input of a double layer, and the first of a single layer."""
    family = _family("aura_flow")
    model, noise = family.build(), family.noise()
    replaced, expected = model.clone(), sample(patch_model(model, EAGER), family, noise)
    for kind in ("double_block", "single_block"):
        for number in range(2):
            replaced.set_model_patch_replace(
                lambda args, extra: extra["original_block"](args), "dit", kind, number
            )
    replaced = patch_model(replaced, EAGER)
    latent, trace = sample(replaced, family, noise), last_trace(replaced)
    assert (trace.regional_steps, trace.notes) == (7, ())
    assert torch.equal(latent, expected)


def test_krea_uses_reference_images_only_with_a_method():
    family = _family("krea2")
    model, x = family.build(default_ref_method=None), family.noise()
    network = model.model.diffusion_model
    inputs = family.inputs(model, x)
    adapter = adapter_for(network)
    assert adapter.frozen_rows(network, inputs) == 0
    assert adapter.frozen_rows(network, {**inputs, "ref_latents_method": "index"}) == family.reference_rows
    (context, extras), *_ = family.conditioning(1)
    of_conds = [[context, extras]], [[context, {**extras, "reference_latents_method": "index"}]]
    for prompt, rows in zip(of_conds, (0, family.reference_rows), strict=True):
        planned = rows_of_cond(network, adapter, 64, {"cross_attn": context, **prompt[0][1]})
        assert planned == (7, 0, rows)
        patched = patch_model(model, EAGER)
        sample(patched, family, x, positive=prompt, negative=prompt)
        trace = last_trace(patched)
        assert (trace.regional_steps, trace.notes) == (7, ())
        assert trace.kv_bytes == 2 * 2 * 2 * family.kv_width * 4 * (64 + 7 + rows)  # prompts; blocks; K and V


def test_reference_images_that_only_one_prompt_uses_have_not_changed():
    family = _family("krea2")
    model, x = family.build(default_ref_method=None), family.noise()
    (context, extras), *_ = family.conditioning(1)
    uses = [[context, {**extras, "reference_latents_method": "index"}]]
    patched = patch_model(model, EAGER)
    sample(patched, family, x, positive=uses, negative=family.conditioning(2))
    assert (last_trace(patched).regional_steps, last_trace(patched).notes) == (7, ())


def test_a_patch_between_blocks_makes_the_run_dense():
    """Some ControlNets of Qwen-Image are such patches; they add a residual for every token."""
    family = _family("qwen_image")
    model, seen = family.build(), []

    def patch(given: dict) -> dict:
        seen.append(given["img"].shape[1])
        return given

    patched = model.clone()
    patched.set_model_patch(patch, "double_block")
    if "double_block" not in type(model.model.diffusion_model)._forward.__code__.co_consts:
        pytest.skip("this ComfyUI's Qwen-Image has no such patch")
    patched = patch_model(patched, EAGER)
    sample(patched, family, family.noise())
    assert set(seen) == {64}
    (note,) = last_trace(patched).notes
    assert note.endswith(
        "another node patches the network (double_block), and may rely on the rows of all tokens"
    )


@pytest.mark.parametrize("kv_cache", ["gpu", "fp8", "cpu", "forecast", "forecast2"])
def test_reference_images_in_every_format_of_the_cache(kv_cache):
    family = _family("qwen_image_edit")
    config = RASConfig(start_step=2, error_reset_every=4, cuda_graphs="off", kv_cache=kv_cache, spread=True)
    patched = patch_model(family.build(), config)
    latent, trace = sample(patched, family, family.noise()), last_trace(patched)
    assert (trace.regional_steps, trace.notes) == (7, ())
    expected = sample(family.build(), family, family.noise())
    assert distance(latent, expected) < 1


@pytest.mark.parametrize("name", ["flux_kontext", "flux2", "qwen_image_edit", "mage_flow"])
def test_forecast_errors_are_spread_beside_reference_images(name):
    """Regional steps of 60 % of the tokens give another image with `spread`, and pass every check."""
    latents = []
    for spread in (False, True):
        config = RASConfig(
            sample_ratio=0.6, dense_steps=(3, 5, 7, 9), cuda_graphs="off", kv_cache="forecast", spread=spread
        )
        family = _family(name)
        patched = patch_model(family.build(), config)
        latents.append(sample(patched, family, family.noise()))
        trace = last_trace(patched)
        assert trace.regional_steps >= 3 and not trace.notes
    assert distance(*latents) > 1e-6


EVERY_TOKEN = RASConfig(
    sample_ratio=0.99, start_step=2, error_reset_every=0, corrections=True, cuda_graphs="off"
)
"""Regional steps compute all 64 tokens, so only the reference images' rows can be outdated."""


@pytest.mark.parametrize("name", ["flux_kontext", "flux2", "qwen_image_edit", "mage_flow"])
def test_the_log_says_when_reference_images_were_computed(name):
    family = _family(name)
    without = {
        each: [[context, {key: value for key, value in extras.items() if key != "reference_latents"}]]
        for each, seed in (("positive", 1), ("negative", 2))
        for context, extras in family.conditioning(seed)
    }
    alternating = replace(EVERY_TOKEN, dense_steps=(3, 5, 7, 9))
    cases = [
        (EVERY_TOKEN, {}, (OUTDATED,)),
        (alternating, {}, (DENSE_ONLY,)),
        (EVERY_TOKEN, without, ()),
        (RASConfig(sample_ratio=1.0), {}, ()),
    ]
    for config, prompts, said in cases:
        patched = patch_model(family.build(), config)
        sample(patched, family, family.noise(), **prompts)
        trace = last_trace(patched)
        assert trace.remarks == said and not trace.reason
        assert all(each in trace.summary() for each in said)


@pytest.mark.parametrize("name", ["flux2", "qwen_image_edit"])
def test_reference_images_that_another_node_changes_during_the_run(name):
    family = _family(name)
    model, noise = family.build(), family.noise()
    unchanged = sample(model, family, noise)

    def changed(apply, given):
        c = dict(given["c"])
        if float(given["timestep"].flatten()[0]) < 0.6:
            c["ref_latents"] = [-3 * image for image in c["ref_latents"]]
        return apply(given["input"], given["timestep"], **c)

    model.set_model_unet_function_wrapper(changed)
    expected = sample(model, family, noise)
    patched = patch_model(model, EVERY_TOKEN)
    latent, trace = sample(patched, family, noise), last_trace(patched)
    assert distance(latent, expected) < 0.35 * distance(unchanged, expected)
    assert CHANGED in trace.notes and trace.regional_steps == 7


@pytest.mark.parametrize("name", ["flux2", "qwen_image_edit"])
def test_a_scheduled_lora_changes_the_rows_of_reference_images(name):
    family = _family(name)
    model, noise = family.build(), family.noise()
    generator = torch.Generator().manual_seed(0)
    hook, group, frames = (
        comfy.hooks.WeightHook(1.0),
        comfy.hooks.HookGroup(),
        comfy.hooks.HookKeyframeGroup(),
    )
    hook.need_weight_init = False
    hook.weights = {
        name: ("diff", (1.5 * each.std() * torch.randn(each.shape, generator=generator),))
        for name, each in model.model.state_dict().items()
        if each.ndim == 2 and "block" in name and name.endswith("weight")
    }
    group.add(hook)
    for strength, start in ((1.0, 0.0), (-1.0, 0.5)):
        frames.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
    group.set_keyframes_on_hooks(frames)
    prompts = {
        name: comfy.hooks.set_hooks_for_conditioning(family.conditioning(seed), group)
        for seed, name in ((1, "positive"), (2, "negative"))
    }
    expected = sample(model, family, noise, **prompts)
    patched = patch_model(model, EVERY_TOKEN)
    latent, trace = sample(patched, family, noise, **prompts), last_trace(patched)
    # The rows' modulation by the noise level, too, is that of the last dense call.
    assert distance(latent, expected) < 0.35 * distance(sample(model, family, noise), expected)
    assert CHANGED in trace.notes and trace.regional_steps == 7


def test_layers_of_another_pack_in_blocks_with_rows_in_the_shape_of_the_grid():
    """Quantised layers of other packs replace `forward`. Anima's get rows of shape (b, t, h, w, d)."""
    family = _family("anima")
    model = family.build()
    layer = model.model.diffusion_model.blocks[0].mlp.layer1

    def forward(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(rows, layer.weight)

    layer.forward = forward
    patched = patch_model(model, EAGER)
    sample(patched, family, family.noise())
    assert (last_trace(patched).regional_steps, last_trace(patched).notes) == (7, ())


class Residuals(comfy.controlnet.ControlBase):
    """A ControlNet that adds the same residual to all rows of the first two blocks."""

    def __init__(self, lists, width):
        super().__init__()
        self.lists, self.width = lists, width

    def get_control(self, x, *others):
        some = torch.randn(1, 64, self.width, generator=torch.Generator().manual_seed(1))
        own = {name: [some.expand(len(x), -1, -1).clone()] * 2 for name in self.lists}
        return {"input": [], "middle": [], "output": []} | own

    def copy(self):
        made = Residuals(self.lists, self.width)
        self.copy_to(made)
        return made

    def get_models(self):
        return []


@pytest.mark.parametrize(
    ("name", "lists", "ignored"),
    [
        ("aura_flow", ["input"], "input"),
        ("kandinsky5", ["input"], "input"),
        ("sd3", ["input", "middle"], "input, middle"),
        ("lumina2", ["output"], "output"),
        ("flux", ["input", "middle"], "middle"),
        ("chroma", ["input"], ""),
    ],
)
def test_residuals_of_a_controlnet_that_a_family_ignores(name, lists, ignored):
    """They have no effect, so steps stay regional. Those that have one are gathered."""
    family = _family(name)
    control = Residuals(lists, family.kv_width).set_cond_hint(torch.zeros(1, 3, 64, 64), 1.0, (0.0, 1.0))
    prompts = {
        each: [[context, {**extras, "control": control, "control_apply_to_uncond": True}]]
        for each, seed in (("positive", 1), ("negative", 2))
        for context, extras in family.conditioning(seed)
    }
    patched, noise = patch_model(family.build(), EAGER), family.noise()
    latent, trace = sample(patched, family, noise, **prompts), last_trace(patched)
    assert (trace.regional_steps, trace.notes) == (7, ())
    assert trace.remarks == ((IGNORED.format(ignored),) if ignored else ())
    has_none = set(lists) == set(ignored.split(", "))
    plain = sample(patched, family, noise)
    assert torch.equal(latent, plain) is has_none
    if not has_none:
        expected = sample(family.build(), family, noise, **prompts)
        assert distance(latent, expected) < distance(plain, expected)
