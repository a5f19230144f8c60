"""Captured regional calls without a GPU: a stand-in (tape) repeats the operations on the same buffers."""

import copy
import gc
from contextlib import nullcontext

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.graphs.capture import CapturedCall, RegionalCall, capture
from ras_pack.ras_core.graphs.eligibility import (
    MAX_GRAPHS,
    MAX_POSTPONED,
    GraphReport,
    call_obstacle,
    may_outlive_run,
    signature,
)
from ras_pack.ras_core.graphs.network_graphs import NetworkGraphs
from ras_pack.ras_core.graphs.network_identity import inspect
from ras_pack.ras_core.graphs.session import GraphSession
from ras_pack.ras_core.graphs.store import Buffers, GraphEnvironment, GraphStore
from ras_pack.ras_core.graphs.tape import without_frames
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.kv.plain import KVRows
from ras_pack.ras_core.run.partial_forward import NetworkCall
from support.families import FAMILIES
from support.sampling import (
    FAST,
    between_calls,
    distance,
    in_groups,
    positive_alone,
    sample,
    sample_ras,
    split_prompts,
)
from support.tape import BrokenTape, FrozenTape, Tapes, capture_on


def test_captured_and_eager_runs_agree_and_graphs_serve_the_next_run(family):
    noise, tape = family.noise(), FrozenTape()
    plain, _ = sample_ras(family.build(), family, noise, RASConfig(**{**vars(FAST), "cuda_graphs": "off"}))
    model = family.build()
    store = capture_on(model, tape)
    for run in (1, 2):
        latent, trace = sample_ras(model, family, noise)
        assert distance(latent, plain) < 2e-5
        assert trace.regional_steps == 7 and not trace.notes
        assert tape.captured == 1
        # Seven regional steps: the first eager, the second captured, five replayed; then all seven.
        assert tape.replayed == {1: 5, 2: 5 + 7}[run]
        assert trace.graphs == {1: GraphReport(1, 5), 2: GraphReport(0, 7)}[run]
        assert f"{trace.graphs.replayed} of 7 regional steps replayed as CUDA graphs" in trace.summary()
    assert store.nbytes() > 0


def test_a_step_counts_as_replayed_when_all_its_calls_were(sd3, monkeypatch):
    """Each prompt has its own call. The calls of both prompts are captured in the second regional step, and
    replayed in the remaining five.
    """
    model = sd3.build()
    split_prompts(monkeypatch, model)
    capture_on(model, Tapes(FrozenTape))
    _, trace = sample_ras(model, sd3, sd3.noise(), RASConfig(**{**vars(FAST), "kv_cache": "gpu"}))
    assert trace.graphs == GraphReport(2, 5)
    counts = {"captured": 2, "replayed": 5, "reason": None}
    assert trace.as_dict()["graphs"] == {**counts, "resident": None, "layers": None}


def test_without_graphs_there_is_no_report(sd3):
    model = sd3.build()
    capture_on(model, FrozenTape())
    _, trace = sample_ras(model, sd3, sd3.noise(), RASConfig(**{**vars(FAST), "cuda_graphs": "off"}))
    assert trace.graphs is None and "CUDA graphs" not in trace.summary()


def test_graphs_that_end_during_the_run_say_why(sd3):
    model = sd3.build()
    capture_on(model, FrozenTape())
    patched, evaluations = patch_model(model, FAST), []

    def controlled(executor, *args, **kwargs):
        evaluations.append(1)
        if len(evaluations) == 9:
            args[5]["patches"] = {"other": [print]}
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", controlled)
    sample(patched, sd3, sd3.noise())
    trace = last_trace(patched)
    assert trace.graphs == GraphReport(1, 3, "another node patches the network")
    assert "3 of 7 regional steps replayed as CUDA graphs (another node patches" in trace.summary()


def test_prompts_of_different_length_have_a_graph_each(family):
    model, tape = family.build(), FrozenTape()
    capture_on(model, tape)
    prompts = {"positive": family.conditioning(1, rows=40), "negative": family.conditioning(2, rows=4)}
    plain, _ = sample_ras(family.build(), family, family.noise(), **prompts)
    latent, trace = sample_ras(model, family, family.noise(), **prompts)
    assert distance(latent, plain) < 2e-5 and not trace.notes
    assert tape.captured >= 1 and tape.replayed >= 5


