"""A cell: one sampling configuration to be measured. This module needs no model and no device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any, Literal, get_args

from ...ras_core.config import Metric, PaperSettings, RASConfig
from ...ras_core.errors import RASError
from ...ras_core.method.plan import PLAN_SAMPLERS, PLAN_SPEEDS, Plan
from ...ras_core.method.schedule import plan_steps
from ...ras_core.method.sigma_grid import even_density
from .sigma_grids import label_of, steps_of
from .whole_steps import computed_steps

CellMethod = Literal[
    "dense", "multirate", "forecast", "change", "paper", "random", "lazycache", "easycache",
    "whole_steps", "dbcache", "plan", "exact_kv",
]  # fmt: skip
FRESHER: dict[str, dict[str, Any]] = {
    "continued": {"continue_outputs": True},
    "quadratic": {"kv_cache": "forecast2"},
    "spread": {"spread": True},
    "fresher": {"continue_outputs": True, "kv_cache": "forecast2", "spread": True},
}
"""Methods that add settings to the method forecast, by name. The settings are fields of RASConfig.

- continued: the denoised estimates of cached tokens are extrapolated by their last change, instead of being
  kept constant;
- quadratic: cached keys and values are extrapolated by their last two changes, instead of by the last one;
- spread: forecasts of cached keys and values are corrected by the forecast errors of nearby rows, which the
  step computes;
