"""Properties of the method's plain parts: plans, schedules, selection, the token grid, preferences."""

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from ras_pack.ras_core.config import MAX_SHARES, MIN_RATIO, PaperSettings, RASConfig, Window
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.method.plan import PLAN_SAMPLERS, PLAN_SPEEDS, Plan
from ras_pack.ras_core.method.plan_set import PlanSet
from ras_pack.ras_core.method.preferences import PRIORITY_WEIGHT, Preferences
from ras_pack.ras_core.method.schedule import StepKind, plan_steps, step_of_sigma
from ras_pack.ras_core.method.selection import count_drops, select_active
from ras_pack.ras_core.method.selector import ChangeSelector
from ras_pack.ras_core.method.sigma_grid import level_at, position_at
from support.properties import examples

# --- strategies ------------------------------------------------------------------------------------

shares = st.floats(MIN_RATIO, 1.0)
weights = st.floats(0.0, 1e6)
wide = st.floats(width=32, allow_nan=False)


@st.composite
def plans(draw) -> Plan:
    density = draw(st.lists(weights, min_size=1, max_size=24).filter(lambda found: sum(found) > 1e-6))
    steps = draw(st.integers(1, 40))
    return Plan(
        speed=draw(st.sampled_from(PLAN_SPEEDS)),
        sampler=draw(st.sampled_from(PLAN_SAMPLERS)),
        density=tuple(density),
        shares=tuple([1.0, 1.0, *draw(st.lists(shares, min_size=steps, max_size=steps))][:steps]),
        full_steps=draw(st.integers(steps, 200)),  # a file that states fewer is refused
        speedup=draw(st.floats(0.01, 100.0)),
        closeness=draw(st.none() | st.floats(-1e3, 1e3)),
        origin=draw(st.text(max_size=20)),
    )


@st.composite
def schedules(draw) -> list[float]:
    """Decreasing noise levels that end in 0, from 1 or a model's other first level."""
    falls = draw(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=60))
    first = draw(st.sampled_from([1.0, 14.6, 80.0]))
    left = [sum(falls[i:]) for i in range(len(falls))]
    return [first * each / left[0] for each in left] + [0.0]


@st.composite
def grids(draw) -> TokenGrid:
    axes = draw(st.sampled_from([2, 3]))
    side = st.integers(1, 9)
    size = tuple(draw(side) for _ in range(axes))
    return TokenGrid(size, tuple(draw(st.integers(1, 3)) for _ in range(axes)))


@st.composite
def scores(draw, least: int = 1) -> torch.Tensor:
    """(b, n) scores of any kind: equal ones, zeros and infinities among them."""
    n, images = draw(st.integers(least, 24)), draw(st.integers(1, 3))
    value = draw(st.sampled_from([wide, st.just(0.0), st.just(3.0), st.sampled_from([0.0, 1.0, math.inf])]))
    rows = st.lists(value, min_size=n, max_size=n)
    return torch.tensor([draw(rows) for _ in range(images)], dtype=torch.float32)


def _is_choice(active: torch.Tensor, images: int, count: int, n: int) -> bool:
    """Whether these are `count` different tokens of `n` in each image, sorted by position."""
    rising = (active[:, 1:] > active[:, :-1]).all()
    return active.shape == (images, count) and bool(rising) and 0 <= active.min() and active.max() < n


# --- plans -----------------------------------------------------------------------------------------


@examples(60)
@given(plans())
def test_a_plan_survives_json(plan):
    assert Plan.from_json(plan.to_json()) == plan


@examples(20)
@given(st.lists(plans(), min_size=1, max_size=6), st.text(max_size=10))
def test_a_set_of_plans_survives_json_and_finds_its_best(found, note):
    plans_of_model = PlanSet(tuple(found), note)
    again = PlanSet.from_json(plans_of_model.to_json())
    assert again == plans_of_model
    for plan in found:
        best = again.best(plan.speed, plan.sampler)
        assert (best.speed, best.sampler) == (plan.speed, plan.sampler)
        plain = [each.closeness for each in found if each.is_plain and each.closeness is not None]
        assert not best.is_plain or best.closeness is None or best.closeness <= max(plain)
    assert len(again.chosen()) == len({plan.speed for plan in found})


@examples(60)
@given(plans(), st.integers(1, 300))
def test_a_resized_plan_keeps_its_shares(plan, full_steps):
    resized = plan.resized(full_steps)
    assert resized.steps == max(1, round(plan.steps * full_steps / plan.full_steps))
    assert resized.full_steps == full_steps
    assert set(resized.shares) <= {1.0, *plan.shares}
    assert all(share == 1 for share in resized.shares[:2])
    assert plan.resized(plan.full_steps) == plan
    again = plan.on_grid(resized.steps)
    assert again.steps == resized.steps and again.shares == resized.shares


