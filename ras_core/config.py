"""The settings of a run, as frozen dataclasses that are validated on creation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .errors import LONGEST_QUOTE, RASError, check_choice, check_counts, check_range, quoted, shortened

Metric = Literal["std", "l2norm", "random"]
Starvation = Literal["corrected", "reference"]
Graphs = Literal["auto", "off"]

MIN_RATIO = 0.05

MAX_STEPS = 10_000
"""Largest number of steps that ComfyUI's sampler nodes accept."""

MAX_SHARES = 3
"""Most different token shares in a run's regional steps, because each share needs its own CUDA graphs."""


@dataclass(frozen=True)
class PaperSettings:
    """Settings that only the paper's method has; the multirate method needs none of them.

    Attributes:
        metric: what regions are ranked by: a statistic of the guided model output (paper, equation 1), or
            random numbers.
        high_ratio: share of the cached tokens (those that a step skips) that come from the high end of the
            ranking by the metric; the others come from its low end.
        starvation_scale: weight, in a token's score, of the number of steps in which the token was cached (k
            in equation 1); with 0, that number has no influence.
        ratio_end: share of active tokens in the last regional step. The share changes linearly over the
            regional steps, from `sample_ratio` on (the paper's dynamic sampling ratio). 0 for no change.
        error_reset_steps: numbers, from 0, of the error-reset steps (dense steps among the regional ones);
            unless empty, they replace `error_reset_every`.
        starvation: "corrected" makes a dropped token more likely to be selected again, as the paper's text
            says; "reference" is the formula of the reference code, which has the opposite effect.

    Raises:
        RASError: a value is out of range; the message says what is expected.
    """

    metric: Metric = "std"
    high_ratio: float = 1.0
    starvation_scale: float = 0.1
    ratio_end: float = 0.0
    error_reset_steps: tuple[int, ...] = ()
    starvation: Starvation = "corrected"

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, get_args(Metric))
        check_range("high_ratio", self.high_ratio, 0.0, 1.0)
        check_range("starvation_scale", self.starvation_scale, 0.0, 10.0)
        if self.ratio_end != 0:
            check_range("ratio_end", self.ratio_end, MIN_RATIO, 1.0, also="or 0 for a constant ratio")
        check_counts("error_reset_steps", self.error_reset_steps)
        check_choice("starvation", self.starvation, get_args(Starvation))


@dataclass(frozen=True)
class RASConfig:
    """The user's settings of a run.

    Attributes:
        sample_ratio: share of the image tokens processed in a regional step (0.05 to 1; 1 runs dense).
        start_step: first step that may be regional; the dense steps before it set the composition (paper,
            section 3.4).
        end_step: first step after those that may be regional; 0 means that steps may be regional until the
            end of the run.
        error_reset_every: after `start_step`, one in this many steps is dense (an error-reset step); 0 means
            that there are no such steps.
        paper: None for the multirate method, which selects the tokens whose denoised estimate has probably
            changed most; a PaperSettings for the paper's method, which ranks tokens by `paper.metric`.
        dense_steps: numbers of the error-reset steps of the multirate method; unless empty, they replace
            `error_reset_every`. No node sets this field: it serves studies and the comparison with the
            reference code.
        shares: share of the image tokens processed at each step of the run, 1 at a dense step; the first two
            shares must be 1. Unless empty, the shares replace all settings above that decide which steps are
            dense and how many tokens a regional step processes.
        corrections: replace the samplers euler and dpmpp_2m by the multirate integrator, which corrects the
            error of a token's skipped steps when the token is computed again (method/integrator.py).
        continue_outputs: if `corrections` is set, extrapolate a cached token's estimate along its last change
            instead of keeping it constant.
        spread: if `kv_cache` is "forecast" or "forecast2", correct the forecasts of cached K/V
            rows by the forecast errors that nearby rows show when the step computes them. This is done only
            in steps that process at least half of the tokens (kv/spread.py). Rows of reference images are not
            corrected.
        cuda_graphs: "auto" captures and replays regional steps as CUDA graphs where possible; "off" uses no
            CUDA graphs.
        kv_cache: how the keys and values of cached tokens are kept. "gpu": unchanged, on the GPU. "fp8": on
            the GPU in half the bytes. "cpu": unchanged, in main memory. "forecast": twice the bytes of "gpu";
            extrapolated along their last change (kv/forecast.py). "forecast2": three times the bytes;
            extrapolated from their last two changes (kv/quadratic.py). "off": not kept, so active tokens
            attend only to each other and to text. That is an ablation of the paper (table 4b), for
            experiments only: its images are unusable. "auto": the first of "gpu", "fp8" and "cpu" that fits
            into free memory; if none fits, the run is dense. If `corrections` is set, "auto" is "forecast"
            if that takes at most half of the free memory. This field accepts any text here, but `patch_model`
            refuses a text that is neither "auto" nor a format of kv/formats.py.

    Raises:
        RASError: a value is out of range; the message says what is expected.
    """

    sample_ratio: float = 0.5
    start_step: int = 4
    end_step: int = 0
    error_reset_every: int = 6
    paper: PaperSettings | None = None
    dense_steps: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    corrections: bool = False
    continue_outputs: bool = False
    spread: bool = False
    cuda_graphs: Graphs = "off"
    kv_cache: str = "auto"

    def __post_init__(self) -> None:
        check_range("sample_ratio", self.sample_ratio, MIN_RATIO, 1.0)
        for name in ("start_step", "end_step", "error_reset_every"):
            check_counts(name, (getattr(self, name),))
        check_counts("dense_steps", self.dense_steps)
        check_choice("cuda_graphs", self.cuda_graphs, get_args(Graphs))
        self._check_paper()
        self._check_shares()
        if 0 < self.end_step <= self.start_step:
            raise RASError(
                f"end_step = {self.end_step} is not after start_step = {self.start_step}.",
                "0 (no limit) or a number greater than start_step, so that some step may be regional.",
                "set end_step to 0, or use sample_ratio = 1 if you want a dense run.",
            )

    @property
    def error_reset_steps(self) -> tuple[int, ...]:
        """Numbers of the method's error-reset steps. If there are none, `error_reset_every` applies."""
        return self.dense_steps if self.paper is None else self.paper.error_reset_steps

    @property
    def wants_regional(self) -> bool:
        """Whether the user asks for regional steps at all."""
        return min(self.shares or (self.sample_ratio,)) < 1

    def _check_shares(self) -> None:
        for share in self.shares:
            check_range("each of shares", share, MIN_RATIO, 1.0)
        if self.shares and self.paper is not None:
            raise RASError(
                "a plan (a token share for each step) is used together with the paper's method.",
                "a plan with the multirate method only.",
                "set speed to custom, or disconnect paper.",
            )
        if any(share < 1 for share in self.shares[:2]):
            raise RASError(
                f"the plan's first steps process these shares of the tokens: {quoted(self.shares[:2])}.",
                "a share of 1 in the first two steps, because token selection needs their results.",
                "calibrate again.",
            )
        count = len({share for share in self.shares if share < 1})
        if count > MAX_SHARES:
            raise RASError(
                f"the plan's regional steps use {count} different token shares.",
                f"at most {MAX_SHARES} different shares.",
                "calibrate again with this version of the pack.",
            )

    def _check_paper(self) -> None:
        if self.paper is None:
            return
        if not isinstance(self.paper, PaperSettings):
            raise RASError(
                f"paper = {quoted(self.paper)}.",
                "the output of RASPaperSettings, or nothing for the multirate method.",
                "connect RASPaperSettings to paper, or disconnect paper.",
            )
        if self.dense_steps:
            raise RASError(
                f"dense_steps = {quoted(self.dense_steps)} is used together with the paper's method.",
                "dense_steps with the multirate method only.",
                "use error_reset_steps of PaperSettings.",
            )


