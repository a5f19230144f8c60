"""What only Flux.1 has: text rows that join the image rows after half of the blocks, attention masks with a
row per query, and reference images."""

import comfy.ldm.flux.model
import comfy.ops
import pytest
import torch
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.errors import RASError, RegionalAbort
from ras_pack.ras_core.host import cache_plan
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.models.base import REFERENCES
from ras_pack.ras_core.run.partial_forward import CallContext, NetworkCall
from support.families import FAMILIES
from support.sampling import FAST, distance, sample, sample_ras
from torch.utils.flop_counter import FlopCounterMode

FLOAT = 2e-5
TEXT, TOKENS = 7, 64
EAGER = RASConfig(**{**vars(FAST), "cuda_graphs": "off"})
FLUX1_DEV = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
    "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56],
    "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


@pytest.fixture
def flux():
    return FAMILIES["flux"]


@pytest.fixture(params=["flux", "flux_kontext"])
def with_references(request):
    return FAMILIES[request.param]


def _network(config: dict, device: str = "meta"):
    known = comfy.ldm.flux.model.FluxParams.__dataclass_fields__
    given = {name: value for name, value in config.items() if name in known}
    return comfy.ldm.flux.model.Flux(
        dtype=torch.bfloat16, device=device, operations=comfy.ops.disable_weight_init, **given
    )


class TestOtherNetworks:
    """Other models use ComfyUI's class Flux too. The network's parameters tell them from Flux.1."""

    @pytest.mark.parametrize(
        "traits",
        [
            {"patch_size": 1},
            {"vec_in_dim": None},
            {"txt_ids_dims": [1, 2]},
            {"yak_mlp": True},
            {"txt_norm": True},
            {"global_modulation": True, "mlp_silu_act": True},
            {"patch_size": 1, "vec_in_dim": None, "global_modulation": True},
        ],
        ids=str,
    )
    def test_a_variant_with_any_other_trait_is_refused(self, traits):
        known = comfy.ldm.flux.model.FluxParams.__dataclass_fields__
        if not traits.keys() <= known.keys():
            pytest.skip("this ComfyUI's Flux has no such parameter")
        small = {**FLUX1_DEV, "depth": 1, "depth_single_blocks": 1}
        adapter_for(_network(small))
        with pytest.raises(RASError, match="is a Flux that is neither Flux.1 nor Flux.2 .*not supported"):
            adapter_for(_network({**small, **traits}))

    def test_another_class_with_the_same_blocks_is_refused(self):
        """Chroma Radiance derives from Chroma, but computes each pixel from the pixels around it."""
        module = pytest.importorskip("comfy.ldm.chroma_radiance.model")
        radiance = type("ChromaRadiance", (torch.nn.Module,), {"__module__": module.__name__})
        assert module.ChromaRadiance.__qualname__ == "ChromaRadiance"
        with pytest.raises(RASError, match=r"ChromaRadiance \(comfy.ldm.chroma_radiance.model\), which"):
            adapter_for(radiance())

    def test_a_second_network_of_another_variant_makes_the_run_dense(self, flux, monkeypatch):
        """A guider uses two models of the class Flux, but of different variants. The adapter is chosen for
        the first model and does not fit the second, so the run is dense.
        """
        model, noise = flux.build(), flux.noise()
        patched = patch_model(model, EAGER)
        with monkeypatch.context() as patch:
            patch.setattr(
                type(adapter_for(model.model.diffusion_model)), "unsupported", lambda self, network: "other"
            )
            sample(patched, flux, noise)
        (note,) = last_trace(patched).notes
        assert "a network of another family (Flux)" in note

    def test_schnell_has_no_guidance(self, flux):
        model, noise = flux.build(guidance_embed=False), flux.noise()
        latent, trace = sample_ras(model, flux, noise, cfg=1.0)
        assert trace.regional_steps == 7 and not trace.notes
        assert distance(latent, sample(model, flux, noise, cfg=1.0)) > 0.01


