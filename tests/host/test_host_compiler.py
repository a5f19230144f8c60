"""ComfyUI's own graphs and compiler, with stand-ins for features that only later versions have."""

import sys
import threading
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import comfy.cli_args
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.host import compiler as host_compiler
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.kv.arena import Arena
from support.sampling import FAST, distance, sample, sample_ras
from support.tape import FrozenTape, capture_on

CAPTURED = RASConfig(**{**vars(FAST), "kv_cache": "gpu"})
EAGER = RASConfig(**{**vars(CAPTURED), "cuda_graphs": "off"})
DENSE = RASConfig(sample_ratio=1.0)


@pytest.fixture
def prefetch(monkeypatch):
    """A function that sets an attribute of ComfyUI's prefetch module until the test ends."""
    module = sys.modules.get(host_compiler.PREFETCH) or ModuleType(host_compiler.PREFETCH)
    monkeypatch.setitem(sys.modules, host_compiler.PREFETCH, module)
    return lambda name, value: monkeypatch.setattr(module, name, value, raising=False)


class TestCompilerOff:
    @pytest.fixture
    def switches(self, monkeypatch):
        """Add ComfyUI's switches for its graphs and compiler to its command-line arguments.

        Returns a function that reads their values.
        """
        for name in host_compiler.SWITCHES:
            monkeypatch.setattr(comfy.cli_args.args, name, False, raising=False)
        return lambda: [getattr(comfy.cli_args.args, name) for name in host_compiler.SWITCHES]

    def _seen(self, sd3, config, switches, error=None):
        patched, seen = patch_model(sd3.build(), config), []

        def watch(executor, *args):
            seen.append(switches())
            if error is not None:
                raise error
            return executor(*args)

        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "other", watch)
        sample(patched, sd3, sd3.noise())
        return seen

    def test_it_is_off_in_a_run_and_restored_afterwards(self, sd3, switches):
        assert self._seen(sd3, EAGER, switches) == [[True, True]] * 10
        assert switches() == [False, False]

    def test_it_is_restored_after_an_error(self, sd3, switches):
        with pytest.raises(KeyboardInterrupt):
            self._seen(sd3, EAGER, switches, KeyboardInterrupt())
        assert switches() == [False, False]

    def test_a_run_without_regional_steps_keeps_it(self, sd3, switches):
        assert self._seen(sd3, DENSE, switches) == [[False, False]] * 10

    def test_switches_that_the_user_turned_off_stay_off(self, sd3, switches):
        comfy.cli_args.args.disable_comfy_compiler = True
        self._seen(sd3, EAGER, switches)
        assert switches() == [True, False]

    def test_switches_that_do_not_exist_are_not_created(self):
        before = dict(vars(comfy.cli_args.args))
        with host_compiler.compiler_off(True):
            assert vars(comfy.cli_args.args).keys() == before.keys()
        assert vars(comfy.cli_args.args) == before


class TestPause:
    @pytest.mark.parametrize("knows_sync", [True, False])
    def test_around_buffers_that_outlive_a_call(self, sd3, knows_sync, prefetch, monkeypatch):
        paused, given, allocated = [], [], []

        @contextmanager
        def with_sync(sync=False):
            given.append(sync)
            paused.append(1)
            yield
            paused.pop()

        @contextmanager
        def without():
            with with_sync():
                yield

        prefetch("pause_malloc_graph", with_sync if knows_sync else without)
        copy = Arena.copy

        def watched(*args):
            allocated.append(bool(paused))
            return copy(*args)

        monkeypatch.setattr(Arena, "copy", watched)
        _, trace = sample_ras(sd3.build(), sd3, sd3.noise(), EAGER)
        assert trace.regional_steps == 7 and allocated and all(allocated) and not paused
        assert set(given) == {knows_sync}

    def test_nothing_to_pause_in_an_older_comfyui(self, monkeypatch):
        monkeypatch.delitem(sys.modules, host_compiler.PREFETCH, raising=False)
        assert host_compiler.pause() is None and host_compiler.capture_obstacle() is None


