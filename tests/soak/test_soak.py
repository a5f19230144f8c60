"""Plays a short soak, and tests the soak: that it draws all kinds of scenarios, finds planted errors of this
pack, and prints the right command for a failure.
"""

import itertools

import pytest
from ras_pack.ras_core.run.recorder import Recorder
from ras_pack.ras_core.run.state import RunState

from . import checks, memory
from .__main__ import arguments
from .play import play
from .scenario import FAULTS, GUIDANCE, PATCHES, PROMPTS, Scenario
from .summary import ready, soak

SEED = 21
SHORT = (8, 17, 19, 106, 155, 213)
"""Numbers of scenarios that take at most a second each. Some have captured calls, several prompts or
faults."""


def test_a_short_soak_is_clean():
    lines = []
    summary = soak(SEED, iter(SHORT), report=lines.append)
    assert lines == []
    assert summary.scenarios == len(SHORT) and summary.refused == 0
    assert summary.regional >= 5 and summary.replayed >= 1
    assert len(summary.faults) >= 3 and summary.measured == 1


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
        **{"calls": "together", "halves": False, "tape": None, "other": None, "detour": None},
        **{"unload": False},
        **{"settings": {"sample_ratio": 0.5, "start_step": 2, "kv_cache": "gpu"}, "fault": None, "at": 1},
    }
    return Scenario(**{**values, **changes})


@pytest.fixture(scope="module")
def _ready():
    with ready():
        yield


@pytest.mark.usefixtures("_ready")
class TestPlay:
    def test_a_plain_scenario_has_no_failure(self):
        outcome = play(_plain())
        assert outcome.failures == [] and outcome.regional == 3

    def test_memory_that_is_kept_is_found(self, monkeypatch):
        kept = []
        monkeypatch.setattr(RunState, "release", lambda run: kept.append(run))
        assert any("still alive" in failure for failure in play(_plain()).failures)

    def test_any_object_of_the_pack_that_is_kept_is_found(self, monkeypatch):
        kept, end = [], Recorder.end
        monkeypatch.setattr(Recorder, "end", lambda self, *args: kept.append(self) or end(self, *args))
        failures = play(_plain()).failures
        assert any("objects of this pack are alive" in each and "Recorder" in each for each in failures)

    def test_a_leak_of_100_kb_per_run_is_found(self, monkeypatch):
        """No tensor and no object of the pack is alive, so that only the memory in use shows the leak."""
        kept, release = [], RunState.release
        monkeypatch.setattr(RunState, "release", lambda run: kept.append(bytes(10**5)) or release(run))
        scenario = _plain()
        assert play(scenario).failures == []
        assert any("leaked" in failure for failure in memory.leaked(lambda: play(scenario)))

    def test_a_leak_of_small_objects_is_found(self, monkeypatch):
        """100 kB per run in objects of Python, which the C library does not allocate."""
        kept, release = [], RunState.release
        monkeypatch.setattr(RunState, "release", lambda run: kept.append(_objects()) or release(run))
        scenario = _plain()
        assert play(scenario).failures == []
        assert any("leaked" in failure for failure in memory.leaked(lambda: play(scenario)))

    @pytest.mark.parametrize("changes", [{}, {"tape": "frozen", "steps": 8}, {"fault": "update_memory"}])
    def test_nothing_leaks(self, changes):
        scenario = _plain(**changes)
        assert play(scenario).failures == []
        assert memory.leaked(lambda: play(scenario)) == []

    def test_a_fault_in_the_first_of_two_runs_leaves_its_reason(self):
        """The wrapper outside RAS samples twice. The second run has no fault, and its trace no note."""
        outcome = play(_plain(patches=("two_passes", "ras"), fault="update_memory"))
        assert outcome.failures == [] and outcome.fault == "update_memory"

    @pytest.mark.parametrize("patches", [("ras",), ("two_passes", "ras"), ("ras", "two_passes")], ids=str)
    def test_a_fault_without_a_reason_is_found(self, patches, monkeypatch):
        monkeypatch.setattr(RunState, "warn", lambda run, text: None)
        outcome = play(_plain(patches=patches, fault="update_memory"))
        assert "the fault update_memory left no reason" in outcome.failures

    def test_a_reason_that_does_not_fit_the_fault_is_found(self, monkeypatch):
        warn = RunState.warn
        monkeypatch.setattr(RunState, "warn", lambda run, text: warn(run, "something else"))
        outcome = play(_plain(fault="update_memory"))
        assert "the fault update_memory left no reason" in outcome.failures

    def test_a_missing_reason_is_found(self, monkeypatch):
        monkeypatch.setattr(RunState, "warn", lambda run, text: None)
        assert any("without a reason" in failure for failure in play(_plain(prompts="area")).failures)

    def test_a_result_that_changes_is_found(self, monkeypatch):
        numbers, merge = itertools.count(), RunState.merge
        monkeypatch.setattr(RunState, "merge", lambda run, *args: merge(run, *args) + next(numbers) * 1e-3)
        assert any("the same run again" in failure for failure in play(_plain()).failures)

    def test_a_wrong_token_count_is_found(self, monkeypatch):
        end = Recorder.end
        monkeypatch.setattr(Recorder, "end", lambda self, active, score: end(self, _fewer(active), score))
        assert any("the last layer had" in failure for failure in play(_plain()).failures)


def _objects() -> list[str]:
    return [str(number) for number in range(10**9, 10**9 + 1700)]  # 59 bytes each


def _fewer(active):
    return None if active is None else active[:, 1:]


def test_a_failing_scenario_prints_the_command_that_repeats_it(monkeypatch):
    monkeypatch.setattr(checks, "nothing_alive", lambda: ["planted"])
    lines = []
    summary = soak(SEED, itertools.islice(itertools.count(SHORT[0]), 1), report=lines.append)
    assert lines == [f"make soak ARGS='--seed {SEED} --only {SHORT[0]}'  # planted"]
    assert list(summary.failures) == [SHORT[0]] and "1 failures" in summary.text()
    assert arguments(["--seed", "7", "--only", "3"]).only == 3


def test_a_soak_ends_when_its_time_is_over():
    assert soak(SEED, itertools.count(), is_over=lambda: True).scenarios == 0
