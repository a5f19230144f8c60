"""The residency program's checks. A check returns whether it passed (None if it was skipped), and a text with
its figures.

The checks compare the latents of runs with `cuda_graphs` auto bit for bit with those of runs without graphs
and with the same seed. They inject faults into the attention function that SD3's blocks call, into a replay,
or between two steps.
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
"""Index of the step at which a fault is injected. This step is regional and replayed: only the run's first
regional call runs eagerly, and the second is captured."""

SECONDS = 60
"""Time limit of a check in seconds; after that time, the check's process is terminated."""

Outcome = tuple[bool | None, str]


def run_check(check: Callable[[Scene], Outcome], scene: Scene) -> Outcome:
    """Run a check. The check also fails if a memory page of any network's weights is still pinned
    afterwards.
    """
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
    """Whether all runs gave the expected latent bit for bit, and at least one of them replayed a graph. The
    second condition is dropped if `needs_replays` is False.
    """
    errors = [float((run.latent - expected).norm() / expected.norm()) for run in runs]
    is_equal = all(torch.equal(run.latent, expected) for run in runs)
    captures, replays = sum(run.captures for run in runs), sum(run.replays for run in runs)
    detail = f"error {max(errors):.1e}, {captures} captures, {replays} replays"
    regional = min(run.trace.regional_steps for run in runs)
    held = is_equal and regional > 0
    if needs_replays and not replays:
        held = False
        detail += f", nothing was replayed: {_reasons(runs)}"
    return held, f"{detail}, {regional} regional steps"


def _reasons(runs: tuple[Ran, ...]) -> str:
    lines = dict.fromkeys(line for run in runs for line in (*run.log, *run.trace.notes) if "graph" in line)
    return "; ".join(lines)[:300] or "no reason was logged"


def replay_equals_eager(scene: Scene) -> Outcome:
    """Two runs with graphs give the same latent as a run without; the details show the captures of each."""
    model = scene.model()
    expected = scene.eager("default", model)
    scene.forget(model)
    held, detail = compared(expected, first := scene.run(model), second := scene.run(model))
    again = second.captures
    return held, f"{detail}, {first.captures} captures in the first run and {again} in the second"


def eviction_between_steps(scene: Scene) -> Outcome:
    """A large allocation evicts weights between two replayed steps."""
    model = scene.model()
    expected, evicted = scene.eager("default", model), []

    def callback(step: int, *args: Any) -> None:
        if step == FAULT_STEP:
            evicted.append(evict(scene, model))

    if not torch.equal(scene.sample(model, callback=callback), scene.sample(model)):
        raise Skip("evicting weights during a run changes ComfyUI's latent even without this pack")
    evicted.clear()
    runs = scene.run(model), scene.run(model, callback=callback), scene.run(model)
    held, detail = compared(expected, *runs)
    if not evicted[0] > 0:
        return False, f"{detail}, but nothing was evicted"
    return held, f"{detail}, {evicted[0]} pages evicted"


def eviction_between_runs(scene: Scene) -> Outcome:
    """Weights are evicted after a run, and loaded again by the next run; the latents must not change."""
    model = scene.model()
    expected = scene.eager("default", model)
    first = scene.run(model)
    evicted = evict(scene, model)
    held, detail = compared(expected, first, scene.run(model), scene.run(model))
    return held, f"{detail}, {evicted} pages evicted"


def idle_layers(scene: Scene) -> Outcome:
    """Layers that never run do not prevent captures, also in a second run after an eviction."""
    model, shape = scene.with_idle_layers()
    scene.sample(model, shape)
    expected = scene.run(model, "off", shape=shape).latent
    first = scene.run(model, shape=shape)
    evicted = evict(scene, model) if has_dynamic_vram() else 0
    held, detail = compared(expected, first, second := scene.run(model, shape=shape))
    detail += f", {evicted} pages evicted, {second.replays} replays in the second run"
    if has_dynamic_vram():
        layers = sum(hasattr(each, "_v") for each in model.model.diffusion_model.modules())
        graphs = second.trace.graphs
        held = held and second.replays > 0 and graphs.resident == graphs.layers < layers
        detail += f", {graphs.resident} of {graphs.layers} layers resident, {layers} in all"
    return held, detail


def ballast_in_capture(scene: Scene) -> Outcome:
    """Another thread allocates all free GPU memory during a capture."""
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
        return False, f"no capture started: {_reasons((run,))}"
    held, detail = compared(expected, run, scene.run(model), scene.run(model), needs_replays=False)
    return held, f"{detail}, allocation by the other thread: {failures or 'succeeded'}"