def test_another_size_gets_its_own_graph_and_the_first_stays_valid(family):
    model, tape = family.build(), FrozenTape()
    capture_on(model, tape)
    patched = patch_model(model, FAST)
    for size in [(16, 16), (12, 20), (16, 16)]:
        fresh, _ = sample_ras(family.build(), family, family.noise(*size))
        assert distance(sample(patched, family, family.noise(*size)), fresh) < 2e-5
    assert tape.captured == 2


def test_each_share_of_a_plan_has_its_graph(sd3):
    """For each token share, the first regional step is eager, the second captured, the others replayed."""
    shares = (1.0, 1.0) + (0.75,) * 4 + (0.5,) * 4 + (1.0,) + (0.25,) * 4
    config = RASConfig(shares=shares, corrections=True)
    plain, _ = sample_ras(sd3.build(), sd3, sd3.noise(), config, steps=len(shares))
    model, tape = sd3.build(), FrozenTape()
    store = capture_on(model, tape)
    captured = RASConfig(**{**vars(config), "cuda_graphs": "auto"})
    latent, trace = sample_ras(model, sd3, sd3.noise(), captured, steps=len(shares))
    assert distance(latent, plain) < 2e-5 and not trace.notes
    assert [step.active_share for step in trace.steps] == list(shares)
    assert tape.captured == store.count == 3 and trace.graphs == GraphReport(3, 6)


def test_the_ninth_setting_is_captured_too():
    """The store holds eight graphs. For a ninth, it evicts the least recently used and its buffers."""
    family, tape = FAMILIES["sd3"], FrozenTape()
    model = family.build()
    store = capture_on(model, tape)
    ratios = [0.1 * i for i in range(1, 9)]
    for number, (ratio, size) in enumerate([(0.5, 12), *((ratio, 16) for ratio in ratios), (0.1, 16)], 1):
        config = RASConfig(**{**vars(FAST), "sample_ratio": ratio})
        _, trace = sample_ras(model, family, family.noise(size, size), config)
        assert trace.regional_steps == 7
        assert tape.captured == min(number, 9) and store.count == min(number, MAX_GRAPHS)
        assert len(store.buffers) == {1: 1, 9: 1, 10: 1}.get(number, 2)


def test_the_least_recently_used_graph_is_evicted():
    store = _full_store()
    store.buffers[0].calls[0].last_run = store.runs = 9  # this run's, and the one that was captured first
    assert store.make_room()
    assert [len(each.calls) for each in store.buffers] == [1] * (MAX_GRAPHS - 1)
    assert store.buffers[0].calls[0].last_run == 9
    for each in store.buffers[1:]:
        each.calls[0].last_run = 9
    store.buffers.append(_buffers(9))
    assert not store.make_room()


def test_buffers_without_graphs_are_freed_after_the_run():
    store = _full_store()
    session = NetworkGraphs(store)
    store.buffers[0].is_lent = True
    assert store.make_room() and store.count == MAX_GRAPHS - 1 and len(store.buffers) == MAX_GRAPHS
    session.close()
    assert len(store.buffers) == MAX_GRAPHS - 1


def _buffers(run: int) -> Buffers:
    captured = CapturedCall({}, torch.zeros(1), torch.zeros(1), lambda: None, FrozenTape(), last_run=run)
    rows = torch.zeros(1, 2, 3)
    return Buffers((run,), {(0, 0): KVRows.of(rows, rows, 0, 0)}, {0: captured})


def _full_store() -> GraphStore:
    """Fill the store with graphs, each from a different run."""
    store = GraphStore(Tapes())
    store.buffers = [_buffers(run) for run in range(MAX_GRAPHS)]
    return store


def test_a_graph_is_replayed_only_for_calls_like_its_own():
    store, x = GraphStore(Tapes()), torch.zeros(1, 1, 2, 2)
    session, idx, seen = NetworkGraphs(store), torch.zeros(1, 2, dtype=torch.long), []

    def call(inputs, active_idx, slots):
        seen.append(inputs["n_tokens"])
        return inputs["x"]

    rows = torch.zeros(1, 2, 3)
    slots = {(0, 0): KVRows.of(rows, rows, 0, 0)}
    for n_tokens, is_captured in ((3, False), (3, True), (3, True), (4, False), (3, True)):
        inputs = {"x": x, "t": torch.ones(1), "n_tokens": n_tokens}
        output = session.run(("a",), inputs, idx, slots, call)
        assert (output is not None) == is_captured
    assert set(seen) == {3}


