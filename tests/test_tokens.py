"""Rows, grids and the K/V store, with small integers."""

import comfy.ops
import pytest
import torch
from ras_pack.ras_core.errors import RegionalAbort
from ras_pack.ras_core.kv import update as kv
from ras_pack.ras_core.kv.store import KVStore
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.models.cost import CostProfile, expected_speedup, linear_weights
from ras_pack.ras_core.rows import (
    RowIndex,
    RowWriter,
    Scratch,
    gather_rows,
    row_index,
    rows_first,
    scatter_rows,
)


class TestRows:
    SEQUENCE = torch.arange(2 * 6).view(2, 6, 1)  # one text row, four tokens, one padding row
    ACTIVE = torch.tensor([[0, 3], [2, 1]])

    def test_text_and_padding_rows_always_stay(self):
        index = row_index(self.ACTIVE, 4, prefix=1, suffix=1)
        assert gather_rows(self.SEQUENCE, index)[..., 0].tolist() == [[0, 1, 4, 5], [6, 9, 8, 11]]

    def test_scatter_is_the_mirror_of_gather(self):
        index = row_index(self.ACTIVE, 4, 1, 1)
        back = scatter_rows(gather_rows(self.SEQUENCE, index), index, 6)
        assert back[..., 0].tolist() == [[0, 1, 0, 0, 4, 5], [6, 0, 8, 9, 0, 11]]

    @pytest.mark.parametrize("text", [0, 2])
    @pytest.mark.parametrize("padding", [0, 3])
    @pytest.mark.parametrize("images", [1, 3])
    def test_an_index_counts_from_the_first_image_on(self, text, padding, images):
        active, rows = [[3, 0]] * images, text + 4 + padding
        kept = [*range(text), text + 3, text, *range(text + 4, rows)]
        expected = [image * rows + row for image in range(images) for row in kept]
        assert row_index(torch.tensor(active), 4, text, padding).tolist() == expected

    @pytest.mark.parametrize("width", [8, 6], ids=["wide", "narrow"])
    @pytest.mark.parametrize("step", [1, 2], ids=["close", "apart"])
    def test_a_row_writer_equals_scatter_and_gather(self, width, step):
        """The row writer gives the result of scatter and gather. Rows of 32 bytes are written in elements of
        16 bytes if the fresh rows are contiguous.
        """
        kept, before = (
            torch.arange(2 * 3 * 8.0).view(2, 3, 8)[..., :width].contiguous(),
            torch.zeros(2, 3, width),
        )
        index, fresh = torch.tensor([1, 5]), torch.full((2, 1, 2 * width), 7.0)[..., ::step][..., :width]
        expected, old = kept.clone(), kept.flatten(0, 1)[index]
        expected.flatten(0, 1)[index] = 7.0
        writer = RowWriter(kept)
        for _ in range(2):
            writer.move(index, RowWriter(before))
            writer.put(index, fresh)
            assert torch.equal(kept, expected)
        assert torch.equal(before.flatten(0, 1)[index], fresh.flatten(0, 1)) and not torch.equal(old, fresh)

    def test_one_of_several_equal_heads(self):
        heads = torch.arange(2 * 2 * 3 * 4).view(2, 2, 3, 4)  # two images, two heads, three rows
        repeated = heads.movedim(1, 2).repeat_interleave(2, dim=2).movedim(2, 1)
        assert torch.equal(rows_first(repeated, 2), heads.movedim(1, 2))
        assert torch.equal(rows_first(heads), heads.movedim(1, 2))
        assert rows_first(repeated, 2).data_ptr() == repeated.data_ptr()

    def test_scratch_uses_one_buffer_for_all_shapes(self):
        scratch, large, small = Scratch(), torch.zeros(2, 9, 4), torch.zeros(2, 5, 4)
        first = scratch.empty(0, large, torch.float32)
        assert scratch.empty(0, large, torch.float32) is first
        assert scratch.empty(0, small, torch.float32).data_ptr() == first.data_ptr()
        assert scratch.empty(1, small, torch.float32).data_ptr() != first.data_ptr()
        assert scratch.empty(0, torch.zeros(3, 9, 4), torch.float16).shape == (3, 9, 4)


