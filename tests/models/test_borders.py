"""The interface to a network: borders of each tensor from its own rows, and networks that are refused.

Flux's adapter shows text that joins the image between two kinds of blocks, position tables with their rows on
another axis, and reference images after the image; HiDream's shows text after the image.
"""

import dataclasses

import comfy.ldm.flux.model
import comfy.ldm.hidream.model
import comfy.ldm.lumina.model
import comfy.ops
import pytest
import torch
from ras_pack.ras_core.errors import RASError, RegionalAbort
from ras_pack.ras_core.graphs.eligibility import RESIDUAL
from ras_pack.ras_core.host.call import ARGUMENTS, ModelCall
from ras_pack.ras_core.kv.plain import KVRows
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.models import ADAPTERS, adapter_for
from ras_pack.ras_core.models.base import ALL
from ras_pack.ras_core.models.flux import FluxAdapter
from ras_pack.ras_core.models.hidream import HiDreamAdapter
from ras_pack.ras_core.run.active_rows import ActiveRows, borders_of
from ras_pack.ras_core.run.partial_forward import CallContext, NetworkCall
from support.families import FAMILIES, draw_weights
from support.other_families import OTHERS
from support.sampling import distance, sample, sample_ras

SIZE, N, BATCH = (12, 10), 30, 2  # 6 x 5 tokens
FLOAT = 2e-5
TINY = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}


def _flux():
    settings = {
        "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 48, "hidden_size": 64,
        "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12],
        "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
    }  # fmt: skip
    known = {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}
    settings = {name: value for name, value in settings.items() if name in known}
    return comfy.ldm.flux.model.Flux(**TINY, **settings)


def _hidream():
    return comfy.ldm.hidream.model.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=16, num_layers=2, num_single_layers=2,
        attention_head_dim=32, num_attention_heads=2, caption_channels=[48, 48], text_emb_dim=32,
        num_routed_experts=2, num_activated_experts=1,
        axes_dims_rope=(16, 8, 8), max_resolution=(32, 32),
        llama_layers=[0, 1, 1, 1], **TINY,
    )  # fmt: skip


def _randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _flux_inputs(**more):
    return {
        "timestep": torch.full((BATCH,), 0.7), "context": _randn(BATCH, 7, 48, seed=1),
        "y": _randn(BATCH, 32, seed=2), "guidance": torch.full((BATCH,), 3.5), **more,
    }  # fmt: skip


def _hidream_inputs():
    llama = _randn(BATCH, 2, 5, 48, seed=1)
    return {
        "t": torch.full((BATCH,), 700.0), "context": _randn(BATCH, 7, 48, seed=3),
        "y": _randn(BATCH, 32, seed=2), "encoder_hidden_states_llama3": llama,
    }  # fmt: skip


CASES = {
    "flux": (FluxAdapter, _flux, _flux_inputs),
    "flux_kontext": (
        FluxAdapter,
        _flux,
        lambda: _flux_inputs(ref_latents=[_randn(BATCH, 16, 12, 8, seed=5)]),
    ),
    "hidream": (HiDreamAdapter, _hidream, _hidream_inputs),
}


class Case:
    """A network and its adapter, with functions to call it."""

    def __init__(self, name: str):
        adapter, build, inputs = CASES[name]
        self.adapter, self.network, self.inputs = adapter(), build(), inputs()
        draw_weights(self.network, 0)
        self.x = _randn(BATCH, 16, *SIZE, seed=4)
        self.slots = {}

    @torch.no_grad()
    def call(self, active=None, adapter=None, **control) -> torch.Tensor:
        context = CallContext(self.inputs)
        call = NetworkCall(adapter or self.adapter, self.network, N, self.slots, active, context)
        with call.attached():
            output = self.plain({"optimized_attention_override": call.attend}, **control)
        assert call.gathered is (active is not None)
        return output

    @torch.no_grad()
    def plain(self, options=None, **control) -> torch.Tensor:
        return self.network(self.x, **self.inputs, **control, transformer_options=options or {})


