"""The paper's token selection: metric, ranking and starvation factor, compared with hand-computed numbers."""

import pytest
import torch
from ras_pack.ras_core.config import PaperSettings
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.method.metric import region_metric
from ras_pack.ras_core.method.preferences import Preferences
from ras_pack.ras_core.method.selection import count_drops, select_active


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _select(metric, drops=None, count=2, **settings):
    metric = torch.tensor([metric], dtype=torch.float32)
    drops = torch.zeros_like(metric, dtype=torch.int32) if drops is None else torch.tensor([drops])
    return select_active(metric, drops, count, PaperSettings(**settings))[0].tolist()


class TestMetric:
    def test_std_over_channels_then_mean_over_the_token(self):
        noise = torch.zeros(1, 2, 2, 2)
        noise[0, :, 0, 0] = torch.tensor([1.0, -1.0])  # unbiased std: sqrt(2)
        grid = TokenGrid((2, 2), (2, 2))
        assert region_metric(noise, "std", grid, _generator()).item() == pytest.approx(2**0.5 / 4)
        assert region_metric(noise, "l2norm", grid, _generator()).item() == pytest.approx(2**0.5 / 4)

    def test_padding_of_an_odd_size_does_not_count(self):
        noise = torch.ones(1, 3, 3, 3)
        value = region_metric(noise, "l2norm", TokenGrid((3, 3), (2, 2)), _generator())
        assert value.shape == (1, 4)
        assert torch.allclose(value, torch.full((1, 4), 3**0.5))

    def test_half_precision_input_is_ranked_in_float32(self):
        noise = torch.randn(1, 4, 4, 4, dtype=torch.float16)
        assert region_metric(noise, "std", TokenGrid((4, 4), (2, 2)), _generator()).dtype is torch.float32

    def test_over_time(self):
        noise, grid = torch.zeros(1, 2, 2, 2, 2), TokenGrid((2, 2, 2), (1, 2, 2))
        noise[0, :, 1, 0, 0] = torch.tensor([1.0, -1.0])
        for metric in ("std", "l2norm"):
            value = region_metric(noise, metric, grid, _generator())[0].tolist()
            assert value == pytest.approx([0, 2**0.5 / 4])

    def test_random_is_the_same_for_every_image(self):
        value = region_metric(torch.zeros(3, 4, 4, 4), "random", TokenGrid((4, 4), (2, 2)), _generator())
        assert torch.equal(value[0], value[2]) and value[0].unique().numel() == 4


class TestSelection:
    METRIC = [0.5, 0.9, 0.1, 0.3, 0.7]

    def test_high_values_are_cached(self):
        assert _select(self.METRIC) == [2, 3]

    def test_low_values_are_cached(self):
        assert _select(self.METRIC, high_ratio=0.0) == [1, 4]

    def test_values_of_both_ends_are_cached(self):
        # three cached: round(3 * 0.3) = 1 from the high end, two from the low end
        assert _select(self.METRIC, high_ratio=0.3) == [0, 4]

    def test_indices_are_sorted_and_each_image_has_its_own(self):
        metric = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
        active = select_active(metric, torch.zeros(2, 3), 2, PaperSettings())
        assert active.tolist() == [[1, 2], [0, 2]]

    @pytest.mark.parametrize("high_ratio", [0.0, 0.3, 0.5, 1.0])
    @pytest.mark.parametrize("count", [1, 7, 32, 63, 64])
    def test_the_count_is_exact_at_every_setting(self, high_ratio, count):
        metric = torch.rand(2, 64, generator=_generator())
        active = select_active(metric, torch.zeros(2, 64), count, PaperSettings(high_ratio=high_ratio))
        assert active.shape == (2, count)
        assert all(len(set(row)) == count for row in active.tolist())


class TestStarvation:
    def _longest_absence(self, **settings) -> int:
        """The largest number of steps in a row for which any of 1,000 tokens stays cached. All tokens have
        the same metric, and half of them are active in each step.
        """
        config = PaperSettings(**settings)
        metric, drops = torch.ones(1, 1000), torch.zeros(1, 1000, dtype=torch.int32)
        absent, longest = torch.zeros(1000, dtype=torch.int32), 0
        for _ in range(20):
            active = select_active(metric, drops, 500, config)
            drops = count_drops(drops, active)
            absent += 1
            absent[active[0]] = 0
            longest = max(longest, int(absent.max()))
        return longest

    @pytest.mark.parametrize("high_ratio", [0.0, 0.3, 1.0])
    def test_a_dropped_token_returns(self, high_ratio):
        assert self._longest_absence(high_ratio=high_ratio) <= 3

    def test_with_the_reference_formula_it_never_returns(self):
        assert self._longest_absence(starvation="reference") == 20

    def test_drops_are_counted(self):
        drops = count_drops(torch.tensor([[0, 2, 5]]), torch.tensor([[1]]))
        assert drops.tolist() == [[1, 2, 6]]

    def test_a_large_scale_neither_overflows_nor_vanishes(self):
        drops = torch.full((1, 3), 400, dtype=torch.int32)
        drops[0, 1] = 399
        assert select_active(torch.ones(1, 3), drops, 2, PaperSettings(starvation_scale=10.0)).tolist() == [
            [0, 2]
        ]


class TestPreferences:
    """Tokens that the user's mask favours are selected first, from whichever end of the ranking tokens are
    taken.
    """

    GRID = TokenGrid((32, 32), (2, 2))

    def _mask(self) -> torch.Tensor:
        mask = torch.zeros(1, 32, 32)
        mask[:, 8:24, 8:24] = 1.0
        return mask

    @pytest.mark.parametrize("high_ratio", [0.0, 0.5, 1.0])
    def test_favoured_tokens_are_active_more_often(self, high_ratio):
        preferences = Preferences.of(self.GRID, self._mask())
        metric = torch.rand(1, 256, generator=_generator()) * 0.1 + 1.0
        drops = torch.zeros(1, 256, dtype=torch.int32)
        active = select_active(metric, drops, 64, PaperSettings(high_ratio=high_ratio), preferences)
        assert preferences.priority.gather(1, active).all()  # all 64 tokens of the mask come first

    def test_over_time(self):
        """A mask in the second of three latent frames favours tokens of that frame only."""
        grid, mask = TokenGrid((3, 32, 32), (1, 2, 2)), torch.zeros(1, 3, 32, 32)
        mask[:, 1] = self._mask()
        first, second, third = Preferences.of(grid, mask).priority.view(3, 1, 256)
        of_image = Preferences.of(self.GRID, self._mask()).priority
        assert torch.equal(second, of_image) and not first.any() and not third.any()

    def test_without_preferences_nothing_changes(self):
        metric, drops = torch.rand(2, 64, generator=_generator()), torch.zeros(2, 64, dtype=torch.int32)
        plain = select_active(metric, drops, 16, PaperSettings(high_ratio=0.5))
        assert torch.equal(
            select_active(metric, drops, 16, PaperSettings(high_ratio=0.5), Preferences()), plain
        )