@examples(60)
@given(plans(), schedules())
def test_levels_of_a_plan_fall_from_the_first_level_to_zero(plan, fine):
    levels = plan.levels(fine)
    assert len(levels) == plan.steps + 1
    assert (levels[0], levels[-1]) == (fine[0], 0.0)
    assert all(a >= b for a, b in zip(levels, levels[1:], strict=False))


@examples(60)
@given(plans(), schedules(), schedules())
def test_levels_of_a_part_keep_their_ends_exactly(plan, fine, given_levels):
    levels = plan.levels_of_part(fine, given_levels)
    assert (levels[0], levels[-1]) == (given_levels[0], given_levels[-1])
    assert all(a >= b for a, b in zip(levels, levels[1:], strict=False))
    assert len(levels) == plan.resized(len(given_levels) - 1).steps + 1


@examples(60)
@given(schedules(), st.floats(0.0, 1.0))
def test_a_position_and_its_level_are_inverse(fine, position):
    level = level_at(fine, position)
    assert 0 <= level <= fine[0]
    assert math.isclose(level_at(fine, position_at(fine, level)), level, rel_tol=1e-9, abs_tol=1e-12)


# --- schedules -------------------------------------------------------------------------------------


@st.composite
def configs(draw) -> RASConfig:
    paper = None
    if draw(st.booleans()):
        ends = st.just(0.0) | shares
        steps = tuple(draw(st.lists(st.integers(0, 50), max_size=4)))
        paper = PaperSettings(ratio_end=draw(ends), error_reset_steps=steps)
    start = draw(st.integers(0, 60))
    return RASConfig(
        sample_ratio=draw(shares), start_step=start, paper=paper,
        end_step=draw(st.just(0) | st.integers(start + 1, start + 40)),
        error_reset_every=draw(st.integers(0, 9)),
    )  # fmt: skip


@examples(80)
@given(configs(), st.integers(1, 50), st.integers(1, 5000))
def test_every_step_has_a_kind_and_a_number_of_tokens(config, n_steps, n_tokens):
    steps = plan_steps(n_steps, config)
    assert [step.index for step in steps] == list(range(n_steps))
    assert all(step.kind is StepKind.DENSE for step in steps[: 2 if config.paper is None else 1])
    for step in steps:
        count = step.active_count(n_tokens)
        assert 1 <= count <= n_tokens
        if step.kind is StepKind.DENSE:
            assert count == n_tokens and step.ratio == 1
        else:
            assert config.start_step <= step.index and not step.is_reset
            assert not config.end_step or step.index < config.end_step
            assert step.ratio * n_tokens - 1e-3 <= count < step.ratio * n_tokens + 1 + 1e-3


@examples(40)
@given(st.lists(st.sampled_from([0.1, 0.4, 0.75, 1.0]), min_size=1, max_size=20))
def test_given_shares_are_the_steps(tail):
    config = RASConfig(shares=(1.0, 1.0, *tail))
    assert len({share for share in tail if share < 1}) <= MAX_SHARES
    assert tuple(step.ratio for step in plan_steps(len(tail) + 2, config)) == config.shares


@examples(60)
@given(schedules(), st.data())
def test_a_level_belongs_to_the_step_between_whose_levels_it_is(levels, data):
    step = data.draw(st.integers(0, len(levels) - 2))
    assume(levels[step] - levels[step + 1] > 1e-3 * levels[step])
    assert step_of_sigma(levels, levels[step]) == step
    inside = levels[step + 1] + (levels[step] - levels[step + 1]) * data.draw(st.floats(0.2, 1.0))
    assert step_of_sigma(levels, inside) == step


@examples(60)
@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(1, 200))
def test_a_window_in_shares_of_a_run_is_inside_it(start, end, n_steps):
    assume(end > start or start == 1)
    config = Window(start, end).of_run(RASConfig(), n_steps)
    assert n_steps * start - 1e-6 <= config.start_step <= n_steps
    assert config.end_step == 0 or config.start_step < config.end_step <= n_steps * end + 1e-6


# --- selection -------------------------------------------------------------------------------------


@examples(80)
@given(scores(), st.data())
def test_the_papers_selection_has_as_many_tokens_as_asked(metric, data):
    images, n = metric.shape
    count = data.draw(st.integers(1, n))
    settings = PaperSettings(
        high_ratio=data.draw(st.floats(0.0, 1.0)),
        starvation_scale=data.draw(st.sampled_from([0.0, 0.1, 10.0])),
        starvation=data.draw(st.sampled_from(["corrected", "reference"])),
    )
    drops = torch.randint(0, 9, metric.shape, generator=torch.Generator().manual_seed(n))
    active = select_active(metric, drops, count, settings)
    assert _is_choice(active, images, count, n)
    after = count_drops(drops, active)
    assert torch.equal(after.gather(1, active), drops.gather(1, active))
    assert int((after - drops).sum()) == images * (n - count)