@pytest.fixture(params=list(CASES))
def case(request) -> Case:
    return Case(request.param)


class TestEachTensorHasItsOwnBorders:
    def test_a_dense_call_changes_nothing(self, case):
        assert torch.equal(case.call(), case.plain())

    def test_a_third_of_the_tokens_give_their_dense_output(self, case):
        dense = case.call()
        order = [
            torch.randperm(N, generator=torch.Generator().manual_seed(i))[: N // 3] for i in range(BATCH)
        ]
        active = torch.stack(order)
        regional = case.call(active)
        mask = TokenGrid(SIZE, (2, 2)).active_pixels(active).expand_as(dense)
        assert distance(regional[mask], dense[mask]) < FLOAT
        assert distance(regional[~mask], dense[~mask]) > 0.01

    def test_all_tokens_in_shuffled_order_equal_the_dense_call(self, case):
        dense = case.call()
        for sequence in case.slots.values():
            image = slice(sequence.prefix, sequence.prefix + N)
            sequence.key[:, image] = sequence.value[:, image] = torch.nan
        order = [torch.randperm(N, generator=torch.Generator().manual_seed(i)) for i in range(BATCH)]
        assert distance(case.call(torch.stack(order)), dense) < FLOAT

    def test_positions_that_are_not_gathered_are_detected(self, case):
        """Shows that the two tests above can fail. An adapter here forgets to select the active tokens'
        positions; some networks truncate the too long table without an error.
        """

        class Forgets(type(case.adapter)):
            def map_block_inputs(self, args, kwargs, gather_hidden, gather_positions):
                return super().map_block_inputs(args, kwargs, gather_hidden, lambda table, axis=1: table)

        dense, active = case.call(), torch.arange(1, N, 3).expand(BATCH, -1)
        try:
            regional = case.call(active, Forgets())
        except RuntimeError:
            return
        mask = TokenGrid(SIZE, (2, 2)).active_pixels(active).expand_as(dense)
        assert distance(regional[mask], dense[mask]) > 0.01

    def test_positions_in_another_order_than_the_rows_show(self, case):
        class Reverses(type(case.adapter)):
            def map_block_inputs(self, args, kwargs, gather_hidden, gather_positions):
                def reversed_rows(table, axis=1):
                    return gather_positions(table, axis).flip(axis)

                return super().map_block_inputs(args, kwargs, gather_hidden, reversed_rows)

        dense, active = case.call(), torch.arange(1, N, 3).expand(BATCH, -1)
        regional = case.call(active, Reverses())
        mask = TokenGrid(SIZE, (2, 2)).active_pixels(active).expand_as(dense)
        assert distance(regional[mask], dense[mask]) > 0.01

    def test_what_the_cache_holds(self):
        """Flux has seven text rows before the 30 image rows. The 24 rows of a reference image follow the
        image rows; they are frozen, so they are not part of the suffix. HiDream has 17 text rows after the
        image rows: seven, and two times five of Llama.
        """
        kept = {}
        for name in CASES:
            case = Case(name)
            case.call()
            kept[name] = {(each.prefix, each.suffix) for each in case.slots.values()}
        assert kept == {"flux": {(7, 0)}, "flux_kontext": {(7, 0)}, "hidream": {(0, 17)}}


class TestBorders:
    @pytest.mark.parametrize(
        ("rows", "suffix", "expected"),
        [(30, 0, (0, 0)), (39, 2, (7, 2)), (39, ALL, (0, 9)), (30, ALL, (0, 0))],
    )
    def test_the_prefix_is_what_remains(self, rows, suffix, expected):
        assert borders_of(rows, 30, suffix, "a tensor") == expected

    @pytest.mark.parametrize(("rows", "suffix"), [(29, 0), (31, 2), (29, ALL)])
    def test_too_few_rows(self, rows, suffix):
        with pytest.raises(RegionalAbort, match=f"a tensor has {rows} rows, too few for 30 image tokens"):
            borders_of(rows, 30, suffix, "a tensor")

    def test_tables_of_different_length_and_axis(self):
        """Rows of the active tokens are taken from tables of different length, with the rows on axis 1 or 2.
        There are two images of three tokens: token 1 is active in the first image, token 2 in the second.
        """
        rows = ActiveRows(torch.tensor([[1], [2]]), 3, suffix=1)
        table = torch.arange(6).view(1, 6, 1)  # two text rows, three tokens, one row of padding
        assert rows.gather_table(table, 1)[..., 0].tolist() == [[0, 1, 3, 5], [0, 1, 4, 5]]
        by_head = torch.arange(4).view(1, 1, 4, 1).expand(1, 2, 4, 1)  # no text; rows on axis 2
        assert rows.gather_table(by_head, 2)[:, 1, :, 0].tolist() == [[1, 3], [2, 3]]

    def test_columns_of_zeros_are_added_for_the_keys_of_cached_tokens(self):
        rows = ActiveRows(torch.tensor([[2], [0]]), 3, suffix=0)
        mask = torch.tensor([5.0, 7.0]).view(1, 1, 2)  # one text row, one active token
        assert rows.wide_mask(mask).tolist() == [[[5, 0, 0, 7]], [[5, 7, 0, 0]]]

    def test_output_rows_return_to_their_tokens(self):
        rows = ActiveRows(torch.tensor([[2]]), 3, suffix=0)
        with_text, without = torch.tensor([[[7.0], [8.0]]]), torch.tensor([[[8.0]]])
        assert rows.scatter(with_text)[0, :, 0].tolist() == [7, 0, 0, 8]
        assert rows.scatter(without)[0, :, 0].tolist() == [0, 0, 8]

    def test_a_mask_loses_the_columns_of_cached_tokens(self):
        rows = ActiveRows(torch.tensor([[2, 0]]), 3, suffix=0)
        mask = torch.arange(4).view(1, 1, 4)  # one text row
        assert rows.short_mask(mask, 3)[0, 0].tolist() == [0, 3, 1]
        assert rows.short_mask(mask, 4) is mask
        assert rows.short_mask(mask[..., :2], 3)[0, 0].tolist() == [0, 1]  # of another attention

    def test_a_table_with_a_flag(self):
        """LTXV passes its table of positions in a tuple, with a flag for the layout of the table."""
        model = FAMILIES["flux"].build()
        network = model.model.diffusion_model
        call = NetworkCall(adapter_for(network), network, 4, {}, torch.tensor([[1, 3]]))
        table = torch.arange(6).view(1, 6, 1)  # two text rows, four tokens
        kept, flag = call._gather_positions((table, False))
        assert kept[0, :, 0].tolist() == [0, 1, 3, 5] and flag is False

    def test_hidden_rows_in_the_shape_of_the_grid(self):
        model = FAMILIES["flux"].build()
        network = model.model.diffusion_model
        call = NetworkCall(adapter_for(network), network, 4, {}, torch.tensor([[1, 2]]))
        hidden = torch.arange(4.0).view(1, 1, 2, 2, 1)
        kept = call._gather_hidden(hidden)
        assert kept.shape == (1, 1, 1, 2, 1) and kept.flatten().tolist() == [1, 2]
        assert call._after_final(network, (), kept).tolist() == [[[[[0], [1]], [[2], [0]]]]]

    def test_rows_where_no_text_is_expected_make_the_run_dense(self):
        """SD3's tensor of image rows contains no text. If a call has one row more than image tokens, the
        adapter cannot know what that row is.
        """
        model = FAMILIES["sd3"].build()
        network = model.model.diffusion_model
        slots = {(0, 0): KVRows.of(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), 0, 0)}
        call = NetworkCall(adapter_for(network), network, 4, slots, torch.tensor([[1]]))
        with pytest.raises(RegionalAbort, match="not 4 image tokens"):
            call._gather_hidden(torch.zeros(1, 5, 2))
        assert not call.gathered