def test_parts_of_lent_buffers_are_not_lent_too(sd3, monkeypatch):
    """First a run has its two prompts in one call, then in two calls: the graphs for one prompt and for two
    prompts share K/V buffers. A run with three prompts must not use the same buffers for two of its calls.
    """
    monkeypatch.setattr("ras_pack.ras_core.host.graphs_of_model.may_outlive_run", lambda *_: True)
    three = sd3.conditioning(1) + sd3.conditioning(3) + sd3.conditioning(4)
    latents = []
    for graphs in ("off", "auto"):
        model = sd3.build()
        capture_on(model, FrozenTape())
        config = RASConfig(**{**vars(FAST), "kv_cache": "gpu", "cuda_graphs": graphs})
        for sizes, positive in (([[2]] * 6 + [[1, 1]] * 14, sd3.conditioning(1)), ([[2, 1, 1]] * 20, three)):
            patched = patch_model(model, config)
            between_calls(monkeypatch, in_groups(sizes.__getitem__))
            latents.append(sample(patched, sd3, sd3.noise(), positive=positive, steps=20))
    assert distance(latents[2], latents[0]) < 2e-5
    assert distance(latents[3], latents[1]) < 2e-5


def test_repeated_regrouping_of_calls_holds_no_more_memory(sd3, monkeypatch):
    """If free memory varies, ComfyUI evaluates the two prompts sometimes in one call, sometimes in two."""
    monkeypatch.setattr("ras_pack.ras_core.host.graphs_of_model.may_outlive_run", lambda *_: True)
    model = sd3.build()
    store = capture_on(model, FrozenTape())
    sizes, held = ([[2]] * 6 + [[1, 1]] * 6) * 5, []
    regroup = in_groups(sizes.__getitem__)

    def watched(*args):
        held.append(len(store.buffers))
        return regroup(*args)

    patched = patch_model(model, RASConfig(**{**vars(FAST), "kv_cache": "gpu"}))
    between_calls(monkeypatch, watched)
    sample(patched, sd3, sd3.noise(), steps=len(sizes))
    assert last_trace(patched).regional_steps > 30 and not last_trace(patched).notes
    assert max(held) == 3  # for both prompts in one call, and for each alone


def test_a_prompt_omitted_in_some_steps_has_one_set_of_buffers(sd3, monkeypatch):
    """The negative prompt is omitted in the steps that skip guidance."""
    monkeypatch.setattr("ras_pack.ras_core.host.graphs_of_model.may_outlive_run", lambda *_: True)
    model = sd3.build()
    split_prompts(monkeypatch, model)
    store = capture_on(model, FrozenTape())
    patched = patch_model(model, RASConfig(**{**vars(FAST), "kv_cache": "gpu"}))
    at_times = positive_alone(lambda step: step % 5 == 2)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "other", at_times)
    sample(patched, sd3, sd3.noise(), steps=40)
    assert len(store.buffers) == 2 and last_trace(patched).regional_steps > 20


def test_moved_weights_drop_the_graphs():
    family, tape = FAMILIES["sd3"], FrozenTape()
    model = family.build()
    capture_on(model, tape)
    sample_ras(model, family, family.noise())
    block = model.model.diffusion_model.joint_blocks[0].x_block.attn.qkv
    block.weight = torch.nn.Parameter(block.weight.detach() * 1.01, requires_grad=False)
    fresh, _ = sample_ras(model, family, family.noise(), RASConfig(**{**vars(FAST), "cuda_graphs": "off"}))
    latent, _ = sample_ras(model, family, family.noise())
    assert distance(latent, fresh) < 2e-5
    assert tape.captured == 2


def test_unloading_frees_the_memory():
    family = FAMILIES["sd3"]
    model = family.build()
    store = capture_on(model, FrozenTape())
    patched = patch_model(model, FAST)
    sample(patched, family, family.noise())
    assert store.count == 1
    patched.detach()
    assert store.count == 0 and store.nbytes() == 0


