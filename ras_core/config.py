"""Settings of the method: frozen, and checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .errors import RASError

Metric = Literal["std", "l2norm", "random"]
Starvation = Literal["corrected", "reference"]
Method = Literal["multirate", "paper"]
Graphs = Literal["auto", "off"]
Budget = Literal["fixed", "adaptive"]

MIN_RATIO = 0.05


@dataclass(frozen=True)
class RASConfig:
    """What the user sets once for a run.

    Attributes:
        sample_ratio: share of the image tokens processed in a regional step (0.05 to 1; 1 runs dense).
        start_step: first step that may be regional; the steps before it set the composition (paper, section
            3.4).
        end_step: first step that may no longer be regional (half-open window); 0 means to the end.
        error_reset_every: a dense step every so many steps after `start_step`; 0 means none.
        error_reset_steps: explicit error-reset steps; when not empty they win over `error_reset_every`.
        metric: region metric made from the guided model output (paper, equation 1).
        high_ratio: share of the cached tokens taken from the high end of the metric, the rest from its low
            end.
        starvation_scale: weight of a token's drop count in its score (k in equation 1); 0 switches it off.
        ratio_end: 0 keeps the ratio constant; otherwise it goes linearly from `sample_ratio` to this value
            over the regional steps (the paper's dynamic sampling ratio).
        starvation: "corrected" makes a dropped token more likely to return, which is what the paper's text
            means; "reference" is the formula of the reference code, where the sign works the other way.
        method: "multirate" picks tokens whose estimate has most likely moved; "paper" ranks by `metric`.
        corrections: let the multirate integrator replace the euler and dpmpp_2m samplers
            (method/integrator.py).
        cuda_graphs: "auto" replays regional steps as CUDA graphs where that is possible; "off" never does.
        kv_cache: where the keys and values of cached tokens are kept: "gpu" as they are, "fp8" in half the
            bytes, "cpu" in main memory; "auto" takes the first of these that fits into free memory, else the
            run is dense. "off" keeps none: regional steps attend among active tokens and text only. That is
            the paper's ablation (table 4b), a baseline for experiments; images fall apart. "forecast" keeps
            twice the bytes of "gpu", and extrapolates keys and values along their last change
            (kv/forecast.py). Not checked here: the settings are those of the registry (kv/formats.py), and
            `patch_model` refuses others.
        budget: "fixed" processes `sample_ratio` of the tokens in every regional step; "adaptive" lets the
            share follow the predicted change, with the same average and dense steps paid from it
            (method/token_budget.py). It needs the multirate method, and knows no `error_reset_every`.

    Raises:
        RASError: a value out of range, with what is expected.
    """

    sample_ratio: float = 0.5
    start_step: int = 4
    end_step: int = 0
    error_reset_every: int = 6
    error_reset_steps: tuple[int, ...] = ()
    metric: Metric = "std"
    high_ratio: float = 1.0
    starvation_scale: float = 0.1
    ratio_end: float = 0.0
    starvation: Starvation = "corrected"
    method: Method = "paper"
    corrections: bool = False
    cuda_graphs: Graphs = "off"
    kv_cache: str = "auto"
    budget: Budget = "fixed"

    def __post_init__(self) -> None:
        _check_range("sample_ratio", self.sample_ratio, MIN_RATIO, 1.0)
        if self.ratio_end != 0:
            _check_range("ratio_end", self.ratio_end, MIN_RATIO, 1.0, also="or 0 for a constant ratio")
        _check_range("high_ratio", self.high_ratio, 0.0, 1.0)
        _check_range("starvation_scale", self.starvation_scale, 0.0, 10.0)
        for name in ("start_step", "end_step", "error_reset_every"):
            _check_count(name, getattr(self, name))
        for step in self.error_reset_steps:
            _check_count("error_reset_steps", step)
        _check_choice("metric", self.metric, get_args(Metric))
        _check_choice("starvation", self.starvation, get_args(Starvation))
        _check_choice("method", self.method, get_args(Method))
        _check_choice("cuda_graphs", self.cuda_graphs, get_args(Graphs))
        _check_choice("budget", self.budget, get_args(Budget))
        if self.budget == "adaptive" and self.method != "multirate":
            raise RASError(
                f"budget = 'adaptive' with method = {self.method!r}, whose metric predicts no change.",
                "budget = 'adaptive' with method = 'multirate', or budget = 'fixed'.",
                "set method to multirate, or budget to fixed.",
            )
        if 0 < self.end_step <= self.start_step:
            raise RASError(
                f"end_step = {self.end_step} is not after start_step = {self.start_step}: no regional step.",
                "end_step of 0 (to the end of the run) or greater than start_step.",
                "set end_step to 0, or use sample_ratio = 1 if you want a dense run.",
            )


def parse_step_list(text: str) -> tuple[int, ...]:
    """Turn "12, 20" into (12, 20); an empty text gives ().

    Raises:
        RASError: a part of the text is not a whole number of 0 or more.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise RASError(
            f"error_reset_steps = {text!r} holds {', '.join(map(repr, wrong))}.",
            "step numbers from 0 separated by commas, for example 12,20, or nothing.",
            "correct the list, or leave it empty and use error_reset_every.",
        )
    return tuple(sorted({int(part) for part in parts}))


def _check_range(name: str, value: float, low: float, high: float, also: str = "") -> None:
    if isinstance(value, (int, float)) and low <= value <= high:
        return
    expected = f"a number from {low:g} to {high:g}{' ' + also if also else ''}."
    raise RASError(f"{name} = {value!r}.", expected, f"choose {name} within that range.")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, int) and value >= 0:
        return
    raise RASError(f"{name} = {value!r}.", "a whole number of 0 or more.", f"correct {name}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value in choices:
        return
    raise RASError(f"{name} = {value!r}.", f"one of {', '.join(choices)}.", f"pick one of these for {name}.")