class TestControl:
    """Residuals of a ControlNet in the form that ComfyUI's Flux expects, for two blocks of each kind."""

    ACTIVE = torch.arange(1, N, 3).expand(BATCH, -1)

    def _control(self):
        first, second = (0.3 * _randn(BATCH, N, 64, seed=seed) for seed in (7, 8))
        return {"input": [first, None], "output": [None, second]}

    @pytest.mark.parametrize("name", ["flux", "flux_kontext"])
    def test_each_token_gets_its_own_residual(self, name):
        case, control = Case(name), self._control()
        plain, dense = case.plain(), case.call(control=control)
        gathered = case.adapter.gather_control(control, {}, self.ACTIVE, N)
        regional = case.call(self.ACTIVE, control=gathered)
        mask = TokenGrid(SIZE, (2, 2)).active_pixels(self.ACTIVE).expand_as(dense)
        assert distance(regional[mask], dense[mask]) < FLOAT
        assert distance(regional[mask], plain[mask]) > 0.01

    @pytest.mark.parametrize(
        "unknown",
        [
            {"middle": [torch.zeros(BATCH, N, 8)]},
            {"output": [torch.zeros(BATCH, N + 1, 8)]},
            {"output": [torch.zeros(1, N, 8)]},
            {"input": [torch.zeros(BATCH, 8, 6, 5)]},
        ],
    )
    def test_any_other_form_makes_the_call_dense(self, unknown):
        with pytest.raises(RegionalAbort, match="a ControlNet"):
            FluxAdapter().gather_control(unknown, {}, self.ACTIVE, N)

    def test_sd3_takes_no_input_list(self):
        sd3 = adapter_for(FAMILIES["sd3"].build().model.diffusion_model)
        with pytest.raises(RegionalAbort, match=r"of an unknown kind: \['input'\]"):
            sd3.gather_control(self._control(), {}, self.ACTIVE, N)

    def test_no_control_and_empty_lists(self):
        assert FluxAdapter().gather_control(None, {}, self.ACTIVE, N) is None
        empty = {"input": [], "output": [], "middle": []}
        assert FluxAdapter().gather_control(empty, {}, self.ACTIVE, N) == empty

    def test_residuals_of_both_lists_are_inputs_of_a_captured_call(self):
        """Both lists of ControlNet residuals must be inputs of the captured call. Otherwise, a replay would
        use the residuals of the step in which it was captured.
        """
        control = self._control()
        call = ModelCall(lambda *args, **kwargs: args[4], dict.fromkeys(ARGUMENTS[:4]), control, {})
        residuals = {name: each for name, each in call.captured_inputs.items() if name.startswith(RESIDUAL)}
        assert sorted(residuals) == [
            "control.input.0",
            "control.input.1",
            "control.output.0",
            "control.output.1",
        ]
        later = {name: each if each is None else each + 1 for name, each in residuals.items()}
        replaced = call.on(call.captured_inputs | later)()
        assert replaced["input"] == [later["control.input.0"], None]
        assert replaced["output"] == [None, later["control.output.1"]]


