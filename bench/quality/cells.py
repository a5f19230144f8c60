"""A cell: one way to make the pictures, to be measured. Pure: no model, no device."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ...ras_core.config import Metric, PaperSettings, RASConfig
from ...ras_core.errors import RASError
from ...ras_core.method.schedule import plan_steps

CellMethod = Literal["dense", "multirate", "forecast", "change", "paper", "random", "lazycache", "easycache"]
FRESHER: dict[str, dict[str, Any]] = {
    "continued": {"continue_outputs": True},
    "quadratic": {"kv_cache": "forecast2"},
    "spread": {"spread": True},
    "fresher": {"continue_outputs": True, "kv_cache": "forecast2", "spread": True},
}
"""Additions to forecast, as settings: outputs continued, quadratic rows, errors spread, and all of these."""
METHODS: tuple[str, ...] = (*get_args(CellMethod), *FRESHER)
REGIONAL = ("multirate", "forecast", "change", "paper", "random", *FRESHER)
CORRECTED = ("multirate", "forecast", *FRESHER)
RETIRED = ("adaptive",)
"""Methods that committed results have and this version does not: rows are read, and cannot be run again."""
CACHES = ("lazycache", "easycache")
ORDER_SAMPLERS = {1: "euler", 2: "dpmpp_2m"}
"""In RASKSampler these samplers are the corrected integrator of first and second order."""


@dataclass(frozen=True)
class Cell:
    """One row of the results.

    Attributes:
        family: name of a source (sources.py).
        method: dense (fewer steps when `steps` is small); multirate (change-based selection and corrected
            integrator); forecast (multirate with kv_cache = forecast) and its additions (FRESHER); change
            (the selection alone); paper; random tokens; ComfyUI's LazyCache, EasyCache.
        sampler: name of a ComfyUI sampler, or "ab2".
        steps: denoising steps.
        start, reset_every, reset_steps, ratio: as in RASConfig.
        ratio_end, metric, high_ratio, starvation: as in PaperSettings, for paper and random.
        threshold: reuse threshold of LazyCache and EasyCache.
        seed: of the noise.
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

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, *RETIRED):
            raise RASError(f"method {self.method!r}.", f"one of {', '.join(METHODS)}.", "correct --methods.")
        object.__setattr__(self, "reset_steps", tuple(self.reset_steps))  # a list after JSON

    @property
    def key(self) -> str:
        """Short name of the settings, the same in every run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def order(self) -> int:
        """Order of the integrator: 1 for Euler, 2 for the second-order forms, 0 where it is another's."""
        return {"euler": 1, "dpmpp_2m": 2, "ab2": 2}.get(self.sampler, 0)

    @property
    def label(self) -> str:
        """For people: what was done."""
        if self.method == "dense":
            return f"{self.sampler} {self.steps} steps"
        if self.method in CACHES:
            return f"{self.method} {self.threshold:g}, {self.sampler} {self.steps} steps"
        resets = "+".join(map(str, self.reset_steps)) or str(self.reset_every)
        kind = f" {self.metric}" if self.method == "paper" else ""
        kind += f" {self.high_ratio:.0%} from the high end" if self.high_ratio < 1 else ""
        return f"{self.method}{kind} {self.sampler} {self.steps}/{self.start}/{resets} {self.ratio:.0%}"

    def config(self) -> RASConfig | None:
        """The node's settings for this cell; None where no RAS node takes part."""
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
        """Share of the tokens of each step, as planned; a cache's skipped steps are not known before."""
        config = self.config()
        if config is None:
            return [1.0] * self.steps
        return [step.ratio for step in plan_steps(self.steps, config)]


def cell_from(row: dict[str, Any]) -> Cell:
    """A cell from a CSV row or a dictionary of its fields."""
    values = {}
    for field in fields(Cell):
        value, default = row[field.name], field.default
        if field.name == "reset_steps":
            value = tuple(int(step) for step in value.split("+") if step) if isinstance(value, str) else value
        elif isinstance(default, (int, float)):
            value = type(default)(value)
        values[field.name] = value
    return Cell(**values)


def dense_cells(family: str, samplers: Iterable[str], steps: Iterable[int], seed: int = 0) -> list[Cell]:
    """Fewer steps: what any user can do without this pack."""
    return [
        Cell(family, sampler=sampler, steps=count, seed=seed)
        for sampler, count in itertools.product(samplers, steps)
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
) -> list[Cell]:
    """Every combination, each once: an axis that a method does not have is left out for it."""
    cells: dict[str, Cell] = {}
    for family, method, count, seed in itertools.product(families, methods, steps, seeds):
        base = Cell(family, method, steps=count, seed=seed)
        if method == "dense":
            made = [replace(base, sampler=sampler) for sampler in samplers]
        elif method in CACHES:
            made = [replace(base, threshold=threshold) for threshold in thresholds]
        else:
            own = [ORDER_SAMPLERS[order] for order in orders] if method in CORRECTED else ["euler"]
            scale = 0.1 if method == "paper" else 0.0
            made = [
                replace(base, sampler=s, start=start, reset_every=reset, ratio=ratio, starvation=scale)
                for s, start, reset, ratio in itertools.product(own, starts, resets, ratios)
            ]
        cells.update((cell.key, cell) for cell in made)
    return list(cells.values())
