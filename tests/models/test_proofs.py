"""The four proofs that every adapter passes: identity, effect, life-cycle, reality.

All of them run ComfyUI's own classes and samplers at a small size, for every family of support/families.py.
"""

import gc
import weakref

import pytest
import torch
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.host import outer_sample
from ras_pack.ras_core.host.names import ATTENTION
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.method.schedule import StepKind
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.run.partial_forward import CallContext, NetworkCall
from support.families import FAMILIES, Family
from support.rotated import rotated
from support.sampling import FAST, STEPS, distance, sample, sample_ras, split_prompts

SIZES = {"square": (16, 16), "wide": (12, 20), "odd": (13, 19)}
CALLS = {"square": ((16, 16), 1), "wide": ((12, 20), 2), "odd": ((13, 19), 2)}
"""Sizes and batch sizes of single calls of a network."""

FLOAT = 2e-5  # float32 rounding through a whole run


def _network_call(model, family: Family, x: torch.Tensor, slots: dict, active: torch.Tensor | None = None):
    """The pack's changes to one call of the network; without `active` tokens, the call is dense."""
    network, context = model.model.diffusion_model, CallContext(family.inputs(model, x))
    return NetworkCall(
        adapter_for(network), network, family.tokens(tuple(x.shape[-2:])), slots, active, context
    )


def _call(model, family: Family, x: torch.Tensor, call: NetworkCall | None = None, sigma: float = 0.7):
    """The denoised estimate of one conditioning, through ComfyUI's apply_model."""
    base, ready = model.model, family.inputs(model, x)
    options = {} if call is None else {ATTENTION: call.attend}
    t = torch.full((x.shape[0],), sigma)
    if call is None:
        return base.apply_model(x, t, transformer_options=options, **ready)
    with call.attached():
        return base.apply_model(x, t, transformer_options=options, **ready)


class TestIdentity:
    """With only dense steps, the result is bit-identical to that of the unpatched model."""

    @pytest.mark.parametrize(
        ("sampler", "config"),
        [("euler", RASConfig(sample_ratio=1.0)), ("dpmpp_2m_sde", RASConfig(start_step=STEPS))],
    )  # fmt: skip
    def test_dense_settings_change_nothing(self, family, sampler, config):
        model, noise = family.build(), family.noise()
        latent, trace = sample_ras(model, family, noise, config, sampler=sampler)
        assert torch.equal(latent, sample(model, family, noise, sampler=sampler))
        assert trace.regional_steps == 0 and trace.token_share == 1.0

    def test_a_patched_model_leaves_the_original_alone(self, family):
        model, noise = family.build(), family.noise()
        before = sample(model, family, noise)
        after_ras, _ = sample_ras(model, family, noise)
        assert not torch.equal(after_ras, before)
        assert torch.equal(sample(model, family, noise), before)