- fresher: all three additions together.
"""
METHODS: tuple[str, ...] = (*get_args(CellMethod), *FRESHER)
REGIONAL = ("multirate", "forecast", "change", "paper", "random", *FRESHER)
CORRECTED = ("multirate", "forecast", *FRESHER)
PLANNED = ("plan", "exact_kv")
"""Methods that run a plan: a sampler, a grid, the token share of each step and a kind of K/V cache."""
RETIRED = ("adaptive",)
"""Methods that occur in committed results but no longer exist: their rows can be read, but not run again."""
CACHES = ("lazycache", "easycache")
ORDER_SAMPLERS = {1: "euler", 2: "dpmpp_2m"}
"""The ComfyUI sampler that RASKSampler replaces by the multirate integrator, for each integrator order."""


@dataclass(frozen=True)
class Cell:
    """One sampling configuration, which fills one row of the results.

    Attributes:
        family: name of a source (sources.py).
        method: how the cell samples:
            dense: every step processes all tokens; a baseline with fewer steps when `steps` is small.
            multirate: RAS that selects the tokens whose estimate has most likely changed, and samples with
                the multirate integrator.
            change: selects tokens as multirate does, but without the multirate integrator.
            forecast: multirate with kv_cache = "forecast".
            continued, quadratic, spread, fresher: forecast with the additional settings in FRESHER.
            paper: RAS with the token selection of the RAS paper.
            random: RAS that selects tokens at random.
            plan: RAS with a plan (PLANNED).
            exact_kv: as plan, but regional steps have exact keys and values (oracle.py).
            lazycache, easycache: ComfyUI's nodes of these names.
            dbcache: DBCache (block_cache.py).
            whole_steps: skipped steps get a forecast of the denoised estimate (whole_steps.py).
        sampler: name of a ComfyUI sampler or of one of the harness's own (solvers.py): "ab2", the
            second-order Adams-Bashforth method of the pack, or "ab2_unbounded", the usual one.
        steps: denoising steps.
        start, reset_every, reset_steps, ratio: as in RASConfig.
        ratio_end, metric, high_ratio: as in PaperSettings, for the methods paper and random.
        starvation: `starvation_scale` of PaperSettings, for the methods paper and random: weight, in a
            token's score, of the number of steps that dropped the token.
        threshold: reuse threshold of LazyCache, EasyCache and DBCache.
        seed: seed of the noise.
        grid: name of the sigma grid (sigma_grids.py); if empty, the scheduler of the sweep's options is used.
            The name of a grid can fix the number of steps, which then overrides `steps`: the name 8of40by3
            (the first 8 of 40 steps, then every third level) fixes 19.
        form: for the method whole_steps: name of the forecast (whole_steps.py). The method whole_steps
            computes the first `start` steps and then every `reset_every`-th step.
        probe: number of blocks that DBCache always runs. For DBCache, `start` is the number of steps at the
            start that run all blocks.
        shares: share of active tokens at each step, for the methods plan and exact_kv. If `shares` is
            empty, the first `start` steps and the steps in `reset_steps` are dense, and all other steps have
            the share `ratio`; `reset_every` is not used.
        kv_cache: as in RASConfig, for the methods plan and exact_kv.
        extra: further fields of RASConfig for the methods plan and exact_kv, as JSON text or a dictionary.
    """

    family: str
    method: str = "dense"
    sampler: str = "euler"
    steps: int = 28
    start: int = 0
    reset_every: int = 0
    reset_steps: tuple[int, ...] = ()
    ratio: float = 1.0
    ratio_end: float = 0.0
    metric: Metric = "std"
    high_ratio: float = 1.0
    starvation: float = 0.0
    threshold: float = 0.0
    seed: int = 0
    grid: str = ""
    form: str = ""
    probe: int = 0
    shares: tuple[float, ...] = ()
    kv_cache: str = "auto"
    extra: str = ""

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, *RETIRED):
            raise RASError(f"method {self.method!r}.", f"one of {', '.join(METHODS)}.", "correct --methods.")
        object.__setattr__(self, "reset_steps", tuple(self.reset_steps))  # JSON has made it a list
        object.__setattr__(self, "shares", tuple(self.shares))
        if isinstance(self.extra, dict):
            object.__setattr__(self, "extra", json.dumps(self.extra, sort_keys=True) if self.extra else "")
        steps = steps_of(self.grid) or (self.method in PLANNED and len(self.shares)) or self.steps
        object.__setattr__(self, "steps", steps)

    @property
    def key(self) -> str:
        """A hash of the settings. It names the cell in results, and is the same whenever the harness runs."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def order(self) -> int:
        """Order of the multirate integrator that matches the sampler: 1 for Euler, 2 for dpmpp_2m and ab2.

        It is 0 for all other samplers, which have no matching multirate integrator.
        """
        return {"euler": 1, "dpmpp_2m": 2, "ab2": 2}.get(self.sampler, 0)

    @property
    def label(self) -> str:
        """The cell's settings in words, for tables and plots."""
        run = f"{self.sampler} {self.steps} steps" + (f", {label_of(self.grid)}" if self.grid else "")
        if self.method == "dense":
            return run
        if self.method in CACHES:
            return f"{self.method} {self.threshold:g}, {run}"
        if self.method == "dbcache":
            return f"dbcache F{self.probe}, threshold {self.threshold:g} from step {self.start}, {run}"
        if self.method == "whole_steps":
            return f"{self.form}, computed: first {self.start} steps, then 1 in {self.reset_every}, {run}"
        if self.method in PLANNED:
            shares = self.step_shares()
            regional = sorted({share for share in shares if share < 1})
            told = "+".join(f"{share:.0%}" for share in regional)
            told = f"{sum(share == 1 for share in shares)} dense, {told}, {self.kv_cache}"
            return f"{self.method} {run}, {told}" + (f" {self.extra}" if self.extra else "")
        resets = "+".join(map(str, self.reset_steps)) or str(self.reset_every)
        kind = f" {self.metric}" if self.method == "paper" else ""
        kind += f" {self.high_ratio:.0%} from the high end" if self.high_ratio < 1 else ""
        return f"{self.method}{kind} {self.sampler} {self.steps}/{self.start}/{resets} {self.ratio:.0%}"

    def config(self) -> RASConfig | None:
        """The settings that a RAS node would have for this cell.

        None if the method runs a plan (PLANNED) or does not use RAS.
        """
        if self.method not in REGIONAL:
            return None
        common = {"sample_ratio": self.ratio, "start_step": self.start, "error_reset_every": self.reset_every}
        if self.method in ("paper", "random"):
            return RASConfig(**common, paper=self._paper_settings())
        kv_cache = "forecast" if self.method in ("forecast", *FRESHER) else "gpu"
        common |= {"dense_steps": self.reset_steps, "corrections": self.method in CORRECTED}
        return RASConfig(**{**common, "kv_cache": kv_cache, **FRESHER.get(self.method, {})})

    def _paper_settings(self) -> PaperSettings:
        return PaperSettings(
            metric="random" if self.method == "random" else self.metric,
            high_ratio=self.high_ratio,
            starvation_scale=self.starvation,
            ratio_end=self.ratio_end,
            error_reset_steps=self.reset_steps,
        )

    def planned_shares(self) -> list[float]:
        """Share of the tokens that each computed step processes, known before the run.

        LazyCache, EasyCache and DBCache decide what to skip during the run; here all their steps are dense.
        """
        if self.method in PLANNED:
            return list(self.step_shares())
        if self.method == "whole_steps":
            return [1.0] * computed_steps(self.steps, self.start, self.reset_every)
        config = self.config()
        if config is None:
            return [1.0] * self.steps
        return [step.ratio for step in plan_steps(self.steps, config)]

    def step_shares(self) -> tuple[float, ...]:
        """Share of the tokens at each step, for a cell that runs a plan."""
        if self.shares:
            return self.shares
        dense = {*range(self.start), *self.reset_steps}
        return tuple(1.0 if step in dense else self.ratio for step in range(self.steps))

    def plan(self) -> Plan:
        """The plan that ras_core runs for this cell.

        A plan's density decides the noise levels. Here the density is even, and it is not used: the noise
        levels come from the cell's grid.
        """
        shares = self.step_shares()
        sampler = self.sampler if self.sampler in PLAN_SAMPLERS else PLAN_SAMPLERS[0]  # no effect on shares
        return Plan(PLAN_SPEEDS[0], sampler, even_density(), shares, self.kv_cache)

    @property
    def extra_settings(self) -> dict[str, Any]:
        """The fields of RASConfig in `extra`, as a dictionary."""
        return {**json.loads(self.extra or "{}")}


