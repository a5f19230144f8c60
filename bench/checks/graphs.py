"""Checks of recorded regional calls on a GPU: each is a sentence and whether it held."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.paths import OUTPUT
from ..common.progress import say
from ..common.setup import machine, pick_device, start
from .kv import distance

TOLERANCE = 2e-2  # relative L2 of the latents, half precision through a whole run
BLOCKS = 4


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 when everything held."""
    parser = argparse.ArgumentParser(prog="bench graphs")
    parser.add_argument("--families", default="", help="comma list; all by default")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--out", type=Path, default=OUTPUT / "graph_check.json")
    options = parser.parse_args(argv)
    start(pick_device("cuda"))
    import torch

    from ..common.shapes import SHAPES, free

    wanted = options.families.split(",") if options.families else list(SHAPES)
    results: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "checks": []}
    with torch.inference_mode():
        for name in wanted:
            try:
                for what, held, detail in checks(SHAPES[name].shallow(BLOCKS), options.pixels):
                    _add(results, name, what, held, detail)
            except Exception as error:
                _add(results, name, "no exception", False, f"{type(error).__name__}: {error}")
            free()
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    failed = [check for check in results["checks"] if not check["held"]]
    print(f"{len(results['checks'])} checks, {len(failed)} failed")
    return 1 if failed else 0


def checks(shape: Any, pixels: int) -> Iterator[tuple[str, bool, str]]:
    """What is checked for one family: sentence, whether it held, numbers."""
    import comfy.model_management
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    from ...ras_core.host.patch import graph_store
    from ..speed.cases import Case, Variant
    from ..speed.run import Bench

    bench = Bench(Case(shape.name, pixels), shape, comfy.model_management.get_torch_device(), pixels)
    plain, graph = Variant("ras", 0.5), Variant("ras", 0.5, "auto")

    def compare(what: str, kv_cache: str = "gpu") -> tuple[str, bool, str]:
        expected, _ = bench.latent_of(replace(plain, kv_cache=kv_cache))
        latent, trace = bench.latent_of(replace(graph, kv_cache=kv_cache))
        error = distance(latent, expected)
        recorded = graph_store(bench.model)
        count = recorded.count if recorded else 0
        detail = f"error {error:.2e}, {count} recordings, {trace.regional_steps} regional, {trace.notes}"
        if recorded and recorded.trouble:
            detail += f", {recorded.trouble}"
        return what, error < TOLERANCE and count > 0 and not trace.notes, detail

    def recordings() -> set[int]:
        return {id(each) for held in graph_store(bench.model).buffers for each in held.recordings.values()}

    yield compare("recorded and plain agree")
    first = recordings()
    yield compare("and in a second run")
    yield "the second run made no new recording", recordings() == first, str(len(first))
    bench.latent = shape.latent(pixels, pixels + 128, 1)
    yield compare("another size")
    bench.latent = shape.latent(pixels, pixels, 1)
    yield compare("the first size again")
    yield _interrupted(bench, graph)
    yield compare("after an interrupted run")
    original = bench.model
    bench.model = _with_patch(original)
    yield compare("with a LoRA-like patch of the weights")
    bench.model = original
    yield compare("without it again")
    bench.model = TorchCompileModel.execute(original, "eager").args[0]
    yield compare("behind torch.compile")
    bench.model = original
    for kv_cache in ("fp8", "forecast"):
        yield compare(f"with kv_cache = {kv_cache}", kv_cache)
    yield _kernels_agree(bench, plain)
    yield _recording_fails(bench, plain, graph)
    with _one_prompt_a_call(), _counted_begins() as begins:
        yield compare("with a call for each prompt")
        yield "whose second call is begun with the first", len(begins) > 10, f"{len(begins)} times"
    bench.model = original
    comfy.model_management.unload_all_models()
    store = graph_store(bench.model)
    yield "unloading drops the recordings", store.count == 0 and store.nbytes() == 0, str(store.count)
    yield compare("after the model was unloaded")
    yield _recorded_anew(bench, graph)
    bench.close()


