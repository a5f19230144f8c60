"""The four proofs for the families of support/other_families.py: each once, at a size that the patch size
does not divide. Other sizes, samplers and settings are tested with the families of support/families.py.
"""

import dataclasses

import pytest
import torch
from models import test_proofs as proofs
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host.cache_plan import rows_of_cond
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.models.base import ModelAdapter
from support.families import Family
from support.other_families import OTHERS
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture(params=list(OTHERS))
def family(request: pytest.FixtureRequest) -> Family:
    return OTHERS[request.param]


@pytest.fixture
def odd(family) -> tuple[int, int]:
    """A size of 7 x 9 tokens, which the patch size does not divide if the family allows this."""
    cut = 0 if family.whole_patches else family.patch // 2
    return 7 * family.patch - cut, 9 * family.patch - cut


def test_identity(family):
    proofs.TestIdentity().test_dense_settings_change_nothing(family, "dpmpp_2m", RASConfig(sample_ratio=1.0))


def test_effect(family, odd):
    proofs.TestEffect().test_rows_that_enter_every_block_and_every_cache(family, odd)
    proofs.TestEffect().test_every_attention_of_the_blocks_has_its_cache(family)


def test_life_cycle(family):
    proofs.TestLifeCycle().test_an_exception_inside_the_network_leaves_no_hook(family)
    proofs.TestLifeCycle().test_two_branches_of_one_graph_are_independent(family)


class TestReality:
    def test_all_tokens_in_shuffled_order_equal_the_dense_call(self, family, odd):
        proofs.TestReality().test_all_tokens_in_shuffled_order_equal_the_dense_call(family, odd, 2)

    def test_a_regional_call_gives_the_dense_output_at_its_active_tokens(self, family, odd):
        proofs.TestReality().test_a_regional_call_gives_the_dense_output_at_its_active_tokens(family, odd, 2)

    def test_separate_calls_equal_one_call(self, family, monkeypatch):
        proofs.TestReality().test_conditionings_in_separate_calls_equal_one_call(family, "split", monkeypatch)

    def test_positions_in_another_order_than_the_rows_show(self, family, odd, monkeypatch):
        """Shows that these tests can fail: here the adapter reverses the active tokens' positions. If the
        blocks receive no positions, it reverses the rows that enter the first block.
        """
        adapter = type(adapter_for(family.build().model.diffusion_model))
        original, tables = adapter.map_block_inputs, []

        def reversing(self: ModelAdapter, args, kwargs, gather_hidden, gather_positions):
            def reversed_rows(table, axis=1):
                tables.append(axis)
                return gather_positions(table, axis).flip(axis)

            def reversed_hidden(hidden):
                return gather_hidden(hidden).flip(1)

            reverses_hidden = gather_hidden is not None and not family.has_tables
            hidden = reversed_hidden if reverses_hidden else gather_hidden
            return original(self, args, kwargs, hidden, reversed_rows)

        monkeypatch.setattr(adapter, "map_block_inputs", reversing)
        with pytest.raises(AssertionError):
            proofs.TestReality().test_a_regional_call_gives_the_dense_output_at_its_active_tokens(
                family, odd, 1
            )
        assert bool(tables) == family.has_tables


class TestCost:
    def test_the_profile_counts_what_the_blocks_compute(self, family):
        """Compares the FLOPs of calls of other sizes and other texts, because the work of modulation layers
        is the same in all calls.
        """
        model = family.build()
        adapter, network = adapter_for(model.model.diffusion_model), model.model.diffusion_model
        references = {"frozen_rows": adapter.frozen_rows(network, family.inputs(model, family.noise()))}
        profile = dataclasses.replace(adapter.cost_profile(network), **references)
        found, expected = [], []
        square, wide = (8 * family.patch,) * 2, (6 * family.patch, 4 * family.patch)
        for size, rows in ((square, 7), (wide, 7), (square, 600)):
            n, text = family.tokens(size), adapter.text_rows(network, rows) + family.unplanned
            found.append(_flops_of_blocks(adapter, model, family, size, rows))
            expected.append(profile.step_flops(n, n, text))
        for i in (1, 2):
            assert found[i] - found[0] == expected[i] - expected[0]

    def test_the_planned_cache_is_the_cache(self, family):
        """The size of the K/V cache is planned before the first call, from the rows that the adapter states
        for a conditioning.
        """
        model, x, slots = family.build(), family.noise(), {}
        adapter, network = adapter_for(model.model.diffusion_model), model.model.diffusion_model
        proofs._call(model, family, x, proofs._network_call(model, family, x, slots))
        kept = sum(rows.key.numel() + rows.value.numel() for rows in slots.values())
        context, extras = family.conditioning(1)[0]
        planned = rows_of_cond(network, adapter, 64, {"cross_attn": context, **extras})
        assert planned == (family.text - family.unplanned, 0, family.reference_rows)
        others = sum(planned) + family.unplanned
        assert kept == adapter.cache_profile(network).counts(64, [others], planned.frozen)[0]
        assert len(slots) == adapter.attentions(network) - len(adapter.cross_attentions) * len(
            adapter.blocks(network)
        )


def _flops_of_blocks(adapter: ModelAdapter, model, family: Family, size: tuple[int, int], rows: int) -> int:
    """FLOPs of the blocks and the final layer in a dense call with a text of `rows` rows."""
    network, x = model.model.diffusion_model, family.noise(*size)
    parts = {*adapter.blocks(network), adapter.final_layer(network)}
    names = {f"{type(network).__name__}.{name}" for name, part in network.named_modules() if part in parts}
    inputs = family.inputs(model, x, rows)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.apply_model(x, torch.full((1,), 0.7), **inputs)
    return sum(sum(found.values()) for name, found in counter.get_flop_counts().items() if name in names)
