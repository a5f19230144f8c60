"""The residency program's checks: each returns whether it passed (None: skipped) and its numbers.

Runs with `cuda_graphs` auto are compared bit for bit with runs of the same seed without graphs. Faults are
injected in the attention function that SD3's blocks call, in a replay, or between two steps.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from ...ras_core.graphs.preset import EvictableWeights
from ...ras_core.host.graphs_of_model import graph_store, resident_weights
from ..common.hosting import has_dynamic_vram
from ..common.shapes import free
from .residency_scene import PAGE, Ran, Scene, Skip, count_pages, evict, in_capture, pinned_pages, ras

FAULT_STEP = 5
"""A regional step, replayed: the first regional call is eager, the second captured."""

SECONDS = 60
"""Time limit of a check; its process is terminated after that."""

Outcome = tuple[bool | None, str]


def run_check(check: Callable[[Scene], Outcome], scene: Scene) -> Outcome:
    """Run a check. It also fails if it leaves a page of any network pinned."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    started = time.perf_counter()
    try:
        held, detail = check(scene)
        if held is not None and (pinned := pinned_pages(scene)):
            held, detail = False, f"{detail}; {pinned} pages are still pinned"
    except Skip as reason:
        return None, str(reason)
    except BaseException as error:
        held, detail = False, f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    return held, f"{detail}, {time.perf_counter() - started:.1f} s"


def compared(expected: Tensor, *runs: Ran, needs_replays: bool = True) -> Outcome:
    """Whether all runs gave bit-identical latents, and replayed graphs (unless `needs_replays` is False)."""
    errors = [float((run.latent - expected).norm() / expected.norm()) for run in runs]
    is_equal = all(torch.equal(run.latent, expected) for run in runs)
    captures, replays = sum(run.captures for run in runs), sum(run.replays for run in runs)
    detail = f"error {max(errors):.1e}, {captures} captures, {replays} replays"
    regional = min(run.trace.regional_steps for run in runs)
    held = is_equal and regional > 0
    if needs_replays and not replays:
        held = False
        detail += f", nothing was replayed: {_reasons(runs)}"
    return held, f"{detail}, {regional} regional"


def _reasons(runs: tuple[Ran, ...]) -> str:
    lines = dict.fromkeys(line for run in runs for line in (*run.log, *run.trace.notes) if "graph" in line)
    return "; ".join(lines)[:300] or "no reason was logged"


def replay_equals_eager(scene: Scene) -> Outcome:
    """Two runs with graphs; the second must only replay."""
    model = scene.model()
    expected = scene.eager("default", model)
    scene.forget(model)
    held, detail = compared(expected, first := scene.run(model), second := scene.run(model))
    again = second.captures
    return held, f"{detail}, {first.captures} and then {again} captures"


def eviction_between_steps(scene: Scene) -> Outcome:
    """A ballast evicts weights between two replayed steps."""
    model = scene.model()
    expected, evicted = scene.eager("default", model), []

    def callback(step: int, *args: Any) -> None:
        if step == FAULT_STEP:
            evicted.append(evict(scene, model))

    if not torch.equal(scene.sample(model, callback=callback), scene.sample(model)):
        raise Skip("ComfyUI's own image changes when weights are evicted in a run, even without this pack")
    evicted.clear()
    runs = scene.run(model), scene.run(model, callback=callback), scene.run(model)
    held, detail = compared(expected, *runs)
    if not evicted[0] > 0:
        return False, f"{detail}, but nothing was evicted"
    return held, f"{detail}, {evicted[0]} pages evicted"


def eviction_between_runs(scene: Scene) -> Outcome:
    """Weights are evicted after a run and loaded again; its graphs stay valid."""
    model = scene.model()
    expected = scene.eager("default", model)
    first = scene.run(model)
    evicted = evict(scene, model)
    held, detail = compared(expected, first, scene.run(model), scene.run(model))
    return held, f"{detail}, {evicted} pages evicted"


