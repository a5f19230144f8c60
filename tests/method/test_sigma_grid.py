"""The choice of noise levels for a plan's steps: small exact examples, and an equation with a known error."""

import math

import pytest
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.method.sigma_grid import (
    check_schedule,
    density_of,
    even_density,
    front_loaded,
    front_loaded_density,
    grid,
    level_at,
    part_of,
    position_at,
    positions,
)

FINE = tuple(1 - i / 8 for i in range(9))
"""Levels 1, 7/8 ... 1/8, 0."""


class TestDensity:
    def test_a_block_of_four_times_the_cost_gets_twice_the_steps_at_order_two(self):
        assert density_of([4, 1, 1, 1]) == pytest.approx([0.4, 0.2, 0.2, 0.2])

    def test_at_order_one_it_is_the_cost_itself(self):
        assert density_of([3, 1], order=1) == pytest.approx([0.75, 0.25])

    def test_half_way_to_an_even_density(self):
        assert density_of([9, 1], even=0.5) == pytest.approx([0.625, 0.375])
        assert density_of([9, 1], even=1.0) == pytest.approx([0.5, 0.5])

    @pytest.mark.parametrize("costs", [[2, 2, 2, 2], [0, 0, 0, 0]])
    def test_equal_costs_give_the_even_grid(self, costs):
        found = grid(FINE, positions(density_of(costs), 4))
        assert found == pytest.approx([1, 0.75, 0.5, 0.25, 0])

    @pytest.mark.parametrize("costs", [[], [1, -1], [1, math.nan], [math.inf, 1]])
    def test_invalid_costs_are_refused(self, costs):
        with pytest.raises(RASError, match=r"costs of blocks.*Expected:.*What to do:"):
            density_of(costs)

    def test_order_and_share_out_of_range_are_refused(self):
        for wrong in ({"order": 0}, {"even": 1.5}, {"even": -0.1}):
            with pytest.raises(RASError, match="Expected: order above 0"):
                density_of([1], **wrong)


class TestPositions:
    def test_every_step_has_the_same_mass(self):
        # The first half has three quarters of the mass: three of four steps.
        assert positions([0.75, 0.25], 4) == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 1])

    def test_one_step_spans_the_whole_range(self):
        assert positions([0.7, 0.3], 1) == (0, 1)

    def test_a_block_without_mass_is_crossed_by_one_step(self):
        assert positions([0.5, 0, 0.5], 4) == pytest.approx([0, 1 / 6, 2 / 3, 5 / 6, 1])

    def test_a_part_is_divided_by_its_mass(self):
        # From 1/4 on, 3/8 of the mass is in the first half and 1/4 in the second: three steps and two.
        found = positions([0.75, 0.25], 5, start=0.25)
        assert found == pytest.approx([0.25, 1 / 3, 5 / 12, 0.5, 0.75, 1])

    def test_a_part_without_mass_is_even(self):
        assert positions([1, 0], 2, start=0.5) == pytest.approx([0.5, 0.75, 1])

    @pytest.mark.parametrize("arguments", [(0, 0, 1), (3, 0.5, 0.5), (3, -0.1, 1), (3, 0, 1.1)])
    def test_parts_that_do_not_exist_are_refused(self, arguments):
        with pytest.raises(RASError, match="at least one step"):
            positions([1], *arguments)


class TestGrid:
    @pytest.mark.parametrize("steps", [1, 2, 3, 9, 19, 60])
    @pytest.mark.parametrize("costs", [[1], [100, 1, 0, 3], [0, 0, 0, 5], [1e-9, 1e9]])
    def test_it_decreases_from_the_first_level_to_zero(self, costs, steps):
        found = grid(FINE, positions(density_of(costs), steps))
        assert len(found) == steps + 1
        assert (found[0], found[-1]) == (1, 0)
        check_schedule(found)

    def test_levels_between_those_of_the_fine_schedule_are_interpolated(self):
        assert level_at((1, 0.8, 0), 0.25) == pytest.approx(0.9)
        assert level_at((1, 0.8, 0), 0.75) == pytest.approx(0.4)
        assert level_at((1, 0.8, 0), 1.0) == 0

    def test_position_is_the_inverse_of_level(self):
        for position in (0, 0.1, 0.5, 0.77, 1):
            assert position_at((1, 0.8, 0.1, 0), level_at((1, 0.8, 0.1, 0), position)) == pytest.approx(
                position
            )
        assert position_at(FINE, 2.0) == 0 and position_at(FINE, -1.0) == 1

    @pytest.mark.parametrize("levels", [(), (1,), (1, 1, 0), (1, 0.2, 0.5, 0), (1, math.nan)])
    def test_a_schedule_that_does_not_decrease_is_refused(self, levels):
        with pytest.raises(RASError, match="not strictly decreasing"):
            grid(levels, (0, 1))