class TestGrid:
    def test_an_odd_size_has_a_last_row_and_column_of_partial_tokens(self):
        grid = TokenGrid((3, 5), (2, 2))
        assert (grid.shape, grid.n) == ((2, 3), 6)
        pixels = grid.active_pixels(torch.tensor([[2, 3]]))[0, 0].int()
        assert pixels.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]]

    def test_a_grid_over_time(self):
        """There are three latent frames of 3 x 5 pixels, and a token covers two frames. So the tokens of the
        third frame are half empty.
        """
        grid = TokenGrid((3, 3, 5), (2, 2, 2))
        assert (grid.shape, grid.n) == ((2, 2, 3), 12)
        pixels = grid.active_pixels(torch.tensor([[2, 9]]))[0, 0].int()
        first, last = [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], [[0] * 5, [0] * 5, [1, 1, 0, 0, 0]]
        assert pixels.tolist() == [first, first, last]

    @pytest.mark.parametrize("size", [(4, 6), (3, 5)])
    def test_one_frame_is_an_image(self, size):
        image, frame = TokenGrid(size, (2, 2)), TokenGrid((1, *size), (1, 2, 2))
        pixels = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
        active = torch.tensor([[0, 3], [1, 5]])
        assert torch.equal(image.pool(pixels), frame.pool(pixels[:, None]))
        assert torch.equal(image.active_pixels(active), frame.active_pixels(active)[:, :, 0])
        values = image.pool(pixels)
        assert torch.equal(image.smooth(values), frame.smooth(values))

    def test_the_mean_over_a_token_excludes_padding(self):
        """The latent has 1 x 1 x 3 pixels, and tokens have 2 x 2 x 2. So the first token covers two pixels,
        the second only one, and the rest of both is padding.
        """
        grid = TokenGrid((1, 1, 3), (2, 2, 2))
        assert grid.pool(torch.tensor([[[[1.0, 3.0, 7.0]]]])).tolist() == [[2, 7]]

    def test_neighbours_are_in_the_same_frame(self):
        grid = TokenGrid((2, 1, 3), (1, 1, 1))
        values = torch.tensor([[0.0, 0.0, 6.0, 1.0, 1.0, 1.0]])
        assert grid.smooth(values).tolist() == [[0, 2, 3, 1, 1, 1]]

    def test_a_patch_that_does_not_fit_the_latent_is_an_error(self):
        with pytest.raises(ValueError):
            _ = TokenGrid((4, 4), (1, 2, 2)).n


