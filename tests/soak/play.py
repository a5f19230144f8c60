"""Makes all runs of one scenario, and checks them."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ras_pack.ras_core.host.patch import last_trace
from ras_pack.ras_core.method.schedule import plan_steps
from ras_pack.ras_core.run.trace import Trace
from support.families import FAMILIES
from support.sampling import unload_all_models
from support.tape import FrozenLateTape, FrozenTape, capture_on
from torch import Tensor

from . import checks
from .faults import CAPTURES, is_interrupt, planted, spoiled
from .outside import Seen, traces_kept, watched
from .parts import Parts
from .scenario import Scenario

TAPES = {"frozen": FrozenTape, "late": FrozenLateTape}
SKIPPING = {"lazy_cache", "easy_cache", "step_cache", "two_passes"}
"""Patches with which some evaluations do not call the network, or the sampler is called more than once."""


@dataclass
class Outcome:
    """The result of playing a scenario.

    Attributes:
        failures: for each broken invariant, a sentence that says what was wrong.
        runs: number of sampling runs.
        regional: number of regional steps of the first run with RAS.
        replayed: number of evaluations of the first run with RAS and of its repetition in which all network
            calls were replayed.
        fault: name of the fault, if it has struck; otherwise None.
        refused: whether ComfyUI raises an error for this scenario even without RAS.
    """

    failures: list[str] = field(default_factory=list)
    runs: int = 0
    regional: int = 0
    replayed: int = 0
    fault: str | None = None
    refused: bool = False


@dataclass
class _Run:
    """One sampling run. If the scenario splits the schedule into halves, each list has an entry for each
    half.

    Attributes:
        latents: the sampled latents.
        traces: the trace of the last run of the pack; empty for a run without RAS.
        earlier: the traces of all other runs of the pack. There are some if a wrapper outside this pack's
            wrapper samples more than once.
        seen: the evaluations that were observed without this pack.
        error: the exception that the run has raised, or None.
    """

    latents: list[Tensor] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    earlier: list[Trace] = field(default_factory=list)
    seen: list[list[Seen]] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def latent(self) -> Tensor:
        return self.latents[-1]

    @property
    def regional(self) -> int:
        return sum(trace.regional_steps for trace in self.traces)

    @property
    def replayed(self) -> int:
        return sum(trace.graphs.replayed for trace in self.traces if trace.graphs is not None)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for trace in self.traces for note in trace.notes)

    @property
    def kinds(self) -> list[str]:
        return [each.kind.value for trace in self.traces for each in trace.evaluations]


def play(scenario: Scenario) -> Outcome:
    """Make all runs of a scenario, check them, and return the result."""
    outcome = Outcome()
    try:
        _Play(scenario, outcome).run()
    except Exception:  # an error that none of the checks expects
        outcome.failures.append("the soak itself failed: " + traceback.format_exc().strip()[-900:])
    outcome.failures += _left_over()
    return outcome


def _left_over() -> list[str]:
    unload_all_models()
    left = checks.live_bytes()
    tensors = f"{left / 2**20:.1f} MiB of tensors are alive after the scenario"
    return [tensors] * (left > checks.LIVE_LIMIT) + checks.none_of_the_pack()


class _Play:
    """Plays one scenario: makes its runs one after the other, and adds what is wrong to the outcome."""

    def __init__(self, scenario: Scenario, outcome: Outcome):
        self._scenario, self._outcome = scenario, outcome
        self._parts = Parts(scenario)
        self._plain = self._parts.model(None)
        self._store = None

    def run(self) -> None:
        scenario, parts = self._scenario, self._parts
        with parts.rows_learned():
            dense = self._sampled(self._plain)
        state = checks.network_state(parts.network)
        options = checks.options_state(parts.base.model_options)
        if scenario.tape:
            tape = CAPTURES.get(scenario.fault, TAPES[scenario.tape])
            self._store = capture_on(parts.base, lambda number: tape())
        ras = self._parts.model(scenario.settings)
        first = self._sampled(ras)
        if dense.error is not None:
            self._outcome.refused = True
            self._same_error(first, dense)
            return
        self._check_first(first, dense)
        if first.error is None:
            self._between(ras)
            self._again(ras, first)
            self._other_way(first)
        self._dense_again(dense)
        self._fail(checks.same_state(state, checks.network_state(parts.network), "the network"))
        after = checks.options_state(parts.base.model_options)
        self._fail(checks.same_state(options, after, "the model options"))
        if self._store is not None:
            self._store.clear()
        del ras, first, dense
        self._fail(checks.nothing_alive())

    def _fail(self, failures: list[str]) -> None:
        self._outcome.failures += failures

    def _sampled(self, model: Any, noise: Tensor | None = None, callback: Callable | None = None) -> _Run:
        """Sample once. If the run raises an exception, the result contains it, without its traceback."""
        run, parts = _Run(), self._parts
        self._outcome.runs += 1
        with ExitStack() as stack:
            stack.callback(gc.collect)
            seen = stack.enter_context(watched(parts.network))
            kept = stack.enter_context(traces_kept())
            try:
                for latent in parts.sample(model, parts.noise if noise is None else noise, callback):
                    run.latents.append(latent)
                    run.seen.append(list(seen))
                    seen.clear()
                    if model is not self._plain:
                        run.traces.append(last_trace(model))
                        run.earlier += [trace for trace in kept if trace is not run.traces[-1]]
                    kept.clear()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # in later versions, ComfyUI's interrupt is not an Exception
                run.error = error.with_traceback(None)
        return run

    def _same_error(self, found: _Run, wanted: _Run) -> None:
        if type(found.error) is not type(wanted.error):
            self._fail([f"without RAS {wanted.error!r:.150}, with it {found.error!r:.150}"])

    def _check_first(self, first: _Run, dense: _Run) -> None:
        """Check the first run with RAS: compare its latent with the dense run, and its traces with the
        observed evaluations.
        """
        if first.error is not None:
            self._fail([f"raised {type(first.error).__name__}: {first.error!s:.200}"])
            return
        self._outcome.regional = first.regional
        self._outcome.replayed = first.replayed
        self._fail(checks.same_form(first.latent, dense.latent, "the run"))
        skips = bool(SKIPPING & set(self._scenario.patches))
        for trace, seen in zip(first.traces, first.seen, strict=True):
            self._fail(checks.trace_of_run(trace, seen, skips))
            if not self._scenario.tape and not skips:
                frozen = FAMILIES[self._scenario.family].reference_rows
                self._fail(checks.rows_as_counted(trace, seen, frozen))
        if "speed" in self._scenario.settings:
            return
        if not skips:
            self._check_reasons(first)
        if "regional" not in first.kinds:
            self._equals_dense(first, dense)

    def _check_reasons(self, first: _Run) -> None:
        config = self._parts.settings(self._scenario.settings)
        for trace in first.traces:
            planned = [step.kind for step in plan_steps(trace.n_steps, config)]
            self._fail(checks.has_reason(trace, planned))

    def _equals_dense(self, run: _Run, dense: _Run) -> None:
        """Check that a run with RAS, in which no step was regional, is bit-identical to the dense run."""
        self._fail(checks.same_bits(run.latent, dense.latent, f"a run without regional steps {run.notes}"))

    def _between(self, ras: Any) -> None:
        """Do what the scenario asks for between the first run with RAS and its repetition: further runs,
        unloading the models, and the fault.
        """
        scenario = self._scenario
        if scenario.other is not None:
            before = last_trace(ras)
            self._sampled(self._parts.model(scenario.other))
            if last_trace(ras) is not before:
                self._fail(["another branch's run changed this branch's trace"])
        if scenario.detour is not None:
            noise = self._parts.other_noise(scenario.detour)
            dense, detour = self._sampled(self._plain, noise), self._sampled(ras, noise)
            if dense.error is not None or detour.error is not None:
                self._same_error(detour, dense)
            else:
                self._fail(checks.same_form(detour.latent, dense.latent, f"another {scenario.detour}"))
        if scenario.unload:
            unload_all_models()
        if scenario.fault and scenario.fault not in CAPTURES:
            self._with_fault(ras)

    def _with_fault(self, ras: Any) -> None:
        noise = spoiled(self._parts.noise, self._scenario)
        if self._scenario.fault == "nan" and (dense := self._sampled(self._plain, noise)).error is not None:
            self._same_error(self._sampled(ras, noise), dense)
            return
        with planted(self._scenario) as fault:
            run = self._sampled(ras, noise, fault.callback)
        if not fault.has_struck:
            return
        self._outcome.fault = self._scenario.fault
        if run.error is not None and run.error is not fault.error:
            self._fail([f"with the fault {self._scenario.fault}: {run.error!r:.200}"])
        if is_interrupt(fault.error) and run.error is not fault.error:
            self._fail([f"an interrupt was swallowed: {run.notes}"])
        if run.error is None and fault.error is not None and not self._says_why(run):
            self._fail([f"the fault {self._scenario.fault} left no reason"])

    def _says_why(self, run: _Run) -> bool:
        """Whether the traces have a note, or a reason for a failed capture, that can explain the fault's
        effect. If the sampler is called more than once, the fault may strike in any of these runs, and only
        the trace of this run has the reason.
        """
        traces = (*run.earlier, *run.traces)
        reasons = [note for trace in traces for note in trace.notes]
        reasons += [t.graphs.reason for t in traces if t.graphs is not None and t.graphs.reason]
        wanted = "memory" if self._scenario.fault.endswith("_memory") else ""
        return any(wanted in reason.lower() for reason in reasons)

    def _again(self, ras: Any, first: _Run) -> None:
        """Repeat the first run with RAS, and check that the result is the same."""
        again = self._sampled(ras)
        self._outcome.replayed += again.replayed
        if again.error is not None:
            self._fail([f"the same run again raised {again.error!r:.200}"])
        elif self._store is None:
            self._fail(checks.same_bits(again.latent, first.latent, "the same run again"))
        elif again.kinds == first.kinds and not self._is_coarse:
            self._fail(checks.close(again.latent, first.latent, "the same run again, replayed"))

    @property
    def _is_coarse(self) -> bool:
        """Whether rounding errors are so large that they may change which tokens are selected."""
        return self._scenario.dtype != "float32"

    def _other_way(self, first: _Run) -> None:
        """Make the first run with RAS in another way that must give the same result: without captured calls,
        or with the K/V rows in main memory instead of on the device (or the reverse).
        """
        settings = self._scenario.settings
        if "speed" in settings:
            return
        if self._store is not None:
            self._without_captures(first)
        elif settings["kv_cache"] in ("gpu", "cpu"):
            swapped = {"gpu": "cpu", "cpu": "gpu"}[settings["kv_cache"]]
            other = self._sampled(self._parts.model({**settings, "kv_cache": swapped}))
            self._same_way(other, first, f"with kv_cache = {swapped}", checks.same_bits)

    def _without_captures(self, first: _Run) -> None:
        plain = _Play(replace(self._scenario, tape=None), self._outcome)
        with plain._parts.rows_learned():
            plain._sampled(plain._plain)
        other = plain._sampled(plain._parts.model(self._scenario.settings))
        if other.kinds == first.kinds and not self._is_coarse:
            self._same_way(other, first, "without captured calls", checks.close)

    def _same_way(self, other: _Run, first: _Run, what: str, check: Callable) -> None:
        if other.error is not None:
            self._fail([f"{what}: {other.error!r:.200}"])
            return
        self._fail(check(other.latent, first.latent, what))

    def _dense_again(self, dense: _Run) -> None:
        """Check that a run of the unpatched model after all other runs, and a run with a sample ratio of 1,
        are bit-identical to the dense run.
        """
        after = self._sampled(self._plain)
        if after.error is not None:
            self._fail([f"the unpatched model raised {after.error!r:.200}"])
        else:
            self._fail(checks.same_bits(after.latent, dense.latent, "the unpatched model after the runs"))
        whole = self._sampled(self._parts.model({"sample_ratio": 1.0}))
        if whole.error is not None:
            self._fail([f"at ratio 1: {whole.error!r:.200}"])
        else:
            self._fail(checks.same_bits(whole.latent, dense.latent, "ratio 1"))


def is_deterministic(scenario: Scenario) -> bool:
    """Whether two runs of this scenario without RAS give bit-identical latents."""
    play = _Play(scenario, Outcome())
    with play._parts.rows_learned():
        runs = [play._sampled(play._plain) for _ in range(2)]
    return not any(run.error for run in runs) and not checks.same_bits(runs[0].latent, runs[1].latent, "")