def too_little_memory(scene: Scene) -> Outcome:
    """With less GPU memory than the network needs, nothing is captured, and a run with RAS takes at most 5 %
    longer than a dense run.
    """
    if not has_dynamic_vram():
        raise Skip("no dynamic VRAM")
    model = scene.model()
    for _ in range(2):
        expected = scene.sample(model)
    runs = [scene.run(model, kv_cache="auto") for _ in range(2)]
    patched = ras(model, kv_cache="auto")
    times: dict[bool, list[float]] = {False: [], True: []}
    # Dense runs and runs with RAS take turns: timings are noisy when weights are loaded again at each step.
    for _ in range(6):
        for with_ras, each in ((False, model), (True, patched)):
            times[with_ras].append(_seconds(lambda each=each: scene.sample(each)))
    dense, mixed = min(times[False]), min(times[True])
    regional = sum(run.trace.regional_steps for run in runs)
    held = not any(run.captures for run in runs) and mixed < 1.05 * dense
    if not regional:
        held = held and all(torch.equal(run.latent, expected) for run in runs)
    size, there = model.model_size() / 2**20, count_pages(scene, 1) * PAGE / 2**20
    detail = f"{regional} regional steps, run time {mixed / dense:.2f} of that of a dense run"
    notes = "; ".join(runs[0].trace.notes)[:200]
    return held, f"{detail}, {there:.0f} of {size:.0f} MiB of weights resident: {notes}"


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def lora_changes(scene: Scene) -> Outcome:
    """A LoRA is added, changed in strength and removed; each time, the latents equal those without graphs."""
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
    """After each of three runs, another network is loaded, run and dropped; the latents must not change."""
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
    """Unload all models except this one, as ComfyUI may do when a workflow needs memory for a text
    encoder.
    """
    management = comfy.model_management
    loaded = [each for each in management.current_loaded_models if each.model is not None]
    keep = [each for each in loaded if each.model.model is model.model]
    management.free_memory(1e30, management.get_torch_device(), keep_loaded=keep)


def interrupt_between_steps(scene: Scene) -> Outcome:
    """The user cancels between two steps: as in ComfyUI's progress bar, the step callback raises the
    exception.
    """

    def callback(step: int, *args: Any) -> None:
        if step == FAULT_STEP:
            raise InterruptProcessingException

    return _stopped(scene, lambda model: scene.run(model, callback=callback))


def interrupt_in_capture(scene: Scene) -> Outcome:
    """The user cancels during a capture: the run must end, and later runs must be able to capture and
    replay.
    """
    scene.forget(scene.model())

    def run(model: Any) -> None:
        with in_capture(_raiser(InterruptProcessingException())) as count:
            scene.run(model)
        if not count:
            raise Skip("no capture started")

    return _stopped(scene, run)


def exception_in_capture(scene: Scene) -> Outcome:
    """An exception in a capture must not change the latent of that run or of later runs."""
    model = scene.model()
    expected = scene.eager("default", model)
    scene.forget(model)
    with in_capture(_raiser(RuntimeError("planted"))) as count:
        run = scene.run(model)
    scene.forget(model)  # or else the pack would not try to capture on the same weights again
    if not count:
        return False, f"no capture started: {_reasons((run,))}"
    after = scene.run(model), scene.run(model)
    return compared(expected, run, *after, needs_replays=False)


def interrupt_in_replay(scene: Scene) -> Outcome:
    """The user cancels in a replay, after the pack has checked the weights and before it launches the
    graph.
    """

    def run(model: Any) -> None:
        with scene.counter.planted(_raiser(InterruptProcessingException())):
            scene.run(model)

    scene.run(scene.model())
    return _stopped(scene, run)


def exception_in_replay(scene: Scene) -> Outcome:
    """Launching a graph raises an error. The run may end with this error or continue eagerly; the latents of
    later runs must not change.
    """
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
    """The GPU runs out of memory during a capture; the latents must not change."""
    model = scene.model()
    if scene.device.type != "cuda":
        raise Skip("no GPU")
    expected = scene.eager("default", model)
    scene.forget(model)
    with in_capture(lambda: torch.empty(2**45, dtype=torch.uint8, device="cuda")) as count:
        run = scene.run(model)
    scene.forget(model)
    if not count:
        return False, f"no capture started: {_reasons((run,))}"
    after = scene.run(model), scene.run(model)
    return compared(expected, run, *after, needs_replays=False)


