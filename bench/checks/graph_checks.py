"""Checks of regional network calls that are captured as CUDA graphs.

Each check returns whether it passed, and a text with the figures that it measured. A tape is the object that
captures network calls as CUDA graphs and replays them (ras_core/graphs/tape.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import comfy.model_management as management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_torch_compile import TorchCompileModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...ras_core.graphs.tape import CudaTape
from ...ras_core.host.graphs_of_model import graph_store
from ...ras_core.kv import triton_check
from ...ras_core.run.trace import Trace
from ..common import checkpoints
from ..common.shapes import SHAPES
from ..speed.cases import STEPS, Case, Variant
from ..speed.run import Bench

TOLERANCE = 2e-2
"""Allowed relative L2 error of the latents after a whole run in half precision."""

BLOCKS = 4
TINY_PIXELS, TINY_STEPS = 128, 14
INTERRUPTED_AT = 9
"""Number (from 1) of the network evaluation in which a check interrupts the run; this evaluation is
regional."""

FAILING_OPERATION = 150
"""Number (from 1) of the PyTorch operation that is made to fail in a capture: in each family, this operation
comes after the network's first blocks."""

Work = Callable[[], None]
Result = tuple[bool, str]
"""The result of a check: whether it passed, and a text with the figures that it measured."""


class Skip(Exception):
    """Raised with the reason why a check does not apply here."""


@dataclass
class WatchedTape:
    """A tape whose captures can be made to fail.

    Attributes:
        tape: the tape that captures and replays.
        plant: called before each capture; returns whether this capture must fail.
        launched: number of replays that were launched in parallel with other work.
        planted: number of captures that were made to fail.
    """

    tape: Any
    plant: Callable[[], bool]
    launched: int = 0
    planted: int = 0

    def capture(self, work: Work, around: Callable[[], AbstractContextManager] = nullcontext) -> Work:
        return self.tape.capture(self._failing(work) if self.plant() else work, around)

    def launch(self, replay: Work) -> Work:
        self.launched += 1
        return self.tape.launch(replay)

    def _failing(self, work: Work) -> Work:
        def failing() -> None:
            is_warm_up = torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()
            with nullcontext() if is_warm_up else _Failure(self):
                work()

        return failing


class Planted(Exception):
    """The failure that a check injects.

    The class is not derived from RuntimeError, because code that catches a RuntimeError in order
    to fall back would hide the failure.
    """


class _Failure(TorchDispatchMode):
    """Makes one PyTorch operation raise `Planted` half-way through a network call that is being captured.

    The tensors that the call has created by then must not outlive the failed capture.
    """

    def __init__(self, tape: WatchedTape):
        super().__init__()
        self._tape, self._count = tape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001
        self._count += 1
        if self._count == FAILING_OPERATION:
            self._tape.planted += 1
            raise Planted("planted")
        return function(*args, **(kwargs or {}))