class TestFrontLoaded:
    def test_first_steps_of_the_schedule_then_every_kth(self):
        assert front_loaded(FINE, first=2, every=3) == (1, 7 / 8, 6 / 8, 3 / 8, 0)

    def test_every_first_is_the_schedule_itself(self):
        assert front_loaded(FINE, first=3, every=1) == FINE

    def test_its_density_gives_the_same_grid(self):
        # First 2 of 8, then every 3rd: 2 + 6 / 3 = 4 steps.
        found = grid(FINE, positions(front_loaded_density(8, first=2, every=3), 4))
        assert found == pytest.approx(front_loaded(FINE, first=2, every=3))

    def test_more_first_steps_than_there_are(self):
        assert front_loaded(FINE, first=20, every=4) == FINE


class TestPart:
    """If only a part of a run is sampled, this part starts and ends at noise levels of the sampler's
    schedule.
    """

    def test_two_parts_of_a_run_meet(self):
        simple = tuple(1 - i / 4 for i in range(5))
        first = part_of(FINE, [0.8, 0.2], 3, simple[:3])
        second = part_of(FINE, [0.8, 0.2], 2, simple[2:])
        assert (first[0], first[-1], second[0], second[-1]) == (1, 0.5, 0.5, 0)
        assert (len(first), len(second)) == (4, 3)
        check_schedule(first + second[1:])

    def test_inside_a_block_it_is_even(self):
        assert part_of(FINE, [0.8, 0.2], 2, (1, 0.75, 0.5)) == pytest.approx((1, 0.75, 0.5))

    def test_denoise_keeps_its_first_level(self):
        # KSampler with 3 steps and denoise 0.75 does the last 3 of 4.
        found = part_of(FINE, [0.9, 0.1], 5, (0.75, 0.5, 0.25, 0))
        assert len(found) == 6 and (found[0], found[-1]) == (0.75, 0)
        # 0.45 of the mass is before the middle, and 0.1 after it: 5 steps of 0.11, the last starts there.
        assert found[4] == pytest.approx(0.5, abs=0.01)

    def test_levels_beyond_the_models_own_are_kept_evenly(self):
        assert part_of(FINE, [1], 2, (3.0, 2.5, 2.0)) == pytest.approx((3, 2.5, 2))


class TestAnEquationWithEarlyCurvature:
    """dx/du = f(u) with f large and steep in the first eighth: Euler's errors are known in closed form."""

    @staticmethod
    def rate(u: float) -> float:
        return 40 * max(0.125 - u, 0.0) + 0.1 * u

    def euler(self, places) -> float:
        return sum((b - a) * self.rate(a) for a, b in zip(places, places[1:], strict=False))

    def costs(self, blocks: int, width: int) -> list[float]:
        fine = [i / (blocks * width) for i in range(blocks * width + 1)]
        reference, found = self.euler(fine), []
        for block in range(blocks):
            skipping = fine[: block * width + 1] + fine[(block + 1) * width :]
            found.append(abs(self.euler(skipping) - reference))
        return found

    def test_the_steps_concentrate_there(self):
        density = density_of(self.costs(8, 4))
        # f decreases by 40 u there and increases by 0.1 u elsewhere: errors differ by a factor of 400, the
        # density by 20.
        assert density[0] / density[1] == pytest.approx(20, rel=0.01)
        assert density[1:] == pytest.approx([density[1]] * 7)

    @pytest.mark.parametrize("steps", [4, 8, 16])
    def test_the_result_is_closer(self, steps):
        exact = 40 * 0.125**2 / 2 + 0.1 / 2
        chosen = positions(density_of(self.costs(8, 4)), steps)
        even = positions(even_density(), steps)
        assert abs(self.euler(chosen) - exact) < abs(self.euler(even) - exact) / 2