class TestMask:
    """The attention mask of ComfyUI's ApplyStyleModel with `attn_bias` (Redux): a bias for each pair of query
    and key, where text rows precede image rows.
    """

    def _conditioning(self, family, rows):
        context, extras = family.conditioning(1)[0]
        bias = torch.randn(1, rows, rows, generator=torch.Generator().manual_seed(9))
        return [[context, {**extras, "attention_mask": bias, "attention_mask_img_shape": (8, 8)}]]

    @pytest.mark.parametrize("batch", [1, 2])
    def test_each_query_keeps_its_own_row(self, with_references, batch):
        family = with_references
        model, adapter = family.build(), adapter_for(family.build().model.diffusion_model)
        network, rows = model.model.diffusion_model, TEXT + TOKENS + family.reference_rows
        context, extras = self._conditioning(family, rows)[0]
        inputs = {
            "context": context.expand(batch, -1, -1), "y": extras["pooled_output"].expand(batch, -1),
            "timestep": torch.full((batch,), 0.7), "guidance": torch.full((batch,), 3.5),
            "attention_mask": extras["attention_mask"],
        }  # fmt: skip
        if family.references:
            references = [each.expand(batch, -1, -1, -1) for each in extras["reference_latents"]]
            inputs[REFERENCES] = references
        x, slots = family.noise(batch=batch), {}

        @torch.no_grad()
        def call(active=None, **changes):
            hooks = NetworkCall(adapter, network, TOKENS, slots, active, CallContext(inputs | changes))
            with hooks.attached():
                options = {"optimized_attention_override": hooks.attend}
                return network(x, **(inputs | changes), transformer_options=options)

        unmasked, dense = call(attention_mask=None), call()
        assert distance(unmasked, dense) > 0.01
        active = torch.stack(
            [torch.randperm(TOKENS, generator=torch.Generator().manual_seed(i))[:21] for i in range(batch)]
        )
        pixels = TokenGrid((16, 16), (2, 2)).active_pixels(active).expand_as(dense)
        assert distance(call(active)[pixels], dense[pixels]) < FLOAT

    @pytest.mark.parametrize("kv_cache", ["gpu", "off"])
    def test_a_run_with_a_mask_stays_regional(self, flux, kv_cache):
        config = RASConfig(**{**vars(EAGER), "kv_cache": kv_cache})
        conditioning = self._conditioning(flux, TEXT + TOKENS)
        _, trace = sample_ras(flux.build(), flux, flux.noise(), config, positive=conditioning)
        assert trace.regional_steps == 7 and not trace.notes


class TestPatches:
    @pytest.mark.parametrize("kind", ["attn1_patch", "attn1_output_patch"])
    def test_patches_of_attention_make_the_run_dense(self, flux, kind):
        model, noise = flux.build(), flux.noise()
        patched = model.clone()
        patched.set_model_patch(lambda q, *args, **kwargs: {} if kind == "attn1_patch" else q, kind)
        latent, trace = sample_ras(patched, flux, noise)
        assert torch.equal(latent, sample(model, flux, noise))
        assert trace.notes == (
            "running dense from here: another node patches the attentions, and its patch may rely on the "
            "rows of all tokens",
        )

    def test_replaced_blocks_that_run_the_original(self, flux):
        model, noise = flux.build(), flux.noise()
        expected, _ = sample_ras(model, flux, noise, EAGER)
        patched = model.clone()
        for kind in ("double_block", "single_block"):
            for number in range(2):
                patched.set_model_patch_replace(
                    lambda args, more: more["original_block"](args), "dit", kind, number
                )
        latent, trace = sample_ras(patched, flux, noise, EAGER)
        assert trace.regional_steps == 7 and not trace.notes
        assert torch.equal(latent, expected)

    def test_rows_that_a_patch_adds_to_the_text(self, flux):
        """The USO patch adds style rows before the text rows. The adapter counts all rows before the image,
        so these rows are handled like text.
        """
        patched = flux.build().clone()

        def add(args):
            zeros = torch.zeros_like(args["txt_ids"][:, :3])
            return {
                **args, "txt": torch.cat((args["txt"][:, :3] * 0.5, args["txt"]), 1),
                "txt_ids": torch.cat((zeros, args["txt_ids"]), 1),
            }  # fmt: skip

        patched.set_model_patch(add, "post_input")
        if "post_input" not in comfy.ldm.flux.model.Flux.forward_orig.__code__.co_consts:
            pytest.skip("this ComfyUI's Flux has no such patch")
        full, _ = sample_ras(patched, flux, flux.noise(), RASConfig(**{**vars(EAGER), "sample_ratio": 1.0}))
        assert distance(full, sample(flux.build(), flux, flux.noise())) > 0.001
        _, trace = sample_ras(patched, flux, flux.noise(), EAGER)
        assert trace.regional_steps == 7 and not trace.notes

    def test_a_controlnet_and_a_replaced_first_block(self, flux):
        """Rows of inactive tokens are removed in the first block. If a patch replaces this block, the first
        ControlNet residual would be added to the rows of all tokens, so the adapter refuses.
        """
        adapter = adapter_for(flux.build().model.diffusion_model)
        options = {"patches_replace": {"dit": {("double_block", 0): None}}}
        control = {"input": [torch.zeros(1, TOKENS, 128)]}
        with pytest.raises(RegionalAbort, match="replaces the first block"):
            adapter.gather_control(control, options, torch.tensor([[1]]), TOKENS)