def _change_selector(rates: torch.Tensor, preferences: Preferences | None = None) -> ChangeSelector:
    """A selector that has seen tokens of one pixel each change by the square root of these values."""
    images, n = rates.shape
    selector = ChangeSelector(TokenGrid((1, n), (1, 1)), preferences)
    first = torch.zeros(images, 1, 1, n)
    selector.observe(first, first, 1.0, None)
    selector.observe(first, rates.view(images, 1, 1, n), 0.8, None)
    return selector


finite = scores().map(lambda found: found.nan_to_num(posinf=1e3, neginf=-1e3).clamp(-1e3, 1e3))


@examples(80)
@given(finite, st.data())
def test_selection_by_change_has_as_many_tokens_as_asked(rates, data):
    images, n = rates.shape
    selector = _change_selector(rates)
    for sigma in (0.6, 0.5, 0.1):
        count = data.draw(st.integers(1, n))
        active = selector.select(count, sigma)
        assert _is_choice(active, images, count, n)
        estimate = rates.view(images, 1, 1, n) * data.draw(st.floats(-2, 2, width=32))
        selector.observe(estimate, estimate, sigma, active)
        assert selector.score.shape == (images, n)


@examples(60)
@given(finite, st.data())
def test_a_favoured_token_is_not_selected_less(rates, data):
    """A higher priority of one token never takes it out of the selection, and the same priority for all
    tokens changes nothing.
    """
    images, n = rates.shape
    count, token = data.draw(st.integers(1, n)), data.draw(st.integers(0, n - 1))
    plain = _change_selector(rates).select(count, 0.5)
    for value in (0.0, 1.0):  # their weights, 1 and 4, are powers of two
        same = Preferences(torch.full((1, n), value))
        assert torch.equal(_change_selector(rates, same).select(count, 0.5), plain)
    favoured = torch.zeros(1, n)
    favoured[0, token] = data.draw(st.floats(0.0, 1.0, width=32))
    active = _change_selector(rates, Preferences(favoured)).select(count, 0.5)
    assert ((plain == token).any(dim=1) <= (active == token).any(dim=1)).all()


# --- grid and preferences --------------------------------------------------------------------------


@examples(60)
@given(grids(), st.integers(1, 2))
def test_every_pixel_belongs_to_one_token(grid, images):
    tokens = torch.arange(grid.n).expand(images, -1)
    owners = sum(grid.active_pixels(tokens[:, i : i + 1]).int() for i in range(grid.n))
    assert grid.n == math.prod(grid.shape)
    assert owners.shape == (images, 1, *grid.size) and bool((owners == 1).all())


@examples(60)
@given(grids(), st.integers(0, 2**16))
def test_a_pooled_latent_has_each_tokens_mean(grid, seed):
    pixels = torch.randn(2, *grid.size, generator=torch.Generator().manual_seed(seed))
    pooled = grid.pool(pixels)
    for token in range(grid.n):
        mine = grid.active_pixels(torch.full((2, 1), token))[:, 0]
        expected = torch.stack([image[own].mean() for image, own in zip(pixels, mine, strict=True)])
        torch.testing.assert_close(pooled[:, token], expected, rtol=1e-4, atol=1e-5)


@examples(60)
@given(grids(), st.floats(-100, 100, width=32), st.data())
def test_smoothing_keeps_constants_and_bounds(grid, value, data):
    constant = torch.full((1, grid.n), value)
    torch.testing.assert_close(grid.smooth(constant), constant)
    count = data.draw(st.integers(1, grid.n))
    active = torch.randperm(grid.n, generator=torch.Generator().manual_seed(count))[None, :count]
    mask = grid.active_mask(active)
    assert int(mask.sum()) == count
    smooth = grid.smooth(mask.float())
    assert 0 <= smooth.min() and smooth.max() <= 1 + 1e-6
    assert bool((smooth[mask] >= 1 / 9 - 1e-6).all())


@examples(60)
@given(grids(), st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_weights_of_a_priority_are_between_one_and_four(grid, low, high):
    noise = torch.rand(1, *grid.size, generator=torch.Generator().manual_seed(grid.n))
    preferences = Preferences.of(grid, low + (high - low) * noise)
    assert preferences.priority.shape == (1, grid.n)
    assert 1 <= preferences.weight.min() and preferences.weight.max() <= 1 + PRIORITY_WEIGHT
    assert Preferences.of(grid, None).weight == 1
