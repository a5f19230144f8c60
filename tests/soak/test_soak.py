"""A short soak, and the soak itself: what it draws, what it finds, what it says."""

import itertools

import pytest
import torch
from ras_pack.ras_core.run.state import RunState

from . import checks
from .__main__ import arguments
from .play import play
from .scenario import FAULTS, GUIDANCE, PATCHES, PROMPTS, Scenario
from .summary import soak

SEED = 21
SHORT = (0,)
"""Scenarios of a second or less, with captured calls, several prompts and faults among them."""


def test_a_short_soak_is_clean():
    lines = []
    summary = soak(SEED, iter(SHORT), report=lines.append)
    assert lines == []
    assert summary.scenarios == len(SHORT) and summary.refused == 0
    assert summary.regional >= len(SHORT) - 2 and summary.replayed >= 2
    assert len(summary.faults) >= 3


def test_a_scenario_depends_on_its_seed_and_number_only():
    assert Scenario.draw(3, 14) == Scenario.draw(3, 14)
    assert Scenario.draw(3, 14) != Scenario.draw(3, 15) and Scenario.draw(3, 14) != Scenario.draw(4, 14)


def test_everything_is_drawn():
    drawn = [Scenario.draw(0, number) for number in range(1500)]
    assert {fault for each in drawn if (fault := each.fault)} == set(FAULTS)
    assert {name for each in drawn for name in each.patches} == {*PATCHES, "ras"}
    assert {each.guidance for each in drawn} == {*GUIDANCE, "cfg"}
    assert {each.prompts for each in drawn} == set(PROMPTS)
    assert {each.calls for each in drawn} == {"together", "split", "switching"}


def _plain(**changes) -> Scenario:
    values = {
        **{"family": "sd3", "dtype": "float32", "size": (8, 8), "batch": 1, "sampler": "euler"},
        **{"scheduler": "simple", "steps": 5, "denoise": 1.0, "cfg": 4.0, "guidance": "cfg"},
        **{"patches": ("ras",), "prompts": "plain", "latent": "empty", "mask": None, "priority": None},
        **{"calls": "together", "halves": False, "tape": None, "other": None, "unload": False},
        **{"settings": {"sample_ratio": 0.5, "start_step": 2, "kv_cache": "gpu"}, "fault": None, "at": 1},
    }
    return Scenario(**{**values, **changes})


def test_a_plain_scenario_has_no_failure():
    outcome = play(_plain())
    assert outcome.failures == [] and outcome.regional == 3


@pytest.mark.parametrize(
    ("name", "value", "failure"),
    [
        ("release", lambda self: KEPT.append(self), "still alive"),
        ("warn", lambda self, text: None, "without a reason"),
        ("merge", lambda self, branches, active_idx, fresh: fresh * torch.rand(1), "the same run again"),
    ],
    ids=["memory", "reason", "chance"],
)
def test_a_broken_invariant_is_found(name, value, failure, monkeypatch):
    monkeypatch.setattr(RunState, name, value)
    scenario = _plain(prompts="area") if name == "warn" else _plain()
    found = play(scenario).failures
    KEPT.clear()
    assert any(failure in each for each in found), found


KEPT: list[RunState] = []
"""State that a broken run keeps alive."""


def test_a_failing_scenario_prints_the_command_that_repeats_it(monkeypatch):
    monkeypatch.setattr(checks, "nothing_alive", lambda: ["planted"])
    lines = []
    summary = soak(SEED, itertools.islice(itertools.count(SHORT[0]), 1), report=lines.append)
    assert lines == [f"make soak ARGS='--seed {SEED} --only {SHORT[0]}'  # planted"]
    assert list(summary.failures) == [SHORT[0]] and "1 failures" in summary.text()
    assert arguments(["--seed", "7", "--only", "3"]).only == 3


def test_a_soak_ends_when_its_time_is_over():
    assert soak(SEED, itertools.count(), is_over=lambda: True).scenarios == 0