def ballast_in_capture(scene: Scene) -> Outcome:
    """Another thread allocates all memory during a capture."""
    if not has_dynamic_vram():
        raise Skip("no dynamic VRAM")
    model, failures = scene.model(), []
    expected = scene.eager("default", model)
    scene.forget(model)

    def take() -> None:
        unused, _ = torch.cuda.mem_get_info()
        try:
            torch.empty(int(unused * 0.999), dtype=torch.uint8, device="cuda")
        except Exception as error:
            failures.append(type(error).__name__)

    def plant() -> None:
        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        thread.join(20)

    with in_capture(plant) as count:
        run = scene.run(model)
    torch.cuda.empty_cache()
    if not count:
        return False, f"no capture was begun: {_reasons((run,))}"
    held, detail = compared(expected, run, scene.run(model), scene.run(model), needs_replays=False)
    return held, f"{detail}, ballast: {failures or 'allocated'}"


def too_little_memory(scene: Scene) -> Outcome:
    """With less memory than the network, nothing is captured, and no step is slower than a dense one."""
    if not has_dynamic_vram():
        raise Skip("no dynamic VRAM")
    model = scene.model()
    for _ in range(2):
        expected = scene.sample(model)
    runs = [scene.run(model, kv_cache="auto") for _ in range(2)]
    patched = ras(model, kv_cache="auto")
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(6):  # alternately, since weights that stream in at each step make timings noisy
        for with_ras, each in ((False, model), (True, patched)):
            times[with_ras].append(_seconds(lambda each=each: scene.sample(each)))
    dense, mixed = min(times[False]), min(times[True])
    regional = sum(run.trace.regional_steps for run in runs)
    held = not any(run.captures for run in runs) and mixed < 1.05 * dense
    if not regional:
        held = held and all(torch.equal(run.latent, expected) for run in runs)
    size, there = model.model_size() / 2**20, count_pages(scene, 1) * PAGE / 2**20
    detail = f"{regional} regional steps, {mixed / dense:.2f} of the dense time"
    return held, f"{detail}, {there:.0f} of {size:.0f} MiB resident: {'; '.join(runs[0].trace.notes)[:200]}"


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def lora_changes(scene: Scene) -> Outcome:
    """A LoRA is added, changed in strength and removed; each run equals one without graphs."""
    base = scene.model()
    outcomes = []
    for key, strength in (
        ("default", 0.0),
        ("lora 1", 1.0),
        ("lora 0.5", 0.5),
        ("default", 0.0),
        ("lora 1", 1.0),
    ):
        model = scene.with_lora(strength) if strength else base
        expected = scene.eager(key, model)
        outcomes.append(compared(expected, scene.run(model), scene.run(model)))
    apart = [scene.expected[k, 0.5] for k in ("default", "lora 1", "lora 0.5")]
    differ = not any(torch.equal(a, b) for a, b in ((apart[0], apart[1]), (apart[1], apart[2])))
    return _all(outcomes, differ)


def other_models_between(scene: Scene) -> Outcome:
    """Another network is loaded, run and dropped between three runs."""
    model = scene.model()
    expected, outcomes = scene.eager("default", model), []
    for _ in range(3):
        outcomes.append(compared(expected, scene.run(model), needs_replays=False))
        other, shape = scene.other()
        scene.sample(other, shape, steps=2)
        del other
        free_all_but(model)
    outcomes.append(compared(expected, scene.run(model), scene.run(model)))
    return _all(outcomes)


def free_all_but(model: Any) -> None:
    """Unload all other models, as a workflow with a text encoder does."""
    management = comfy.model_management
    loaded = [each for each in management.current_loaded_models if each.model is not None]
    keep = [each for each in loaded if each.model.model is model.model]
    management.free_memory(1e30, management.get_torch_device(), keep_loaded=keep)


def interrupt_between_steps(scene: Scene) -> Outcome:
    """The user cancels between steps; ComfyUI raises that in its progress bar."""

    def callback(step: int, *args: Any) -> None:
        if step == FAULT_STEP:
            raise InterruptProcessingException

    return _stopped(scene, lambda model: scene.run(model, callback=callback))