@dataclass(frozen=True)
class Window:
    """The part of a run that may be regional, in shares of its steps.

    Attributes:
        start_percent: share of the steps that are dense at the start, 0 to 1; rounded up to whole steps.
        end_percent: regional steps are allowed until this share of the steps has run; all later steps are
            dense. With 1, they are allowed until the end of the run.

    Raises:
        RASError: a value is out of range, or the window contains no step.
    """

    start_percent: float = 0.2
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        check_range("start_percent", self.start_percent, 0.0, 1.0)
        check_range("end_percent", self.end_percent, 0.0, 1.0)
        if self.end_percent <= self.start_percent < 1:
            raise RASError(
                f"end_percent = {self.end_percent} is not after start_percent = {self.start_percent}.",
                "1 (no limit) or a number greater than start_percent, so that some step may be regional.",
                "set end_percent to 1, or use sample_ratio = 1 if you want a dense run.",
            )

    def of_run(self, config: RASConfig, n_steps: int) -> RASConfig:
        """`config` with this window, converted to whole steps of a run of `n_steps` steps."""
        start = math.ceil(self.start_percent * n_steps - 1e-9)
        end = math.floor(self.end_percent * n_steps + 1e-9)
        if end <= start:  # the run has too few steps for one of them to be in the window
            return replace(config, start_step=n_steps, end_step=0)
        return replace(config, start_step=start, end_step=end)


def parse_step_list(text: str) -> tuple[int, ...]:
    """Parse "12, 20" into (12, 20); an empty text gives ().

    Raises:
        RASError: it is not a text, or a part of it is not a whole number from 0 to MAX_STEPS.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else [text]
    wrong = [part for part in parts if not _is_step(part)]
    if wrong:
        holds = f" holds {', '.join(map(quoted, wrong[:4]))}" if wrong != [text] else ""
        raise RASError(
            f"error_reset_steps = {quoted(text)}{shortened(holds, LONGEST_QUOTE)}.",
            f"step numbers from 0 to {MAX_STEPS} separated by commas, for example 12,20, or nothing.",
            "correct the list, or leave it empty and use error_reset_every.",
        )
    return tuple(sorted({int(part) for part in parts}))


def _is_step(part: object) -> bool:
    """Whether it is the text of a step number. The length is checked first: Python refuses to convert a text
    of more than 4,300 digits.
    """
    return isinstance(part, str) and part.isdecimal() and len(part) < 10 and int(part) <= MAX_STEPS
