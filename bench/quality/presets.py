"""Lists of cells, each for one question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from .baselines import baselines
from .cells import ORDER_SAMPLERS, Cell, dense_cells
from .plan_cells import plans

# Step counts; the cost reduction is 28 divided by each: 1, 1.47, 1.65, 2, 2.33, 2.55, 3.1, 3.5, 4.
FEWER_STEPS = (28, 19, 17, 14, 12, 11, 9, 8, 7)
BASELINE_SAMPLERS = ("euler", "dpmpp_2m", "ab2")

# steps, dense start, reset every, share of active tokens, orders
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
# With kv_cache = forecast, second order: steps, dense start, share of active tokens; no resets.
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
# The settings at which random tokens and the paper's rule are compared: 1.5x and 2x, with resets and without.
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
    """A multirate cell; the arguments are in the order of the usual notation: 28/4/6, 50 %, second order."""
    sampler = ORDER_SAMPLERS[order]
    return Cell(family, "multirate", sampler, steps, start=start, reset_every=reset, ratio=ratio, seed=seed)


def forecast(family: str, steps: int, start: int, ratio: float, order: int = 2, seed: int = 0) -> Cell:
    """A multirate cell without resets whose cached keys and values are extrapolated: 28/6, 50 %."""
    return Cell(family, "forecast", ORDER_SAMPLERS[order], steps, start=start, ratio=ratio, seed=seed)


def regional(family: str, method: str, steps: int, start: int, reset: int, ratio: float, seed: int) -> Cell:
    """A cell with Euler and the paper's rule, random tokens, or only change-based selection."""
    scale = 0.1 if method == "paper" else 0.0
    return Cell(
        family, method, "euler", steps,
        start=start, reset_every=reset, ratio=ratio, starvation=scale, seed=seed,
    )  # fmt: skip


def settings(family: str, seed: int) -> list[Cell]:
    """The nodes' settings on the `simple` schedule, without plans, compared with fewer steps on it."""
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
    """A quick look at every method: a few minutes on a CPU."""
    cells = dense_cells(family, ("euler",), (28, 14), seed)
    cells += dense_cells(family, ("dpmpp_2m",), (28, 18, 14, 10), seed)
    cells += dense_cells(family, ("ab2",), (14,), seed)
    for settings in ((28, 4, 6, 0.5, 2), (20, 4, 4, 0.5, 2), (14, 4, 4, 0.25, 1)):
        cells.append(multirate(family, *settings, seed))
    cells += [regional(family, method, 20, 4, 4, 0.5, seed) for method in ("change", "random", "paper")]
    return [*cells, Cell(family, "lazycache", threshold=0.2, seed=seed)]


def acts(cell: Cell) -> bool:
    """ComfyUI's EasyCache has no effect on SD3: that network does not call the wrapper that it needs."""
    return not (cell.method == "easycache" and "sd3" in cell.family)


def front(family: str, seed: int) -> list[Cell]:
    """Both sides in turn: baselines and plans."""
    turns = zip_longest(baselines(family, seed), plans(family, seed))
    return [cell for turn in turns for cell in turn if cell is not None and acts(cell)]


PRESETS: dict[str, Callable[[str, int], list[Cell]]] = {
    "front": front,
    "baselines": lambda family, seed: [cell for cell in baselines(family, seed) if acts(cell)],
    "plans": plans,
    "settings": settings,
    "quick": quick,
}


def preset(name: str, families: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The preset's cells, one family at a time."""
    return [cell for family in families for seed in seeds for cell in PRESETS[name](family, seed)]