def test_a_failed_capture_is_logged_once_and_the_run_continues(caplog):
    family = FAMILIES["sd3"]
    plain, _ = sample_ras(family.build(), family, family.noise())
    model = family.build()
    capture_on(model, BrokenTape())
    with caplog.at_level("INFO"):
        latent, trace = sample_ras(model, family, family.noise())
    assert torch.equal(latent, plain) and trace.regional_steps == 7
    assert trace.graphs == GraphReport(0, 0, "capture failed (RuntimeError: planted)")
    assert "0 of 7 regional steps replayed as CUDA graphs (capture failed" in trace.summary()
    assert caplog.text.count("no CUDA graphs") == 1 and "planted" in caplog.text


class TestMomentaryObstacle:
    """A capture fails for a passing reason, for example too little free memory at that time."""

    def _session(self, store, *obstacles):
        answers = list(obstacles)
        environment = GraphEnvironment(lambda model: store, obstacle=lambda: answers.pop(0))
        self.answers = answers
        return GraphSession(environment)

    def _run(self, session, n_active):
        """Make one call, the only one of its evaluation. Returns whether it was captured or replayed."""
        session.begin_evaluation(True)
        session.begin_call(MODEL)
        inputs, idx = {"x": torch.zeros(1, 1, 2, 2)}, torch.zeros(1, n_active, dtype=torch.long)
        return session.of(MODEL).run(("a",), inputs, idx, self.slots, lambda now, *_: now["x"]) is not None

    @pytest.fixture(autouse=True)
    def _slots(self):
        rows = torch.zeros(1, 2, 3)
        self.slots = {(0, 0): KVRows.of(rows, rows, 0, 0)}

    def test_captured_calls_are_replayed_meanwhile(self, caplog):
        session = self._session(GraphStore(Tapes(FrozenTape)), None, SHORT, SHORT, None)
        with caplog.at_level("INFO"):
            assert [self._run(session, 2) for _ in range(3)] == [
                False,
                True,
                True,
            ]  # eager, captured, replayed
            for _ in range(2):
                self._run(session, 1)
            assert self._run(session, 2) and session.report == GraphReport(1, 2, SHORT)
            assert not self._run(session, 1) and self._run(session, 1), "captured in its fourth call"
            assert self._run(session, 1) and self._run(session, 2)
        assert session.report == GraphReport(2, 4) and not self.answers
        assert caplog.text.count(SHORT) == 1

    def test_a_run_makes_few_attempts(self):
        tapes = Tapes(FrozenTape)
        session = self._session(GraphStore(tapes), *[SHORT] * MAX_POSTPONED)
        assert not any(self._run(session, 2) for _ in range(3 * MAX_POSTPONED))
        assert session.report == GraphReport(0, 0, SHORT) and not self.answers

    def test_it_evicts_no_captured_call(self):
        store = _full_store()
        store.runs = 9
        session = self._session(store, SHORT)
        for _ in range(2):
            self._run(session, 2)
        assert store.count == MAX_GRAPHS and not self.answers


MODEL, SHORT = object(), "there is too little free memory to capture a call"


def test_an_interrupted_run_returns_what_it_borrowed():
    family, tape = FAMILIES["sd3"], FrozenTape()
    model = family.build()
    store = capture_on(model, tape)
    patched = patch_model(model, FAST)

    def stop(step, *_):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(patched, family, family.noise(), callback=stop)
    assert not any(buffers.is_lent for buffers in store.buffers)
    sample(patched, family, family.noise())
    assert tape.captured == 1 and last_trace(patched).regional_steps == 7


@pytest.mark.parametrize("format_name", ["gpu", "forecast"])
def test_a_run_whose_calls_are_regrouped_returns_all_buffers(sd3, format_name, monkeypatch):
    """Three steps evaluate both prompts in one call, the next three in one call per prompt, and so on. Each
    change allocates new buffers, and frees the buffers that they replace.
    """
    model, tape = sd3.build(), FrozenTape()
    split_prompts(monkeypatch, model, every=3)
    monkeypatch.setattr("ras_pack.ras_core.host.graphs_of_model.may_outlive_run", lambda *_: True)
    store = capture_on(model, tape)
    config = RASConfig(**{**vars(FAST), "kv_cache": format_name})
    _, trace = sample_ras(model, sd3, sd3.noise(), config, steps=24)
    assert tape.captured > 3 and len(store.buffers) == 1 and not trace.notes
    assert not any(buffers.is_lent for buffers in store.buffers)