class TestCapturesWithIt:
    def _run(self, sd3):
        model, tape = sd3.build(), FrozenTape()
        capture_on(model, tape)
        _, trace = sample_ras(model, sd3, sd3.noise(), CAPTURED)
        assert trace.regional_steps == 7 and not trace.notes
        return tape, trace.graphs

    @pytest.mark.parametrize(
        ("name", "graphs"),
        [
            ("MALLOC_GRAPHS", lambda: {threading.get_ident(): SimpleNamespace(_comfy_active=True)}),
            ("ACTIVE_MALLOC_GRAPHS", lambda: {"cuda:0": object()}),
        ],
    )
    def test_nothing_is_captured_while_it_is_active(self, sd3, name, graphs, prefetch):
        prefetch(name, graphs())
        tape, report = self._run(sd3)
        assert tape.captured == 0 and "compiler is active" in report.reason

    @pytest.mark.parametrize(
        ("name", "graphs"),
        [
            ("MALLOC_GRAPHS", lambda: {threading.get_ident(): SimpleNamespace(_comfy_active=False)}),
            ("MALLOC_GRAPHS", lambda: {0: SimpleNamespace(_comfy_active=True)}),  # another thread's
            ("ACTIVE_MALLOC_GRAPHS", dict),
        ],
    )
    def test_calls_are_captured_while_it_is_idle(self, sd3, name, graphs, prefetch):
        prefetch(name, graphs())
        tape, report = self._run(sd3)
        assert tape.captured == 1 and report.reason is None

    def test_nothing_is_captured_if_a_block_has_comfyuis_own_graph(self, sd3):
        model, tape = sd3.build(), FrozenTape()
        capture_on(model, tape)
        model.model.diffusion_model.joint_blocks[1]._comfy_graph = {"graph": object()}
        _, trace = sample_ras(model, sd3, sd3.noise(), CAPTURED)
        assert tape.captured == 0 and "graphs of its own" in trace.graphs.reason


class TestSwallowedHooks:
    """From a given step on, one block no longer calls the pack's hooks or its attention override, as with
    ComfyUI's own CUDA graphs. The pack must detect this and run dense.
    """

    def _run(self, sd3, step, silence, is_known=False):
        model, evaluations = sd3.build(), []
        dense, _ = sample_ras(model, sd3, sd3.noise(), DENSE)
        block = model.model.diffusion_model.joint_blocks[1]
        patched = patch_model(model, EAGER)
        if is_known:
            block._comfy_graph = {"graph": object()}

        def replay(executor, *args):
            if len(evaluations) == step:
                block._compiled_call_impl = silence(block)  # torch calls this without any hooks
            evaluations.append(1)
            return executor(*args)

        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "other", replay)
        latent = sample(patched, sd3, sd3.noise())
        return latent, dense, last_trace(patched)

    @staticmethod
    def _hooks(block):
        return block.forward

    @staticmethod
    def _override(block):
        def forward(*args, **kwargs):
            for hook in block._forward_pre_hooks.values():
                hook(block, args, kwargs)
            return block.forward(*args, **{**kwargs, "transformer_options": {}})

        return forward

    @pytest.mark.parametrize(("silence", "told"), [("_hooks", "2 of 3 blocks"), ("_override", "2 of 3 att")])
    def test_in_a_dense_step(self, sd3, silence, told):
        _, _, trace = self._run(sd3, 6, getattr(self, silence))
        assert told in trace.notes[0] and len(trace.notes) == 1
        assert [step.kind.value for step in trace.steps[6:]] == ["dense"] * 4
        assert trace.regional_steps == 4

    @pytest.mark.parametrize("silence", ["_hooks", "_override"])
    def test_in_a_regional_step(self, sd3, silence):
        _, _, trace = self._run(sd3, 4, getattr(self, silence))
        assert "running dense from here" in trace.notes[0] and len(trace.notes) == 1
        assert [step.kind.value for step in trace.steps[4:]] == ["dense"] * 6

    def test_from_the_first_call_on(self, sd3):
        """ComfyUI has a graph of the block from an earlier run, so it calls no hook from the start."""
        latent, dense, trace = self._run(sd3, 0, self._hooks, is_known=True)
        assert "2 of 3 blocks" in trace.notes[0] and trace.regional_steps == 0
        assert distance(latent, dense) < 2e-5

    def test_the_result_is_the_dense_one(self, sd3):
        """The override is not called from the first regional step on. This step and all later ones are then
        computed as without the pack.
        """
        latent, dense, trace = self._run(sd3, 2, self._override)
        assert trace.regional_steps == 0 and distance(latent, dense) < 2e-5
        assert torch.isfinite(latent).all()
