"""Presets: named lists of cells, each of which answers one question about quality and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from .baselines import baselines
from .cells import ORDER_SAMPLERS, Cell, dense_cells
from .plan_cells import plans
from .shape_cells import shapes
from .speed_cells import speeds

# Step counts of the fewer-steps baselines. The cost reductions are 28 / steps: 1, 1.47, 1.65, ..., 4.
FEWER_STEPS = (28, 19, 17, 14, 12, 11, 9, 8, 7)
BASELINE_SAMPLERS = ("euler", "dpmpp_2m", "ab2")

# Number of steps, number of dense steps at the start, interval of later dense steps (0: none), share of
# active tokens, orders of the integrator.
MULTIRATE: tuple[tuple[int, int, int, float, tuple[int, ...]], ...] = (
    (28, 4, 6, 0.5, (2,)),  # 1.5x
    (28, 6, 0, 0.5, (2,)),
    (28, 8, 0, 0.5, (2,)),
    (20, 6, 0, 0.6, (2,)),  # 2x
    (20, 4, 4, 0.5, (2,)),
    (22, 6, 0, 0.5, (2,)),
    (24, 6, 0, 0.4, (2,)),
    (28, 6, 0, 0.35, (2,)),
    (28, 6, 0, 0.3, (1, 2)),
    (20, 4, 4, 0.25, (2,)),  # 2.5x
    (20, 6, 0, 0.35, (2,)),
    (17, 5, 0, 0.5, (2,)),
    (28, 5, 0, 0.2, (2,)),
    (28, 6, 0, 0.15, (2,)),
    (14, 5, 0, 0.5, (2,)),
    (14, 4, 0, 0.5, (2,)),  # 3x
    (17, 4, 0, 0.35, (2,)),
    (28, 5, 0, 0.1, (2,)),
    (20, 4, 0, 0.25, (2,)),
    (12, 4, 0, 0.5, (2,)),
    (28, 4, 0, 0.08, (1, 2)),  # 3.5x
    (24, 4, 0, 0.125, (2,)),
    (20, 4, 0, 0.15, (2,)),
    (14, 4, 0, 0.35, (1, 2)),
    (11, 4, 0, 0.5, (2,)),
)
# Settings with kv_cache = forecast, a second-order integrator and no later dense steps: number of steps,
# number of dense steps at the start, share of active tokens.
FORECAST = (
    (28, 8, 0.5),  # 1.5x
    (28, 6, 0.5),
    (20, 6, 0.6),  # 2x
    (22, 6, 0.5),
    (24, 6, 0.4),
    (28, 6, 0.35),
    (28, 6, 0.3),
    (20, 6, 0.35),  # 2.5x
    (17, 5, 0.5),
    (15, 5, 0.58),
    (28, 6, 0.2),
    (28, 6, 0.15),
    (20, 6, 0.25),
    (14, 5, 0.5),  # 3x
    (14, 4, 0.5),
    (13, 5, 0.5),
    (12, 5, 0.58),
    (12, 4, 0.5),
    (14, 4, 0.35),  # 3.5x
    (11, 4, 0.5),
    (10, 6, 0.46),
    (10, 4, 0.64),
)
# Settings at which multirate is compared with random tokens and with the paper's rule: cost reductions of
# about 1.5x and 2x, each with and without later dense steps. Columns as in MULTIRATE, without the orders.
COMPARED = (
    (28, 4, 6, 0.5),
    (28, 8, 0, 0.5),
    (28, 6, 0, 0.3),
    (20, 4, 4, 0.5),
)
CACHE_THRESHOLDS = {"lazycache": (0.1, 0.2, 0.4), "easycache": (0.1, 0.2, 0.4)}


def multirate(
    family: str, steps: int, start: int, reset: int, ratio: float, order: int, seed: int = 0
) -> Cell:
    """A multirate cell.

    The arguments are in the order of the notation in tables, such as 28/4/6 50 %: 28 steps, the first 4
    dense, then a dense step every 6 steps, half of the tokens in regional steps.
    """
    sampler = ORDER_SAMPLERS[order]
    return Cell(family, "multirate", sampler, steps, start=start, reset_every=reset, ratio=ratio, seed=seed)


def forecast(family: str, steps: int, start: int, ratio: float, order: int = 2, seed: int = 0) -> Cell:
    """A cell of the method forecast: multirate, with cached keys and values that are extrapolated.

    Only the first `start` steps are dense.
    """
    return Cell(family, "forecast", ORDER_SAMPLERS[order], steps, start=start, ratio=ratio, seed=seed)


def regional(family: str, method: str, steps: int, start: int, reset: int, ratio: float, seed: int) -> Cell:
    """A cell that samples with Euler and selects tokens by the given method.

    The method is "paper" (the paper's rule), "random" (random tokens) or "change" (those that change most).
    """
    scale = 0.1 if method == "paper" else 0.0
    return Cell(
        family, method, "euler", steps,
        start=start, reset_every=reset, ratio=ratio, starvation=scale, seed=seed,
    )  # fmt: skip


def settings(family: str, seed: int) -> list[Cell]:
    """RAS with the nodes' settings instead of plans, and baselines, all on the `simple` schedule."""
    cells = dense_cells(family, BASELINE_SAMPLERS, FEWER_STEPS, seed)
    cells += [forecast(family, *settings, seed=seed) for settings in FORECAST]
    for steps, start, reset, ratio, orders in MULTIRATE:
        cells += [multirate(family, steps, start, reset, ratio, order, seed) for order in orders]
    for method in ("paper", "random", "change"):
        cells += [regional(family, method, *settings, seed) for settings in COMPARED]
    for method, thresholds in CACHE_THRESHOLDS.items():
        for sampler in ("euler", "dpmpp_2m"):
            cells += [Cell(family, method, sampler, threshold=value, seed=seed) for value in thresholds]
    return [cell for cell in cells if acts(cell)]


def quick(family: str, seed: int) -> list[Cell]:
    """A few cells of the most important methods, which take a few minutes on a CPU."""
    cells = dense_cells(family, ("euler",), (28, 14), seed)
    cells += dense_cells(family, ("dpmpp_2m",), (28, 18, 14, 10), seed)
    cells += dense_cells(family, ("ab2",), (14,), seed)
    for settings in ((28, 4, 6, 0.5, 2), (20, 4, 4, 0.5, 2), (14, 4, 4, 0.25, 1)):
        cells.append(multirate(family, *settings, seed))
    cells += [regional(family, method, 20, 4, 4, 0.5, seed) for method in ("change", "random", "paper")]
    return [*cells, Cell(family, "lazycache", threshold=0.2, seed=seed)]


def acts(cell: Cell) -> bool:
    """Whether the cell's method has any effect on the cell's family.

    EasyCache has none on SD3: ComfyUI's SD3 network does not call the wrapper that EasyCache is built on.
    """
    return not (cell.method == "easycache" and "sd3" in cell.family)


def front(family: str, seed: int) -> list[Cell]:
    """All baselines and all plans, alternately, so that a sweep that stops early has some of both."""
    turns = zip_longest(baselines(family, seed), plans(family, seed))
    return [cell for turn in turns for cell in turn if cell is not None and acts(cell)]


PRESETS: dict[str, Callable[[str, int], list[Cell]]] = {
    "front": front,
    "baselines": lambda family, seed: [cell for cell in baselines(family, seed) if acts(cell)],
    "plans": plans,
    "speeds": speeds,
    "shapes": shapes,
    "settings": settings,
    "quick": quick,
}


def preset(name: str, families: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The cells of a preset for these families and seeds, grouped by family."""
    return [cell for family in families for seed in seeds for cell in PRESETS[name](family, seed)]