def test_obstacles_to_capture():
    assert call_obstacle(False, None, False) is None
    assert "wraps" in call_obstacle(True, None, False)
    assert "attention" in call_obstacle(False, print, False)
    assert "patches" in call_obstacle(False, None, True)
    layer = torch.nn.Linear(2, 2)
    cpu = torch.device("cpu")
    assert inspect(layer, cpu).obstacle is None
    assert "memory" in inspect(layer, torch.device("meta")).obstacle
    layer.comfy_cast_weights = True
    assert inspect(layer, cpu).obstacle is None, "a cast is an operation like any other"
    foreign = type("PackedLinear", (torch.nn.Linear,), {"comfy_cast_weights": True, "__module__": "gguf.ops"})
    assert "another pack" in inspect(foreign(2, 2), cpu).obstacle
    packed = type("PackedTensor", (torch.Tensor,), {"__module__": "gguf.ops"})
    holder = torch.nn.Module()
    holder.register_buffer("packed", torch.zeros(2).as_subclass(packed))
    assert "PackedTensor" in inspect(holder, cpu).obstacle
    layer.weight_function = [torch.clone]
    assert "patched" in inspect(layer, cpu).obstacle
    assert may_outlive_run(30, 100) and not may_outlive_run(20, 100)
    assert may_outlive_run(60, 100, is_dynamic=True) and not may_outlive_run(40, 100, is_dynamic=True)


def test_signatures_distinguish_shapes_and_plain_values():
    x = torch.zeros(2, 3)
    assert signature({"x": x, "n": 4}) == signature({"x": torch.ones(2, 3), "n": 4})
    assert signature({"x": x, "n": 4}) != signature({"x": x, "n": 5})
    assert signature({"x": x}) != signature({"x": x[:1]})
    assert signature({"x": [x]}) is None


def test_a_copy_of_the_model_starts_without_graphs():
    store = GraphStore()
    store.buffers.append(object())
    assert copy.deepcopy(store).buffers == []


def test_conditionings_on_the_cpu_are_copied_only_when_they_change():
    context = torch.ones(1, 2, 3)
    seen = []

    def call(inputs, active_idx, slots):
        seen.append(inputs["context"].device.type)
        return torch.empty_like(inputs["x"])

    x = torch.empty(1, 4, 8, 8, device="meta")  # stands in for a device other than the CPU
    idx = torch.zeros(1, 2, dtype=torch.long, device="meta")
    captured = capture(FrozenTape(), RegionalCall({"x": x, "context": context}, idx, {}, call))
    assert seen == ["meta"]
    buffer = captured.inputs["context"] = torch.full_like(context, 7)  # one that can be read
    captured.run({"x": x, "context": context.clone()}, idx)
    assert buffer.eq(7).all()
    for value in (2.0, 1.0):
        captured.run({"x": x, "context": context * value}, idx)
        assert buffer.eq(value).all()


def test_tensors_of_a_failed_call_are_freed_when_its_error_is_caught(family):
    """When a capture fails, the tensors of the call are freed at once, without the garbage collector."""
    left = []

    class Watched(FrozenTape):
        def capture(self, work, around=nullcontext):
            gc.collect()
            before = {id(each) for each in _tensors()}
            gc.disable()
            try:
                work()
            except RuntimeError as error:
                failure = without_frames(error)
            finally:
                gc.enable()
            left.extend(tuple(each.shape) for each in _tensors() if id(each) not in before)
            raise failure

    def failing(call, *args, **kwargs):
        output = attend(call, *args, **kwargs)
        if is_capturing() and call.blocks_seen == 2:
            raise RuntimeError("planted")
        return output

    def is_capturing():
        return not gc.isenabled()

    attend = NetworkCall.attend
    model = family.build()
    store = capture_on(model, Watched())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkCall, "attend", failing)
        _, trace = sample_ras(model, family, family.noise(), RASConfig(**{**vars(FAST), "kv_cache": "gpu"}))
    assert left == [] and "planted" in store.capture_failure and trace.regional_steps == 7 and not trace.notes


def _tensors():
    return [each for each in gc.get_objects() if type(each) is torch.Tensor]
