"""What the residency program's checks work on: a network that is loaded from a file and sampled with and
without CUDA graphs, and functions that disturb its runs (evict weights, fill the memory, inject faults).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
import comfy.model_management
import comfy.sample
import folder_paths
import torch
from torch import Tensor

import nodes

from ...nodes.patch_model import RASPatchModel
from ...ras_core.host.graphs_of_model import graph_store
from ...ras_core.host.patch import last_trace
from ..common.graph_counter import GraphCounter
from ..common.hosting import end_node
from ..common.pack_log import logged
from ..common.shapes import SHAPES, Shape

STEPS = 12
START, RESET = 2, 7

PAGE = 32 * 2**20
"""Size of a page of evictable weights, in bytes."""

CAPTURING = [False]
"""One bool: whether a tape that stands in for a CUDA graph (on a CPU) is capturing."""


class Skip(Exception):
    """Raised with the reason why a check does not apply here."""


@dataclass
class Ran:
    """Results of a run: its latent and trace, its number of graph captures and replays, and the pack's log
    lines.
    """

    latent: Tensor
    trace: Any
    captures: int
    replays: int
    log: list[str]


class Counter:
    """Counts captures and replays of CUDA graphs or, if `tiny`, of the tapes that replace them on a CPU."""

    def __init__(self, tiny: bool):
        self._cuda = GraphCounter().install()
        self.tapes: Any = None
        self._before = (0, 0)
        if tiny:
            self.tapes = _tapes()

    def take(self) -> tuple[int, int]:
        """Number of captures and number of replays since `take` was last called."""
        if self.tapes is None:
            found = self._cuda.take()
            return found["captures"], found["replays"]
        before, self._before = self._before, (self.tapes.captured, self.tapes.replayed)
        return self._before[0] - before[0], self._before[1] - before[1]

    @contextmanager
    def planted(self, action: Callable[[], None]) -> Iterator[None]:
        """Inside the with statement, call `action` in each replay, just before the graph is launched."""
        if self.tapes is not None:
            raise Skip("replays of stand-in tapes cannot be intercepted")
        self._cuda.before_replay = action
        try:
            yield
        finally:
            self._cuda.before_replay = lambda: None


@dataclass
class Scene:
    """A network from a file, and how it is sampled."""

    folder: Path
    tiny: bool
    models: dict[str, Any] = field(default_factory=dict)
    expected: dict[tuple, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in ("diffusion_models", "loras"):
            folder_paths.add_model_folder_path(kind, str(self.folder))
        self.shape = self._shape("sd3_medium")
        self.device = comfy.model_management.get_torch_device()
        self.counter = Counter(self.tiny)
        self.size = 128 if self.tiny else 512

    def _shape(self, name: str) -> Shape:
        return SHAPES[name].tiny() if self.tiny else SHAPES[name]

    def model(self, kind: str = "default", weight_dtype: str = "default") -> Any:
        """The network from UNETLoader; each file is loaded only once with each weight_dtype.

        Raises:
            Skip: the file does not exist, because this ComfyUI lacks the quantised layout `kind`.
        """
        if not (self.folder / f"network_{kind}.safetensors").exists():
            raise Skip(f"no file with {kind} weights could be written")
        if (key := f"{kind} {weight_dtype}") not in self.models:
            with torch.inference_mode():
                found = _loaded(f"network_{kind}.safetensors", weight_dtype)
            if self.counter.tapes is not None:
                _capture_on(found, self.counter.tapes)
            self.models[key] = found
        return self.models[key]

    def with_lora(self, strength: float) -> Any:
        loader = nodes.LoraLoaderModelOnly()
        return loader.load_lora_model_only(self.model(), "network_lora.safetensors", strength)[0]

    def other(self) -> tuple[Any, Shape]:
        """A network other than the one under test, loaded from its file at each call, and its shape."""
        with torch.inference_mode():
            found = _loaded("other_default.safetensors")
        return found, self._shape("sd35_large" if self.tiny else "lumina2")

    def with_idle_layers(self) -> tuple[Any, Shape]:
        """Anima and its shape. With the prompts of `Shape`, the layers of Anima that process the text before
        sampling never run. A tiny Anima is built instead of loaded, because ComfyUI recognises a file of
        Anima by its width.
        """
        shape = self._shape("anima")
        if "idle" not in self.models:
            with torch.inference_mode():
                found = shape.build(self.device) if self.tiny else _loaded("idle_default.safetensors")
            if self.counter.tapes is not None:
                _capture_on(found, self.counter.tapes)
            self.models["idle"] = found
        return self.models["idle"], shape

    def sample(self, model: Any, shape: Shape | None = None, steps: int = STEPS, **kwargs: Any) -> Tensor:
        """Sample once; returns the final latent, (1, c, H, W), on the CPU."""
        shape, size = shape or self.shape, kwargs.pop("size", self.size)
        latent = shape.latent(size, size, 1)["samples"]
        seed = kwargs.pop("seed", 7)
        with torch.inference_mode():
            try:
                return comfy.sample.sample(
                    model, comfy.sample.prepare_noise(latent, seed), steps, 5.0, "euler", "simple",
                    shape.conditioning(0), shape.conditioning(1), latent, seed=seed, disable_pbar=True,
                    **kwargs,
                ).cpu()  # fmt: skip
            finally:
                end_node()

    def run(
        self, model: Any, graphs: str = "auto", ratio: float = 0.5, kv_cache: str = "gpu", **kwargs: Any
    ) -> Ran:
        """Sample with RAS."""
        patched = ras(model, graphs, ratio, kv_cache)
        self.counter.take()
        with logged() as lines:
            latent = self.sample(patched, **kwargs)
        return Ran(latent, last_trace(patched), *self.counter.take(), lines)

    def eager(self, key: str, model: Any, ratio: float = 0.5, **kwargs: Any) -> Tensor:
        """The latent of a run with RAS but without graphs. It is sampled only once for the same `key`, ratio
        and other arguments; `key` names the weights.
        """
        full = (key, ratio, *sorted(kwargs.items()))
        # The latent of a process's first run differs in its last bits, even without this pack.
        if not self.expected:
            self.sample(model)
            self.run(model, "off", ratio, **kwargs)
        if full not in self.expected:
            self.expected[full] = self.run(model, "off", ratio, **kwargs).latent
        return self.expected[full]

    def vbars(self, model: Any) -> list[Any]:
        return list(getattr(model.model, "dynamic_vbars", {}).values())

    def forget(self, model: Any) -> None:
        """Drop the model's graphs."""
        if (store := graph_store(model)) is not None:
            store.clear()