def unload_frees_all(scene: Scene) -> Outcome:
    """After runs with graphs, unloading all models frees their graphs and memory. It must be a group's last
    check.
    """
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
    # Up to 128 MiB may stay allocated, because each CUDA stream keeps a cuBLAS workspace.
    held = loaded == 0 and kept == 0 and allocated < 128 * 2**20
    expected = scene.eager("default", model)
    outcome = compared(expected, scene.run(model), scene.run(model))
    detail = (
        f"after unloading: {loaded / 2**20:.0f} MiB of weights, "
        f"{allocated / 2**20:.0f} MiB allocated by PyTorch, {kept} graphs"
    )
    return held and bool(outcome[0]), f"{detail}; in the next runs: {outcome[1]}"


def two_nodes(scene: Scene) -> Outcome:
    """Two RAS nodes on one model, used alternately."""
    model = scene.model()
    runs = []
    for _ in range(2):
        for ratio in (0.5, 0.25):
            runs.append(compared(scene.eager("default", model, ratio), scene.run(model, "auto", ratio)))
    return _all(runs[2:] + [(held, detail) for held, detail in runs[:2]])


def two_sizes(scene: Scene) -> Outcome:
    """Runs at two image sizes, alternately."""
    model, other = scene.model(), scene.size + 128
    outcomes = []
    for size in (scene.size, other, scene.size, other):
        outcomes.append(compared(scene.eager("default", model, size=size), scene.run(model, size=size)))
    return _all(outcomes)


def time_of_check(scene: Scene) -> Outcome:
    """Before each replay, the pack checks that no weights were evicted; this takes less than 0.1 ms.

    The pack pins the address range of all weights, compares the serial numbers of the memory pages in this
    range with those it read earlier, and unpins the range.
    """
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
        return False, "the address range of all weights cannot be mapped"
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
    detail = f"{nbytes / 2**20:.0f} MiB, {len(known) // 4} pages: {plain * 1e6:.1f} us with comfy-aimdo alone"
    return check() and max(plain, own) < 1e-4, f"{detail}, {own * 1e6:.1f} us in the pack's code"


def _held_seconds(model: Any, device: torch.device) -> float:
    """Seconds that the pack's own code takes to check, before a replay, that no weights were evicted."""
    weights = EvictableWeights(resident_weights).of(model.model.diffusion_model, device)
    if not weights.prove():
        raise Skip("not all weights are in GPU memory")

    def check() -> None:
        with weights.held():
            pass

    return min(_seconds(lambda: [check() for _ in range(100)]) for _ in range(5)) / 100


def fp8(scene: Scene) -> Outcome:
    """Weights that UNETLoader casts to fp8 (its input weight_dtype)."""
    return _other_weights(scene, "default", "fp8_e4m3fn")


def scaled_fp8(scene: Scene) -> Outcome:
    """Weights from a file in ComfyUI's scaled fp8 layout."""
    return _other_weights(scene, "scaled_fp8")


def int8_convrot(scene: Scene) -> Outcome:
    """Weights from a file in ComfyUI's int8 layout with rotated weights."""
    return _other_weights(scene, "int8_convrot")


def _other_weights(scene: Scene, kind: str, weight_dtype: str = "default") -> Outcome:
    model = scene.model(kind, weight_dtype)
    expected = scene.eager(f"{kind} {weight_dtype}", model)
    # Without dynamic VRAM, ComfyUI casts such weights at each use. The pack does not capture such calls.
    outcome = compared(expected, scene.run(model), scene.run(model), needs_replays=has_dynamic_vram())
    free_all_but(scene.model())
    return outcome


def _stopped(scene: Scene, run: Callable[[Any], Any]) -> Outcome:
    """Whether `run` is cancelled, and two runs with graphs after it give the same latent as without
    graphs.
    """
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
    """One outcome for several: passed if all of them passed and the further condition `also` is true. The
    detail is that of the first failed outcome or, if none failed, of the last outcome.
    """
    bad = [detail for held, detail in outcomes if not held]
    return also and not bad, bad[0] if bad else outcomes[-1][1]


CHECKS: dict[str, Callable[[Scene], Outcome]] = {
    check.__name__: check
    for check in (
        replay_equals_eager, eviction_between_steps, eviction_between_runs, idle_layers, ballast_in_capture,
        too_little_memory, lora_changes, other_models_between, interrupt_between_steps,
        interrupt_in_capture, exception_in_capture, interrupt_in_replay, exception_in_replay,
        out_of_memory_in_capture, unload_frees_all, two_nodes, two_sizes, time_of_check, fp8, scaled_fp8,
        int8_convrot,
    )
}  # fmt: skip
