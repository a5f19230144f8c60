"""The cells that show which quality is possible without RAS, at cost reductions from 1.4x to 4x.

The settings that promise the highest quality come first.
"""

from __future__ import annotations

from collections.abc import Callable

from .cells import Cell

OTHER_SAMPLERS = (
    "ipndm", "ipndm_v", "deis", "uni_pc", "uni_pc_bh2", "res_multistep", "gradient_estimation", "lms",
)  # fmt: skip
"""ComfyUI's deterministic samplers that evaluate the model once per step, besides euler and dpmpp_2m."""

# Sampler, grid, steps.
Dense = tuple[str, str, int]
CALIBRATED: tuple[Dense, ...] = (
    *(("dpmpp_2m", "calibrated:0.5", steps) for steps in (19, 14, 11, 17, 22, 9, 12, 28)),
    *(("euler", "calibrated", steps) for steps in (11, 9, 8, 14, 7)),
    *(("dpmpp_2m", "calibrated", steps) for steps in (17, 14)),
    *(("ab2", "calibrated:0.5", steps) for steps in (14, 11, 17)),
)
SIMPLE: tuple[Dense, ...] = (
    *(("dpmpp_2m", "simple", steps) for steps in (28, 19, 14, 9)),
    *(("euler", "simple", steps) for steps in (14, 8)),
    *(("ab2", "simple", steps) for steps in (19, 14, 8)),
)
FRONT_LOADED: tuple[Dense, ...] = (
    ("dpmpp_2m", "8of40by3", 19),
    ("dpmpp_2m", "6of28by2", 17),
    ("dpmpp_2m", "8of40by4", 16),
    ("dpmpp_2m", "5of32by3", 14),
    ("euler", "8of50by7", 14),
    ("euler", "6of40by6", 12),
    ("euler", "4of24by3", 11),
    ("euler", "4of24by4", 9),
    ("euler", "3of28by5", 8),
    ("euler", "4of32by7", 8),
)
SCHEDULERS: tuple[Dense, ...] = (
    ("euler", "beta", 14),
    ("euler", "beta", 11),
    ("euler", "beta", 9),
    ("dpmpp_2m", "beta", 19),
)
SAMPLERS: tuple[Dense, ...] = (
    *((sampler, "calibrated:0.5", 14) for sampler in OTHER_SAMPLERS if sampler != "uni_pc_bh2"),
)

# Forecast polynomial (a key of whole_steps.FORMS), sampler, number of steps, number of steps computed at the
# start, interval of the computed steps after those.
WHOLE_STEPS = (
    ("taylor1", "dpmpp_2m", 40, 6, 3),
    ("hermite2", "dpmpp_2m", 40, 6, 3),
    ("chebyshev2", "dpmpp_2m", 40, 6, 3),
    ("taylor1", "dpmpp_2m", 28, 5, 3),
    ("hermite2", "dpmpp_2m", 28, 5, 3),
    ("chebyshev2", "dpmpp_2m", 28, 5, 3),
    ("taylor0", "euler", 28, 4, 4),
    ("taylor1", "dpmpp_2m", 28, 4, 4),
    ("hermite2", "dpmpp_2m", 28, 4, 4),
    ("chebyshev4", "dpmpp_2m", 28, 5, 3),
    ("taylor2", "dpmpp_2m", 40, 6, 3),
    ("hermite2", "euler", 28, 3, 5),
)
THRESHOLDS = (0.2, 0.1, 0.4, 0.05, 0.6)
"""Reuse thresholds of LazyCache and EasyCache."""
# Number of probe blocks, number of steps at the start that run all blocks, reuse threshold.
DBCACHE = (
    (1, 6, 0.1),
    (1, 6, 0.2),
    (1, 6, 0.05),
    (1, 4, 0.3),
    (2, 6, 0.1),
    (1, 4, 0.5),
)
# Number of steps, number of dense steps at the start, interval of the later dense steps (0: none), share of
# the tokens that a regional step processes.
TOKENS = ((28, 8, 0, 0.5), (20, 4, 4, 0.5))


def baselines(family: str, seed: int) -> list[Cell]:
    """The cells of every kind of baseline, in the order in which a sweep measures them: the kinds take turns,
    and each contributes two settings per turn.

    The first settings cover each kind coarsely; the later ones add points to its Pareto front.
    """
    kinds: tuple[tuple[Callable[..., Cell], tuple[tuple, ...]], ...] = (
        (dense, CALIBRATED),
        (dense, FRONT_LOADED),
        (dense, SIMPLE),
        (whole_steps, WHOLE_STEPS),
        (dense, SCHEDULERS),
        (block_cache, DBCACHE),
        (lazy_cache, tuple((value,) for value in THRESHOLDS)),
        (easy_cache, tuple((value,) for value in THRESHOLDS)),
        (random_tokens, TOKENS),
        (paper, TOKENS),
        (dense, SAMPLERS),
    )
    # Two settings of each kind in turn: a sweep that is stopped early has then measured some of every kind.
    longest = max(len(settings) for _, settings in kinds)
    return [
        make(family, *each, seed=seed)
        for first in range(0, longest, 2)
        for make, settings in kinds
        for each in settings[first : first + 2]
    ]


def dense(family: str, sampler: str, grid: str, steps: int, seed: int = 0) -> Cell:
    """A dense run (all tokens, every step) on a named sigma grid."""
    return Cell(family, sampler=sampler, steps=steps, grid=grid, seed=seed)


def whole_steps(
    family: str, form: str, sampler: str, steps: int, first: int, every: int, seed: int = 0
) -> Cell:
    """A run whose skipped steps get a forecast of the denoised estimate."""
    return Cell(
        family, "whole_steps", sampler, steps, start=first, reset_every=every, form=form, seed=seed
    )  # fmt: skip


def block_cache(family: str, probe: int, warm_up: int, threshold: float, seed: int = 0) -> Cell:
    """A run with DBCache (block_cache.py)."""
    return Cell(
        family, "dbcache", "dpmpp_2m", start=warm_up, probe=probe, threshold=threshold, seed=seed
    )  # fmt: skip


def lazy_cache(family: str, threshold: float, seed: int = 0) -> Cell:
    """A run with ComfyUI's LazyCache."""
    return Cell(family, "lazycache", "dpmpp_2m", threshold=threshold, seed=seed)


def easy_cache(family: str, threshold: float, seed: int = 0) -> Cell:
    """A run with ComfyUI's EasyCache."""
    return Cell(family, "easycache", "dpmpp_2m", threshold=threshold, seed=seed)


def random_tokens(family: str, steps: int, start: int, reset: int, ratio: float, seed: int = 0) -> Cell:
    """A run whose regional steps process the same share of the tokens as RAS would, chosen at random."""
    return Cell(family, "random", "euler", steps, start=start, reset_every=reset, ratio=ratio, seed=seed)


def paper(family: str, steps: int, start: int, reset: int, ratio: float, seed: int = 0) -> Cell:
    """A run whose regional steps select tokens by the rule of the RAS paper (arXiv 2502.10389)."""
    return Cell(
        family, "paper", "euler", steps,
        start=start, reset_every=reset, ratio=ratio, starvation=0.1, seed=seed,
    )  # fmt: skip