def _kernels_agree(bench: Any, plain: Any) -> tuple[str, bool, str]:
    """fp8 rows by Triton's kernels and by PyTorch's operations, which are the same to the last bit."""
    from ...ras_core.kv import triton_launch as fused

    rows = bench.latent["samples"].to(bench.device, bench.shape.dtype).flatten(2)
    used = fused.fused_for(rows, rows) is not None
    latent, _ = bench.latent_of(replace(plain, kv_cache="fp8"))
    usual, fused.DEVICE_TYPE = fused.DEVICE_TYPE, "none"
    try:
        expected, _ = bench.latent_of(replace(plain, kv_cache="fp8"))
    finally:
        fused.DEVICE_TYPE = usual
    error = distance(latent, expected)
    detail = f"used {used}, error {error:.2e}"
    return "Triton's kernels agree with PyTorch", used and error < TOLERANCE, detail


def _recording_fails(bench: Any, plain: Any, graph: Any) -> tuple[str, bool, str]:
    """Half-way through a captured call, whose tensors must not outlive the capture."""
    import torch

    from ...ras_core.host.patch import graph_store
    from ...ras_core.run.partial_forward import NetworkCall

    original, planted = NetworkCall.attend, []

    def failing(call: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(call, *args, **kwargs)
        if torch.cuda.is_current_stream_capturing() and call.blocks_seen == BLOCKS - 1:
            planted.append(1)
            raise RuntimeError("planted")
        return output

    graph_store(bench.model).clear()
    expected, _ = bench.latent_of(plain)
    NetworkCall.attend = failing
    try:
        latent, trace = bench.latent_of(graph)
    finally:
        NetworkCall.attend = original
    count, trouble = graph_store(bench.model).count, graph_store(bench.model).trouble
    graph_store(bench.model).clear()
    error = distance(latent, expected)
    held = bool(planted) and error < TOLERANCE and count == 0 and trace.regional_steps > 0 and not trace.notes
    return "a recording that fails half-way leaves the run as it is", held, f"error {error:.2e}, {trouble}"


def _interrupted(bench: Any, variant: Any) -> tuple[str, bool, str]:
    import comfy.model_management as management
    from comfy.patcher_extension import WrappersMP

    from ...ras_core.host.patch import graph_store

    calls = []

    def stop(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise management.InterruptProcessingException
        return executor(*args, **kwargs)

    original, bench.model = bench.model, bench.model.clone()
    bench.model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "stop", stop)
    try:
        bench.latent_of(variant)
        stopped = False
    except management.InterruptProcessingException:
        stopped = True
    bench.model = original
    lent = any(buffers.is_lent for buffers in graph_store(original).buffers)
    return "an interrupted run returns its buffers", stopped and not lent, f"stopped {stopped}, lent {lent}"


def _recorded_anew(bench: Any, variant: Any) -> tuple[str, bool, str]:
    import torch

    from ...ras_core.host.patch import graph_store

    held = []
    for _ in range(3):
        graph_store(bench.model).clear()
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
        bench.latent_of(variant)
    return "recording anew leaves no memory behind", held[-1] <= held[0], f"{held} bytes"


@contextmanager
def _one_prompt_a_call() -> Iterator[None]:
    """The host calls the network once for each prompt, as where memory is short."""
    import comfy.samplers

    original = comfy.samplers._calc_cond_batch

    def apart(model: Any, conds: list, *args: Any) -> list:
        return [output for cond in conds for output in original(model, [cond], *args)]

    comfy.samplers._calc_cond_batch = apart
    try:
        yield
    finally:
        comfy.samplers._calc_cond_batch = original


@contextmanager
def _counted_begins() -> Iterator[list]:
    """A list that grows by one whenever a recorded call is begun early."""
    from ...ras_core.graphs.capture import CudaTape

    begins: list[int] = []
    begin = CudaTape.begin

    def counted(tape: CudaTape, replay: Any) -> Any:
        begins.append(1)
        return begin(tape, replay)

    CudaTape.begin = counted
    try:
        yield begins
    finally:
        CudaTape.begin = begin


def _with_patch(model: Any) -> Any:
    """A clone with a difference on every matrix of the first main block."""
    import torch

    patched = model.clone()
    block = ("diffusion_model.joint_blocks.0.", "diffusion_model.layers.0.")
    weights = {
        name: weight for name, weight in model.model.named_parameters()
        if name.startswith(block) and weight.ndim == 2
    }  # fmt: skip
    patched.add_patches({name: (torch.full_like(w, 1e-2),) for name, w in weights.items()}, 1.0)
    return patched


def _add(results: dict[str, Any], family: str, what: str, held: bool, detail: str) -> None:
    results["checks"].append({"family": family, "check": what, "held": bool(held), "detail": detail})
    say(f"{'ok    ' if held else 'FAILED'} {family}: {what} ({detail})")