class TestReferences:
    def test_the_planned_cache_has_their_rows(self, with_references, monkeypatch):
        needed = []

        def spy(*args):
            needed.append(original(*args))
            return needed[-1]

        original = cache_plan.cache_needs
        monkeypatch.setattr(cache_plan, "cache_needs", spy)
        family = with_references
        _, trace = sample_ras(family.build(), family, family.noise(), EAGER)
        assert trace.kv_bytes == needed[0].on_device("gpu")
        rows = TOKENS + TEXT + family.reference_rows
        assert trace.kv_bytes == 2 * rows * 2 * 5 * 128 * 4  # branches; K and V; blocks; width; bytes

    def test_they_are_read_from_the_cache_of_the_last_dense_step(self):
        """If the cached keys and values of their rows change, so does the output of a regional call."""
        family = FAMILIES["flux_kontext"]
        model, x = family.build(), family.noise()
        network, context = model.model.diffusion_model, CallContext(family.inputs(model, x))
        given = family.inputs(model, x)
        inputs = {"timestep": torch.tensor([0.7]), "context": given.pop("c_crossattn"), **given}
        slots, outputs = {}, []
        for active in (None, torch.arange(0, TOKENS, 3)[None], torch.arange(0, TOKENS, 3)[None]):
            call = NetworkCall(adapter_for(network), network, TOKENS, slots, active, context)
            with call.attached(), torch.no_grad():
                options = {"optimized_attention_override": call.attend}
                outputs.append(network(x, **inputs, transformer_options=options))
            assert call.frozen_rows == family.reference_rows == 39
            for rows in slots.values():
                rows.value[:, -39:] *= len(outputs)  # unchanged after the dense call
        dense, regional, changed = outputs
        pixels = TokenGrid((16, 16), (2, 2)).active_pixels(active).expand_as(dense)
        assert distance(regional[pixels], dense[pixels]) < FLOAT
        assert distance(changed[pixels], dense[pixels]) > 0.01

    def test_without_a_cache_the_run_is_dense(self):
        family = FAMILIES["flux_kontext"]
        config = RASConfig(**{**vars(EAGER), "kv_cache": "off"})
        latent, trace = sample_ras(family.build(), family, family.noise(), config)
        assert trace.notes == ("running dense from here: a run with reference images needs a K/V cache",)
        assert torch.equal(latent, sample(family.build(), family, family.noise()))

    def test_they_count_as_work_of_dense_steps(self):
        """The rows of reference images are computed at dense steps only, so the expected speed-up is larger
        than without them.
        """
        plain, kontext = (
            sample_ras(FAMILIES[name].build(), FAMILIES[name], FAMILIES[name].noise(), EAGER)[1]
            for name in ("flux", "flux_kontext")
        )
        assert kontext.token_share == plain.token_share
        assert 1 < plain.expected_speedup < kontext.expected_speedup


class TestCost:
    def test_the_profile_counts_what_the_network_computes(self, flux):
        network = flux.build().model.diffusion_model
        context, extras = flux.conditioning(1)[0]
        t = torch.tensor([0.7])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(flux.noise(), t, context, extras["pooled_output"], torch.tensor([3.5]))
        found = counter.get_flop_counts()
        blocks = sum(sum(each.values()) for name, each in found.items() if _is_block(name))
        blocks -= sum(sum(each.values()) for name, each in found.items() if _is_modulation(name))
        assert blocks == adapter_for(network).cost_profile(network).step_flops(TOKENS, TOKENS, TEXT)

    def test_flux1_dev_at_1024_pixels(self):
        """The network has the size of Flux.1-dev but no weights. Its K/V cache takes 3.0 GiB per prompt in
        16 bit, as the guide says.
        """
        network = _network(FLUX1_DEV)
        adapter = adapter_for(network)
        numbers, rows, _ = adapter.cache_profile(network).counts(4096, [512])
        assert rows == 2 * 57 * 4608
        assert numbers * 2 / 2**30 == pytest.approx(3.006, abs=1e-3)
        profile = adapter.cost_profile(network)
        dense = profile.step_flops(4096, 4096, 512)
        assert dense == pytest.approx(74.4e12, rel=0.001)
        shares = [profile.step_flops(4096, 4096 // part, 512) / dense for part in (2, 4, 8)]
        assert shares == pytest.approx([0.556, 0.333, 0.222], abs=0.002)


def _is_block(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 3 and parts[1] in ("double_blocks", "single_blocks") or name == "Flux.final_layer"


def _is_modulation(name: str) -> bool:
    end = name.rpartition(".")[2]
    return end in ("img_mod", "txt_mod", "modulation", "adaLN_modulation")