class TestReality:
    """A regional call computes the same as the dense call."""

    @pytest.mark.parametrize(("size", "batch"), CALLS.values(), ids=CALLS)
    def test_all_tokens_in_shuffled_order_equal_the_dense_call(self, family, size, batch):
        model, x, n = family.build(), family.noise(*size, batch=batch), family.tokens(size)
        slots = {}
        dense = _call(model, family, x, _network_call(model, family, x, slots))
        assert torch.equal(dense, _call(model, family, x))
        for sequence in slots.values():  # if every token is active, only references come from the cache
            computed = slice(sequence.key.shape[1] - family.reference_rows)
            sequence.key[:, computed] = sequence.value[:, computed] = torch.nan
        order = torch.stack(
            [torch.randperm(n, generator=torch.Generator().manual_seed(i)) for i in range(batch)]
        )
        call = _network_call(model, family, x, slots, order)
        regional = _call(model, family, x, call)
        assert call.gathered
        assert distance(regional, dense) < FLOAT

    @pytest.mark.parametrize(("size", "batch"), CALLS.values(), ids=CALLS)
    def test_a_regional_call_gives_the_dense_output_at_its_active_tokens(self, family, size, batch):
        model, x, n = family.build(), family.noise(*size, batch=batch), family.tokens(size)
        slots = {}
        dense = _call(model, family, x, _network_call(model, family, x, slots))
        active = torch.stack(
            [torch.randperm(n, generator=torch.Generator().manual_seed(i))[: n // 3] for i in range(batch)]
        )
        regional = _call(model, family, x, _network_call(model, family, x, slots, active))
        mask = family.grid(size).active_pixels(active).expand_as(dense)
        assert distance(regional[mask], dense[mask]) < FLOAT
        assert distance(regional[~mask], dense[~mask]) > 0.01  # these tokens are filled from the cache later

    def test_cached_keys_and_values_have_an_effect(self, family):
        """Shows that the test above can fail: with other cached rows, the active tokens' output differs."""
        model, x, n = family.build(), family.noise(), 64
        slots = {}
        dense = _call(model, family, x, _network_call(model, family, x, slots))
        for sequence in slots.values():
            sequence.value.zero_()
        active = torch.arange(0, n, 3)[None]
        regional = _call(model, family, x, _network_call(model, family, x, slots, active))
        mask = family.grid((8 * family.patch,) * 2).active_pixels(active).expand_as(dense)
        assert distance(regional[mask], dense[mask]) > 0.01

    def test_a_batch_equals_its_single_runs(self, family):
        model, noise = family.build(), family.noise(*SIZES["odd"], batch=3)
        together, trace = sample_ras(model, family, noise)
        assert trace.regional_steps == 7
        for i in (0, 2):
            single, single_trace = sample_ras(model, family, noise[i : i + 1])
            assert distance(together[i : i + 1], single) < FLOAT
            for step, single_step in zip(trace.steps, single_trace.steps, strict=True):
                assert (step.active[i] == single_step.active[0]).all()

    def test_masks_have_the_shape_of_the_token_grid(self, family):
        size = SIZES["odd"]
        _, trace = sample_ras(family.build(), family, family.noise(*size, batch=2))
        n = family.tokens(size)
        for step in trace.steps:
            assert step.active.shape == (2, *family.grid(size).shape)
            expected = n if step.kind is StepKind.DENSE else n - n // 2
            assert (step.active.reshape(2, -1).sum(axis=1) == expected).all()

    @rotated("mode", ["split", "alternating"], tuple(FAMILIES))
    def test_conditionings_in_separate_calls_equal_one_call(self, family, mode, monkeypatch):
        model, noise = family.build(), family.noise(batch=2)
        together, _ = sample_ras(model, family, noise)
        calls = split_prompts(monkeypatch, model, every=2 if mode == "alternating" else 0)
        # ComfyUI's memory estimate also affects the form of the cache; this test is only about grouping.
        config = RASConfig(**{**vars(FAST), "kv_cache": "gpu"})
        apart, trace = sample_ras(model, family, noise, config)
        assert calls
        assert trace.regional_steps == 7 and not trace.notes
        assert distance(apart, together) < FLOAT

    def test_prompts_of_different_length(self, family):
        model, noise = family.build(), family.noise()
        _, trace = sample_ras(
            model,
            family,
            noise,
            positive=family.conditioning(1, rows=9),
            negative=family.conditioning(2, rows=4),
        )
        assert trace.regional_steps == 7 and not trace.notes


class TestEffect:
    """Regional calls compute fewer tokens. The tests count the rows that enter the network."""

    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    def test_rows_that_enter_every_block_and_every_cache(self, family, size):
        model, noise, n = family.build(), family.noise(*size), family.tokens(size)
        adapter, network = adapter_for(model.model.diffusion_model), model.model.diffusion_model
        blocks = adapter.blocks(network)
        rows = {layer: [] for layer in range(len(blocks))}

        def counter(layer):
            def keep(hidden):
                rows[layer].append(hidden.flatten(1, -2).shape[1])
                return hidden

            def count(module, args, kwargs, out):
                adapter.map_block_inputs(args, kwargs, keep, lambda table, axis=1: table)

            return count

        # these forward hooks run after ours, on the actual inputs of the block
        handles = [
            block.register_forward_hook(counter(layer), with_kwargs=True)
            for layer, block in enumerate(blocks)
        ]
        _, trace = sample_ras(model, family, noise)
        for handle in handles:
            handle.remove()
        text = 0 if family.text_joins is None else family.text
        if family.pads > 1:
            text += -7 % family.pads  # captions are padded too
        by_step = [n - n // 2 if step not in (0, 1, 6) else n for step in range(STEPS)]
        frozen = [family.reference_rows if active == n else 0 for active in by_step]  # in dense steps only
        after = [-n % family.pads + references for references in frozen]
        for layer in rows:
            before = text if family.text_joins is not None and layer >= family.text_joins else 0
            assert rows[layer] == [
                before + active + more for active, more in zip(by_step, after, strict=True)
            ]
        assert trace.token_share == pytest.approx(sum(by_step) / (n * STEPS))

    def test_every_attention_of_the_blocks_has_its_cache(self, family):
        model, x, n = family.build(), family.noise(), 64
        slots = {}
        _call(model, family, x, _network_call(model, family, x, slots))
        expected = {
            (layer, ordinal)
            for layer, count in enumerate(family.block_attentions)
            for ordinal in range(count)
        }
        assert set(slots) == expected
        for slot, sequence in slots.items():
            rows = n + family.reference_rows + sequence.prefix + sequence.suffix
            assert sequence.key.shape[:2] == sequence.value.shape[:2] == (1, rows)
            assert sequence.key[0, 0].numel() == sequence.value[0, 0].numel() == family.kv_width
            is_joint = family.text_in_cache and slot[1] == 0 and slot[0] >= family.refiners
            text = sequence.suffix if family.text_follows else sequence.prefix
            assert (text > 0) == is_joint


class TestLifeCycle:
    """A run leaves nothing behind, however it ends."""

    def test_second_run_and_changed_size_equal_a_fresh_model(self, family):
        model = family.build()
        patched = patch_model(model, FAST)
        for size in [(16, 16), (12, 20), (16, 16)]:
            noise = family.noise(*size)
            fresh, _ = sample_ras(family.build(), family, noise)
            assert torch.equal(sample(patched, family, noise), fresh)

    def test_an_interrupted_run_leaves_no_trace(self, family):
        import comfy.model_management

        model, noise = family.build(), family.noise()
        patched = patch_model(model, FAST)

        def interrupt(step, *_):
            if step == 4:
                raise comfy.model_management.InterruptProcessingException

        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(patched, family, noise, callback=interrupt)
        assert _hooks(model) == 0
        with pytest.raises(ValueError, match="no run of this model has finished"):
            last_trace(patched)
        fresh, _ = sample_ras(family.build(), family, noise)
        assert torch.equal(sample(patched, family, noise), fresh)

    def test_an_exception_inside_the_network_leaves_no_hook(self, family):
        model, noise = family.build(), family.noise()
        network = model.model.diffusion_model
        calls = []

        def fail(module, args):
            calls.append(1)
            if len(calls) == 5:
                raise MemoryError("planted")

        handle = adapter_for(network).final_layer(network).register_forward_pre_hook(fail)
        with pytest.raises(MemoryError, match="planted"):
            sample_ras(model, family, noise)
        handle.remove()
        assert _hooks(model) == 0

    def test_two_branches_of_one_graph_are_independent(self, family):
        model, noise = family.build(), family.noise()
        configs = [RASConfig(paper=PaperSettings(), sample_ratio=r, start_step=2) for r in (0.5, 0.25)]
        half, quarter = (patch_model(model, config) for config in configs)
        first = sample(half, family, noise)
        sample(quarter, family, noise)
        assert torch.equal(sample(half, family, noise), first)
        assert last_trace(half).token_share != last_trace(quarter).token_share

    def test_the_last_of_two_patches_takes_effect(self, family, caplog):
        model, noise = family.build(), family.noise()
        with caplog.at_level("INFO"):
            twice = patch_model(patch_model(model, RASConfig(sample_ratio=0.25)), FAST)
        assert caplog.text.count("replaces") == 1
        once, _ = sample_ras(model, family, noise)
        assert torch.equal(sample(twice, family, noise), once)

    def test_no_memory_is_held_after_a_run(self, family, monkeypatch):
        states = []
        original = outer_sample.RunState

        def spy(*args, **kwargs):
            state = original(*args, **kwargs)
            states.append(weakref.ref(state))
            return state

        monkeypatch.setattr(outer_sample, "RunState", spy)
        model = family.build()
        _, trace = sample_ras(model, family, family.noise())
        gc.collect()
        assert trace.kv_bytes > 0
        assert [state() for state in states] == [None]


def _hooks(model) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in model.model.diffusion_model.modules()
    )