class TestRefusal:
    @pytest.mark.parametrize("model_class", ["", "SD15", "WAN21_CausalAR_T2V"])
    def test_it_begins_with_the_name_by_which_comfyui_knows_the_model(self, model_class):
        network = type("WanModel_S2V", (torch.nn.Module,), {"__module__": "comfy.ldm.wan.model"})()
        with pytest.raises(RASError) as refused:
            adapter_for(network, model_class)
        model = f"the model is {model_class} (network: WanModel_S2V)"
        other = "the model's network is WanModel_S2V (comfy.ldm.wan.model)"
        named = model if model_class else other
        start = f"Multirate RAS: {named}, which is not supported, as it makes videos, "
        assert str(refused.value).startswith(start) and "..." not in str(refused.value)

    def test_a_network_with_the_name_of_a_supported_one(self):
        """Both SD3's and AuraFlow's classes are called MMDiT, so the module is a part of the name."""
        network = type("MMDiT", (torch.nn.Module,), {"__module__": "comfy.ldm.other.mmdit"})()
        with pytest.raises(RASError) as refused:
            adapter_for(network)
        assert str(refused.value) == (
            "Multirate RAS: the model's network is MMDiT (comfy.ldm.other.mmdit), which is not supported. "
            "Expected: a family in the README, such as SD3 (MMDiT) or Z-Image (NextDiT). "
            "What to do: connect such a model, or remove the node."
        )

    @pytest.mark.parametrize(
        ("module", "name", "why"),
        [
            ("wan.model", "WanModel", "as it makes videos, whose K/V cache is too large"),
            ("wan.model", "VaceWanModel", "as it makes videos, whose K/V cache is too large"),
            ("lightricks.model", "LTXVModel", "as it makes videos, on which RAS is not tested"),
            ("chroma_radiance.model", "ChromaRadiance", "as it computes pixels from those around them"),
            ("ernie.model", "ErnieImageModel", "as ComfyUI lets no node replace its attention"),
        ],
    )
    def test_a_family_that_regions_do_not_fit(self, module, name, why):
        """Classes that would fail silently, or cannot be sped up, are refused, each with its reason."""
        found = getattr(pytest.importorskip(f"comfy.ldm.{module}"), name)
        network = found.__new__(found)
        torch.nn.Module.__init__(network)
        with pytest.raises(RASError, match=f"is {name} .*not supported, {why}"):
            adapter_for(network)

    def test_hunyuan_video(self):
        """The class of HunyuanImage 2.1, with patches over time."""
        family = OTHERS.get("hunyuan_image")
        if family is None:
            pytest.skip("this ComfyUI has no HunyuanImage")
        network = family.build().model.diffusion_model
        network.patch_size = [1, 2, 2]
        with pytest.raises(RASError, match="is a HunyuanVideo, .*as it makes videos, whose K/V cache"):
            adapter_for(network)

    def test_the_image_that_hidream_e1_edits(self):
        """Its tokens are in the same grid, so the call would have twice the expected number of tokens."""
        family = OTHERS.get("hidream")
        if family is None:
            pytest.skip("this ComfyUI has no HiDream")
        model, noise = family.build(), family.noise()
        (context, extras), *_ = family.conditioning(1)
        edited = [[context, {**extras, "concat_latent_image": torch.zeros_like(noise)}]]
        latent, trace = sample_ras(model, family, noise, positive=edited, negative=edited)
        assert torch.equal(latent, sample(model, family, noise, positive=edited, negative=edited))
        assert trace.notes == (
            "running dense from here: HiDream E1 puts the image to be edited beside the new image, as tokens "
            "of the same grid",
        )

    def test_a_subclass_of_a_supported_one(self):
        network_class = getattr(comfy.ldm.lumina.model, "NextDiTPixelSpace", None)
        if network_class is None:
            pytest.skip("this ComfyUI has no pixel-space NextDiT")
        config = FAMILIES["lumina2"].unet_config()
        del config["image_model"], config["dtype"]
        network = network_class(decoder_hidden_size=32, decoder_num_res_blocks=1, **config, **TINY)
        with pytest.raises(
            RASError, match=r"NextDiTPixelSpace \(comfy.ldm.lumina.model\), which is not supp"
        ):
            adapter_for(network)

    def test_a_case_that_would_fail_silently_runs_dense_with_its_reason(self, family, monkeypatch):
        """An adapter can refuse a call by its inputs and options, if the call would silently give wrong
        results.
        """
        asked = []

        def refusal(self, network, inputs, options):
            asked.append((type(network).__name__, inputs["x"].shape[0], sorted(options["cond_or_uncond"])))
            return "each frame has a timestep of its own"

        model, noise = family.build(), family.noise()
        dense = sample(model, family, noise)
        monkeypatch.setattr(type(adapter_for(model.model.diffusion_model)), "refusal", refusal)
        latent, trace = sample_ras(model, family, noise)
        assert torch.equal(latent, dense)
        assert trace.notes == ("running dense from here: each frame has a timestep of its own",)
        assert asked == [(type(model.model.diffusion_model).__name__, 2, [0, 1])]

    def test_no_family_refuses_a_plain_call(self):
        assert [each.refusal(None, {}, {}) for each in ADAPTERS] == [None] * len(ADAPTERS)