def cell_from(row: dict[str, Any]) -> Cell:
    """A cell from a CSV row or a dictionary of its fields."""
    values = {}
    for field in fields(Cell):
        value, default = row[field.name], field.default
        if isinstance(default, tuple):
            number = int if field.name == "reset_steps" else float
            value = (
                tuple(number(each) for each in value.split("+") if each) if isinstance(value, str) else value
            )
        elif isinstance(default, (int, float)):
            value = type(default)(value)
        values[field.name] = value
    return Cell(**values)


def dense_cells(family: str, samplers: Iterable[str], steps: Iterable[int], seed: int = 0) -> list[Cell]:
    """Dense runs with fewer steps: the speed-up that any user can get without this pack."""
    return [
        Cell(family, sampler=sampler, steps=count, seed=seed) for sampler, count in product(samplers, steps)
    ]


def grid(
    families: Sequence[str],
    methods: Sequence[str],
    samplers: Sequence[str],
    steps: Sequence[int],
    starts: Sequence[int],
    resets: Sequence[int],
    ratios: Sequence[float],
    orders: Sequence[int],
    thresholds: Sequence[float],
    seeds: Sequence[int],
    grids: Sequence[str] = ("",),
    forms: Sequence[str] = ("taylor1",),
    probes: Sequence[int] = (1,),
    kv_caches: Sequence[str] = ("forecast",),
) -> list[Cell]:
    """The cells of all combinations of the given values, each once.

    A method ignores the arguments that it has no setting for: dense, for example, ignores `ratios`.
    """
    cells: dict[str, Cell] = {}
    own = [ORDER_SAMPLERS[order] for order in orders]
    for family, method, count, seed in product(families, methods, steps, seeds):
        base = Cell(family, method, steps=count, seed=seed)
        if method == "dense":
            made = [replace(base, sampler=s, grid=name) for s, name in product(samplers, grids)]
        elif method in CACHES:
            made = [replace(base, threshold=threshold) for threshold in thresholds]
        elif method == "dbcache":
            axes = product(probes, starts, thresholds)
            made = [replace(base, probe=p, start=start, threshold=t) for p, start, t in axes]
        elif method == "whole_steps":
            axes = product(forms, own, grids, starts, resets)
            made = [
                replace(base, form=form, sampler=s, grid=name, start=start, reset_every=every or 1)
                for form, s, name, start, every in axes
            ]
        elif method in PLANNED:
            axes = product(own, grids, starts, ratios, kv_caches)
            made = [
                replace(base, sampler=s, grid=name, start=start, ratio=ratio, kv_cache=kv_cache)
                for s, name, start, ratio, kv_cache in axes
            ]
        else:
            samplers_of_rule = own if method in CORRECTED else ["euler"]
            scale = 0.1 if method == "paper" else 0.0
            made = [
                replace(base, sampler=s, start=start, reset_every=reset, ratio=ratio, starvation=scale)
                for s, start, reset, ratio in product(samplers_of_rule, starts, resets, ratios)
            ]
        cells.update((cell.key, cell) for cell in made)
    return list(cells.values())