def interrupt_in_capture(scene: Scene) -> Outcome:
    """The user cancels during a capture: the run ends, and the next one captures."""
    scene.forget(scene.model())

    def run(model: Any) -> None:
        with in_capture(_raiser(InterruptProcessingException())) as count:
            scene.run(model)
        if not count:
            raise Skip("no capture was begun")

    return _stopped(scene, run)


def exception_in_capture(scene: Scene) -> Outcome:
    """A failed capture does not change the run's result."""
    model = scene.model()
    expected = scene.eager("default", model)
    scene.forget(model)
    with in_capture(_raiser(RuntimeError("planted"))) as count:
        run = scene.run(model)
    scene.forget(model)  # a failed capture is not tried again on the same weights
    if not count:
        return False, f"no capture was begun: {_reasons((run,))}"
    after = scene.run(model), scene.run(model)
    return compared(expected, run, *after, needs_replays=False)


def interrupt_in_replay(scene: Scene) -> Outcome:
    """The user cancels in a replay, between the check of the weights and the launch."""

    def run(model: Any) -> None:
        with scene.counter.planted(_raiser(InterruptProcessingException())):
            scene.run(model)

    scene.run(scene.model())
    return _stopped(scene, run)


def exception_in_replay(scene: Scene) -> Outcome:
    """A launch fails: the run ends with the error or continues eagerly; later runs are right."""
    model, failed = scene.model(), []
    expected = scene.eager("default", model)
    scene.run(model)
    outcomes = []
    with scene.counter.planted(_raiser(RuntimeError("planted"))):
        try:
            outcomes.append(compared(expected, scene.run(model), needs_replays=False))
        except RuntimeError as error:
            failed.append(str(error))
    scene.forget(model)
    outcomes.append(compared(expected, scene.run(model), scene.run(model)))
    held, detail = _all(outcomes)
    return held, f"{detail}, the run {'ended with ' + failed[0] if failed else 'continued'}"


def out_of_memory_in_capture(scene: Scene) -> Outcome:
    """The device runs out of memory in a capture."""
    model = scene.model()
    if scene.device.type != "cuda":
        raise Skip("no GPU")
    expected = scene.eager("default", model)
    scene.forget(model)
    with in_capture(lambda: torch.empty(2**45, dtype=torch.uint8, device="cuda")) as count:
        run = scene.run(model)
    scene.forget(model)
    if not count:
        return False, f"no capture was begun: {_reasons((run,))}"
    after = scene.run(model), scene.run(model)
    return compared(expected, run, *after, needs_replays=False)


def unload_frees_all(scene: Scene) -> Outcome:
    """Unloading after a run with graphs frees all memory; must be the last check."""
    if scene.device.type != "cuda":
        raise Skip("no GPU")
    model = scene.model()
    scene.run(model)
    scene.run(model)
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    free()
    loaded = sum(vbar.loaded_size() for each in scene.models.values() for vbar in scene.vbars(each))
    store, allocated = graph_store(model), torch.cuda.memory_allocated()
    kept = 0 if store is None else store.count
    held = loaded == 0 and kept == 0 and allocated < 128 * 2**20  # each stream keeps a cuBLAS workspace
    expected = scene.eager("default", model)
    outcome = compared(expected, scene.run(model), scene.run(model))
    detail = (
        f"{loaded / 2**20:.0f} MiB of weights, {allocated / 2**20:.0f} MiB, {kept} graphs after unloading"
    )
    return held and bool(outcome[0]), f"{detail}; then {outcome[1]}"


def two_nodes(scene: Scene) -> Outcome:
    """Two RAS nodes on one model, used alternately."""
    model = scene.model()
    runs = []
    for _ in range(2):
        for ratio in (0.5, 0.25):
            runs.append(compared(scene.eager("default", model, ratio), scene.run(model, "auto", ratio)))
    return _all(runs[2:] + [(held, detail) for held, detail in runs[:2]])


def two_sizes(scene: Scene) -> Outcome:
    """Runs of two sizes, alternately."""
    model, other = scene.model(), scene.size + 128
    outcomes = []
    for size in (scene.size, other, scene.size, other):
        outcomes.append(compared(scene.eager("default", model, size=size), scene.run(model, size=size)))
    return _all(outcomes)