class TestStore:
    def _filled(self, branches, text=1):
        """A K/V store with one attention. The key of image row j of prompt i has the value 10 i + j."""
        store = KVStore(2)
        self._fill(store, branches, text)
        return store

    def _fill(self, store, branches, text=1):
        values = [[-1] * text + [10 * b, 10 * b + 1] for b in branches]
        slots = store.begin_fill(tuple(branches))
        key = torch.tensor(values, dtype=torch.float32)[..., None]
        kv.fill(slots, (0, 0), (key, key + 100), (text, 0))
        store.end_fill(tuple(branches), slots)

    def _update(self, slots, fresh, active, text):
        index = RowIndex.of(torch.tensor(active), 2, text, 0)
        return kv.update(slots, (0, 0), (fresh, fresh), (text, 0), index)

    def _keys(self, store, branches):
        return store.slots_for(tuple(branches))[0, 0].image_only().key[..., 0].tolist()

    def test_split_and_joined(self):
        store = self._filled([1, 2])
        assert self._keys(store, [2]) == [[20, 21]]
        assert self._keys(store, [1]) == [[10, 11]]
        assert self._keys(store, [2, 1]) == [[20, 21], [10, 11]]
        assert self._keys(store, [1, 2]) == [[10, 11], [20, 21]]

    def test_branches_that_were_filled_separately_join_with_different_text(self):
        store = self._filled([1], text=1)
        self._fill(store, [2], text=3)
        assert self._keys(store, [1, 2]) == [[10, 11], [20, 21]]

    def test_an_update_writes_active_rows_and_text_only(self):
        store = self._filled([1, 2])
        slots = store.slots_for((1, 2))
        fresh = torch.tensor([[[7.0], [8.0]], [[7.0], [9.0]]])  # text row, one active token
        key, _ = self._update(slots, fresh, [[1], [0]], 1)
        assert key[..., 0].tolist() == [[7, 10, 8], [7, 9, 21]]

    def test_more_text_than_before(self):
        store = self._filled([1])
        slots = store.slots_for((1,))
        fresh = torch.tensor([[[5.0], [6.0], [8.0]]])
        key, _ = self._update(slots, fresh, [[0]], 2)
        assert key[..., 0].tolist() == [[5, 6, 8, 11]]

    def test_an_attention_without_a_cache_is_an_error(self):
        with pytest.raises(RegionalAbort):
            self._update({}, torch.zeros(1, 1, 1), [[0]], 0)

    def test_refilling_reuses_the_buffers(self):
        store = self._filled([1, 2])
        pointer = store.slots_for((1, 2))[0, 0].key.data_ptr()
        self._fill(store, [1, 2])
        assert store.slots_for((1, 2))[0, 0].key.data_ptr() == pointer

    def test_dropping_one_branch_keeps_the_other(self):
        store = self._filled([1, 2])
        store.drop((1,))
        assert 1 not in store and 2 in store
        assert self._keys(store, [2]) == [[20, 21]]

    def test_bytes_are_counted_once(self):
        assert self._filled([1, 2]).nbytes() == 2 * (2 * 3 * 4)  # K and V: two branches of three float32 rows


class TestCost:
    def test_flops_by_hand(self):
        profile = CostProfile(image_weights=10, text_weights=7, joint_width=2, final_weights=1)
        # 2 * (4 * 11 + 3 * 7 + 2 * (4 + 3) * (8 + 3) * 2) = 2 * (65 + 308)
        assert profile.step_flops(n_tokens=8, n_active=4, n_text=3) == 746

    def test_speedup_with_two_of_three_steps_at_half_the_tokens(self):
        profile = CostProfile(image_weights=10, text_weights=0, joint_width=0)
        assert expected_speedup(profile, 8, 0, [8, 4, 4]) == pytest.approx(24 / 16)

    def test_sd3_medium_at_full_size(self):
        """The FLOPs computed by hand: in each of 24 blocks, 24 d^2 per token of the image and of the 154 text
        tokens, plus the attention.
        """
        import comfy.ops
        from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
        from ras_pack.ras_core.models import adapter_for

        with torch.device("meta"):
            network = MMDiT(
                in_channels=16, depth=24, num_patches=36864, pos_embed_max_size=192, adm_in_channels=2048,
                context_embedder_config={
                    "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}
                },
                operations=comfy.ops.disable_weight_init,
            )  # fmt: skip
        profile = adapter_for(network).cost_profile(network)
        assert profile.image_weights == 24 * 12 * 1536**2
        assert profile.text_weights == 23 * 12 * 1536**2 + 3 * 1536**2  # last block: only keys and values
        dense = {0, 1, 2, 3, 12, 20}
        speedups = []
        for ratio in (0.5, 0.25, 0.125):
            counts = [4096 if step in dense else int(4096 * ratio) for step in range(28)]
            speedups.append(expected_speedup(profile, 4096, 154, counts))
        assert speedups == pytest.approx([1.61, 2.31, 2.96], abs=0.015)


@pytest.mark.parametrize("operations", ["disable_weight_init", "manual_cast", "mixed"])
def test_linear_layers_count_in_every_form_that_comfyui_creates(operations):
    kinds = {"mixed": getattr(comfy.ops, "mixed_precision_ops", lambda: None)} | {
        name: lambda name=name: getattr(comfy.ops, name) for name in ("disable_weight_init", "manual_cast")
    }
    if (kind := kinds[operations]()) is None:
        pytest.skip("this ComfyUI has no quantised layers")
    network = torch.nn.Module()
    network.mlp, network.adaLN_modulation = kind.Linear(3, 5), kind.Linear(3, 7)
    assert linear_weights(network) == 15