@dataclass
class Scene:
    """A family's network and how it is sampled.

    Attributes:
        bench: holds the network.
        kind: class or function that creates a tape, given the tape's number.
        fails: whether all captures are made to fail from now on.
    """

    bench: Bench
    kind: Callable[[int], Any]
    fails: bool = False
    tapes: list[WatchedTape] = field(default_factory=list)

    def __post_init__(self) -> None:
        importlib.import_module("support.tape").capture_on(self.bench.model, self._tape)

    def _tape(self, number: int) -> WatchedTape:
        self.tapes.append(WatchedTape(self.kind(number), lambda: self.fails))
        return self.tapes[-1]

    @property
    def store(self) -> Any:
        return graph_store(self.bench.model)

    def total(self, count: str) -> int:
        """Sum of one counter over all tapes; `count` is its attribute name, "launched" or "planted"."""
        return sum(getattr(tape, count) for tape in self.tapes)

    def run(self, graphs: str, kv_cache: str = "gpu") -> tuple[Tensor, Trace]:
        return self.bench.latent_of(Variant("ras", 0.5, graphs, kv_cache=kv_cache))

    def compare(self, kv_cache: str = "gpu") -> Result:
        """Whether a run with CUDA graphs gives the same latent as a run without, within TOLERANCE."""
        expected, _ = self.run("off", kv_cache)
        latent, trace = self.run("auto", kv_cache)
        error, count = distance(latent, expected), self.store.count
        detail = f"error {error:.2e}, {count} graphs, {trace.regional_steps} regional steps, {trace.notes}"
        if self.store.capture_failure:
            detail += f", {self.store.capture_failure}"
        return error < TOLERANCE and count > 0 and not trace.notes, detail

    @contextmanager
    def using(self, model: ModelPatcher) -> Iterator[None]:
        """Sample with this clone of the model inside the with statement."""
        original, self.bench.model = self.bench.model, model
        try:
            yield
        finally:
            self.bench.model = original


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2 error of latent `a` against latent `b`."""
    return float((a - b).norm() / b.norm())


def scene_of(name: str, pixels: int = 512, tiny: bool = False) -> Scene:
    """A family's network to check: a few blocks of the family's true width with real CUDA graphs, or, if
    `tiny`, a tiny network for the CPU with the tests' stand-ins for CUDA graphs.
    """
    shape = SHAPES[name].tiny() if tiny else SHAPES[name].shallow(BLOCKS)
    pixels, steps = (TINY_PIXELS, TINY_STEPS) if tiny else (pixels, STEPS)
    bench = Bench(Case(name, pixels), shape, management.get_torch_device(), pixels, steps)
    frozen = importlib.import_module("support.tape").FrozenTape
    return Scene(bench, (lambda number: frozen()) if tiny else CudaTape)


def agree(scene: Scene) -> Result:
    return scene.compare()


def makes_no_new_graphs(scene: Scene) -> Result:
    scene.run("auto")
    first = _graphs(scene)
    scene.run("auto")
    return bool(first) and _graphs(scene) == first, str(len(first))


def _graphs(scene: Scene) -> set[int]:
    return {id(each) for held in scene.store.buffers for each in held.calls.values()}


def another_size(scene: Scene) -> Result:
    bench = scene.bench
    usual, bench.latent = bench.latent, bench.shape.latent(bench.pixels, bench.pixels + 128, 1)
    try:
        return scene.compare()
    finally:
        bench.latent = usual


def interrupted(scene: Scene) -> Result:
    calls = []

    def stop(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == INTERRUPTED_AT:
            raise management.InterruptProcessingException
        return executor(*args, **kwargs)

    model, stopped = scene.bench.model.clone(), False
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "stop", stop)
    with scene.using(model):
        try:
            scene.run("auto")
        except management.InterruptProcessingException:
            stopped = True
    lent = any(buffers.is_lent for buffers in scene.store.buffers)
    return stopped and not lent, f"stopped {stopped}, lent {lent}"


def with_patch(scene: Scene) -> Result:
    """Compare captured and eager steps of a model with a weight patch like that of a LoRA. The patch adds a
    constant to each matrix of the first main block.
    """
    model = scene.bench.model.clone()
    block = tuple(f"diffusion_model.{name}0." for name in checkpoints.BLOCKS)
    weights = {
        name: weight for name, weight in model.model.named_parameters()
        if name.startswith(block) and weight.ndim == 2
    }  # fmt: skip
    model.add_patches({name: (torch.full_like(w, 1e-2),) for name, w in weights.items()}, 1.0)
    with scene.using(model):
        return scene.compare()


def behind_compile(scene: Scene) -> Result:
    with scene.using(TorchCompileModel.execute(scene.bench.model, "eager").args[0]):
        return scene.compare()


def with_float8(scene: Scene) -> Result:
    return scene.compare("fp8")


def with_forecast(scene: Scene) -> Result:
    return scene.compare("forecast")


def kernels_agree(scene: Scene) -> Result:
    """A run with an fp8 K/V cache gives the same latent with Triton's kernels as with PyTorch's operations:
    the fp8 rows of the kernels are bit-identical to those of the operations.
    """
    bench = scene.bench
    rows = bench.latent["samples"].to(bench.device, bench.shape.dtype).flatten(2)
    used = triton_check.kernels_for(rows, rows) is not None
    latent, _ = scene.run("off", "fp8")
    with mock.patch.object(triton_check, "DEVICE_TYPE", "none"):
        expected, _ = scene.run("off", "fp8")
    if bench.device.type != "cuda":
        raise Skip("no Triton kernels on this device")
    error = distance(latent, expected)
    return used and error < TOLERANCE, f"used {used}, error {error:.2e}"


def failing_capture(scene: Scene) -> Result:
    scene.store.clear()
    expected, _ = scene.run("off")
    before, scene.fails = scene.total("planted"), True
    try:
        latent, trace = scene.run("auto")
    finally:
        scene.fails = False
    count, trouble, planted = scene.store.count, scene.store.capture_failure, scene.total("planted") - before
    scene.store.clear()
    error = distance(latent, expected)
    held = planted > 0 and error < TOLERANCE and count == 0 and trace.regional_steps > 0 and not trace.notes
    return held, f"error {error:.2e}, {trouble}"


def call_for_each_prompt(scene: Scene) -> Result:
    with one_prompt_a_call():
        return scene.compare()


def second_call_overlaps(scene: Scene) -> Result:
    """If an evaluation calls the network twice, the second call is launched together with the first."""
    if scene.bench.shape.cfg == 1:
        raise Skip("without a negative prompt, an evaluation makes no second network call")
    before = scene.total("launched")
    with one_prompt_a_call():
        scene.run("auto")
    begun = scene.total("launched") - before
    return begun > scene.bench.steps * 10 // STEPS, f"{begun} times"


@contextmanager
def one_prompt_a_call() -> Iterator[None]:
    """Make ComfyUI call the network once for each prompt, as it does when memory is short."""
    original = comfy.samplers._calc_cond_batch

    def apart(model: Any, conds: list, *args: Any) -> list:
        return [output for cond in conds for output in original(model, [cond], *args)]

    with mock.patch.object(comfy.samplers, "_calc_cond_batch", apart):
        yield


def unloading(scene: Scene) -> Result:
    management.unload_all_models()
    return scene.store.count == 0 and scene.store.nbytes() == 0, str(scene.store.count)


def capturing_again(scene: Scene) -> Result:
    """Drop all graphs, then capture them again, three times: allocated memory after a drop must not grow."""
    held = []
    scene.run("auto")  # the first run also makes what is made once
    for _ in range(3):
        scene.store.clear()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated() if torch.cuda.is_available() else 0)
        scene.run("auto")
    return held[-1] <= held[0], f"{held} bytes"


CHECKS: dict[str, Callable[[Scene], Result]] = {
    "captured and eager steps agree": agree,
    "captured and eager steps agree in a second run": agree,
    "another run captures no new graphs": makes_no_new_graphs,
    "captured and eager steps agree at another image size": another_size,
    "captured and eager steps agree at the first image size again": agree,
    "an interrupted run returns its buffers": interrupted,
    "captured and eager steps agree after an interrupted run": agree,
    "captured and eager steps agree with a LoRA-like patch of the weights": with_patch,
    "captured and eager steps agree after the patch was removed": agree,
    "behind torch.compile": behind_compile,
    "with kv_cache = fp8": with_float8,
    "with kv_cache = forecast": with_forecast,
    "Triton's kernels agree with PyTorch": kernels_agree,
    "a capture that fails half-way does not change the latent": failing_capture,
    "captured and eager steps agree with one network call per prompt": call_for_each_prompt,
    "the second prompt's call is launched with the first prompt's": second_call_overlaps,
    "unloading the model drops its graphs": unloading,
    "captured and eager steps agree after the model was unloaded": agree,
    "capturing again leaks no memory": capturing_again,
}
"""Checks by description, in the order in which they must run: some test the state that an earlier check
left."""


@torch.inference_mode()
def run_check(what: str, scene: Scene) -> tuple[bool | None, str]:
    """Run a check; returns whether it passed (None if it does not apply to this network or device), and
    details.
    """
    try:
        held, detail = CHECKS[what](scene)
    except Skip as reason:
        return None, str(reason)
    return bool(held), detail