def time_of_check(scene: Scene) -> Outcome:
    """Pinning the whole range, comparing its serials and unpinning take less than 0.1 ms."""
    model = scene.model()
    scene.run(model)
    vbars = scene.vbars(model)
    if not vbars:
        raise Skip("no dynamic VRAM")
    parts = [m._v for m in model.model.diffusion_model.modules() if hasattr(m, "_v")]
    low = min(address for _, address, _ in parts)
    nbytes = max(address + size for _, address, size in parts) - low
    serials = vbars[0].fault(low, nbytes)
    if serials is None:
        return False, "the whole range cannot be mapped"
    vbars[0].unpin(low, nbytes)
    known = bytes(serials)

    def check() -> bool:
        found = vbars[0].fault(low, nbytes)
        same = found is not None and bytes(found) == known
        if found is not None:
            vbars[0].unpin(low, nbytes)
        return same

    plain = min(_seconds(lambda: [check() for _ in range(100)]) for _ in range(5)) / 100
    own = _held_seconds(model, scene.device)
    detail = f"{nbytes / 2**20:.0f} MiB, {len(known) // 4} pages: {plain * 1e6:.1f} us by comfy-aimdo"
    return check() and max(plain, own) < 1e-4, f"{detail}, {own * 1e6:.1f} us by the pack"


def _held_seconds(model: Any, device: torch.device) -> float:
    """Duration of the pack's own check, in seconds."""
    weights = EvictableWeights(resident_weights).of(model.model.diffusion_model, device)
    if not weights.prove():
        raise Skip("not all weights are resident")

    def check() -> None:
        with weights.held():
            pass

    return min(_seconds(lambda: [check() for _ in range(100)]) for _ in range(5)) / 100


def fp8(scene: Scene) -> Outcome:
    """fp8 weights, by the loader's weight_dtype."""
    return _other_weights(scene, "default", "fp8_e4m3fn")


def scaled_fp8(scene: Scene) -> Outcome:
    """ComfyUI's own scaled fp8 layout."""
    return _other_weights(scene, "scaled_fp8")


def int8_convrot(scene: Scene) -> Outcome:
    """ComfyUI's own int8 layout with rotated weights."""
    return _other_weights(scene, "int8_convrot")


def _other_weights(scene: Scene, kind: str, weight_dtype: str = "default") -> Outcome:
    model = scene.model(kind, weight_dtype)
    expected = scene.eager(f"{kind} {weight_dtype}", model)
    # Without dynamic VRAM such weights are cast at each use, which the pack does not capture.
    outcome = compared(expected, scene.run(model), scene.run(model), needs_replays=has_dynamic_vram())
    free_all_but(scene.model())
    return outcome


def _stopped(scene: Scene, run: Callable[[Any], Any]) -> Outcome:
    """Run and cancel; then two runs with graphs must be right."""
    model = scene.model()
    expected = scene.eager("default", model)
    try:
        run(model)
        return False, "the run continued"
    except InterruptProcessingException:
        pass
    if pinned := pinned_pages(scene):
        return False, f"{pinned} pages are still pinned after the interrupted run"
    return compared(expected, scene.run(model), scene.run(model))


def _raiser(error: BaseException) -> Callable[[], None]:
    def plant() -> None:
        raise error

    return plant


def _all(outcomes: list[Outcome], also: bool = True) -> Outcome:
    """Whether all passed, with the detail of the first failure, or else of the last check."""
    bad = [detail for held, detail in outcomes if not held]
    return also and not bad, bad[0] if bad else outcomes[-1][1]


CHECKS: dict[str, Callable[[Scene], Outcome]] = {
    check.__name__: check
    for check in (
        replay_equals_eager, eviction_between_steps, eviction_between_runs, ballast_in_capture,
        too_little_memory, lora_changes, other_models_between, interrupt_between_steps,
        interrupt_in_capture, exception_in_capture, interrupt_in_replay, exception_in_replay,
        out_of_memory_in_capture, unload_frees_all, two_nodes, two_sizes, time_of_check, fp8, scaled_fp8,
        int8_convrot,
    )
}  # fmt: skip