def _loaded(file: str, weight_dtype: str = "default") -> Any:
    return nodes.UNETLoader().load_unet(file, weight_dtype)[0]


def ras(model: Any, graphs: str = "auto", ratio: float = 0.5, kv_cache: str = "gpu") -> Any:
    """The model patched by RASPatchModel. With the default arguments, no setting depends on how much memory
    is free, so that all runs do the same.
    """
    return RASPatchModel.execute(
        model, speed="custom", sample_ratio=ratio, start_percent=START / STEPS, end_percent=1.0,
        error_reset_every=RESET - START, cuda_graphs=graphs, kv_cache=kv_cache,
    ).args[0]  # fmt: skip


def pinned_pages(scene: Scene) -> int:
    """Number of pinned pages of all loaded networks."""
    return count_pages(scene, 2)


def count_pages(scene: Scene, bit: int, models: Any = None) -> int:
    """Number of weight pages whose state has this bit set: 1 for pages in GPU memory, 2 for pinned pages."""
    vbars = [vbar for model in models or scene.models.values() for vbar in scene.vbars(model)]
    return sum(bool(page & bit) for vbar in vbars for page in vbar.get_residency())


def evict(scene: Scene, model: Any) -> int:
    """Allocate nearly all GPU memory and free it again, to evict weights. Returns the number of pages of the
    model's weights that were evicted.
    """
    vbars = scene.vbars(model)
    if not vbars:
        raise Skip("no dynamic VRAM")
    before = count_pages(scene, 1, [model])
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    unused, _ = torch.cuda.mem_get_info()
    loaded = sum(vbar.loaded_size() for vbar in vbars)
    ballast(unused + loaded // 2, unused, int(unused * 0.97))
    return before - count_pages(scene, 1, [model])


def ballast(*sizes: int) -> None:
    """Try to allocate GPU memory of each of these sizes in bytes, until an attempt succeeds; then free it
    again.
    """
    for nbytes in sizes:
        try:
            torch.empty(nbytes, dtype=torch.uint8, device="cuda")
            break
        except torch.cuda.OutOfMemoryError:
            continue
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@contextmanager
def in_capture(action: Callable[[], Any]) -> Iterator[list[int]]:
    """Call `action` once during a capture, when the network reaches its second attention. The context manager
    yields a list that shows whether this has happened: it is empty before, and has one entry afterwards.
    """
    original, seen, done = mmdit.optimized_attention, [], []

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        if is_capturing() and not done:
            seen.append(1)
            if len(seen) == 2:
                done.append(1)
                action()
        return original(*args, **kwargs)

    mmdit.optimized_attention = attention
    try:
        yield done
    finally:
        mmdit.optimized_attention = original


def is_capturing() -> bool:
    return CAPTURING[0] or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _tapes() -> Any:
    support = importlib.import_module("support.tape")

    class Tape(support.AgainTape):
        def capture(self, *args: Any, **kwargs: Any) -> Any:
            CAPTURING[0] = True
            try:
                return super().capture(*args, **kwargs)
            finally:
                CAPTURING[0] = False

    return support.Tapes(Tape)


def _capture_on(model: Any, tapes: Any) -> None:
    importlib.import_module("support.tape").capture_on(model, tapes)
