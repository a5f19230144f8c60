"""Run a case of the speed program: its variants sample in turn, with ComfyUI's loader and sampler nodes."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import comfy.model_management
import comfy.utils
import comfyui_version
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...nodes.sampler import sample_with_trace
from ...ras_core.config import RASConfig
from ...ras_core.graphs.eligibility import MAX_GRAPHS
from ...ras_core.host.graphs_of_model import graph_store
from ...ras_core.host.outer_sample import Settings
from ...ras_core.host.patch import last_trace, patch_model
from ...ras_core.host.speed import Speed
from ...ras_core.models import adapter_for
from ...ras_core.run.trace import Trace
from ..common.graph_counter import GraphCounter
from ..common.hosting import end_node, has_dynamic_vram
from ..common.shapes import PIXELS_PER_TOKEN, Shape, free
from ..common.timing import Clock
from .cases import (
    RESETS,
    SPREAD,
    START_STEP,
    STEPS,
    Case,
    Variant,
    ideal_speedup,
    planned_counts,
)
from .clocked import clocked
from .measured import SEED, Measured, Run, take_turns

graphs_since_last_call = GraphCounter().install().take
LAZYCACHE = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
"""The default inputs of ComfyUI's LazyCache node."""


@dataclass
class Bench:
    """A case that is ready to run.

    Attributes:
        model: MODEL from a loader node. If `model` is None, a network with random weights is built in this
            process.
    """

    case: Case
    shape: Shape
    device: torch.device
    pixels: int
    steps: int = STEPS
    model: ModelPatcher | None = None

    def __post_init__(self) -> None:
        is_built = self.model is None
        if is_built:
            self.model = self.shape.build(self.device)
        network = self.model.model.diffusion_model
        profile = adapter_for(network).cost_profile(network)
        self.profile = replace(profile, frozen_rows=self.shape.reference_rows)
        self.conditionings = [self.shape.conditioning(which) for which in (0, 1)]
        self.latent = self.shape.latent(self.pixels, self.pixels, self.case.batch)
        comfy.utils.set_progress_bar_enabled(False)
        if is_built:
            comfy.model_management.load_models_gpu([self.model])

    @property
    def n_tokens(self) -> int:
        return (-(-self.pixels // PIXELS_PER_TOKEN)) ** 2

    def measured(self, variant: Variant, clock: Clock | None = None) -> Measured:
        """Prepare a variant to be run and measured; its runs are timed by the given clock, or else by a new
        one.
        """
        clock = clock or Clock(self.device)
        model = clocked(self.model, clock)
        if variant.compiled:
            from comfy_extras.nodes_torch_compile import TorchCompileModel

            model = TorchCompileModel.execute(model, variant.compiled).args[0]
        run = {"dense": self._dense, "lazycache": self._lazycache, "ras": self._ras}[variant.method]

        def forget() -> None:
            if (store := graph_store(model)) is not None:
                store.clear()

        def count() -> int:
            store = graph_store(model)
            return 0 if store is None else store.count

        return Measured(
            variant, run(model, variant), clock, forget, count, graphs_since_last_call, end_node
        )  # fmt: skip

    def _dense(self, model: ModelPatcher, variant: Variant) -> Run:
        sample = self._sampler_node(model)
        return lambda seed: sample(seed) and None

    def _sampler_node(self, model: ModelPatcher) -> Callable[[int], dict[str, Tensor]]:
        from nodes import KSampler

        node = KSampler()

        def sample(seed: int) -> dict[str, Tensor]:
            return node.sample(
                model, seed, self.steps, self.shape.cfg, "euler", "simple", *self.conditionings, self.latent
            )[0]  # fmt: skip

        return sample

    def _lazycache(self, model: ModelPatcher, variant: Variant) -> Run:
        from comfy_extras.nodes_easycache import LazyCacheNode

        return self._dense(LazyCacheNode.execute(model, **LAZYCACHE).args[0], variant)

    def _ras(self, model: ModelPatcher, variant: Variant) -> Run:
        if variant.node == "RASKSampler":
            return lambda seed: self._ras_sampler_node(model, variant, seed)
        patched = with_ras(model, variant)
        sample = self._sampler_node(patched)

        def run(seed: int) -> Trace:
            sample(seed)
            return last_trace(patched)

        return run

    def _ras_sampler_node(self, model: ModelPatcher, variant: Variant, seed: int) -> Trace:
        positive, negative = self.conditionings
        return sample_with_trace(
            model, self.latent, settings=settings_of(variant), seed=seed, steps=self.steps,
            cfg=self.shape.cfg, sampler_name="euler", scheduler="simple", positive=positive,
            negative=negative, denoise=1.0,
        )[1]  # fmt: skip

    def latent_of(self, variant: Variant, seed: int = SEED) -> tuple[Tensor, Trace]:
        """Sample once with RAS; returns the latent and the trace, which callers compare with other runs."""
        patched = with_ras(self.model, variant)
        latent = self._sampler_node(patched)(seed)
        return latent["samples"], last_trace(patched)

    def warm_up(self) -> None:
        """Do a dense run without RAS, before runs whose latents are compared: on a GPU, cuBLAS may round
        differently in the first run of a process than in later ones.
        """
        self._sampler_node(self.model)(SEED)

    def ideal(self, counts: Sequence[int]) -> float:
        """The speed-up expected from FLOPs, relative to a dense run of as many evaluations."""
        return ideal_speedup(self.profile, self.n_tokens, self.shape.rows_in_network, counts)

    def close(self) -> None:
        del self.model
        free()


def with_ras(model: ModelPatcher, variant: Variant) -> ModelPatcher:
    """The model patched with RAS, with the settings of a variant."""
    return patch_model(model, settings_of(variant))


def settings_of(variant: Variant) -> Settings | RASConfig:
    """A plan's settings if the variant has a speed. All other variants have the same dense steps as the
    reference code: the first START_STEP steps, and those in RESETS.
    """
    if variant.speed:
        return Speed(variant.speed, None, variant.graphs)
    return RASConfig(
        sample_ratio=variant.ratio, start_step=START_STEP, dense_steps=RESETS,
        cuda_graphs=variant.graphs, kv_cache=variant.kv_cache.removesuffix(SPREAD),
        spread=variant.kv_cache.endswith(SPREAD),
    )  # fmt: skip


def too_many_graphs(wanted: Sequence[Variant], calls: int) -> str:
    """A warning if the variants together need more CUDA graphs than a model keeps, else an empty string.

    If they need too many, each run has to capture its graphs again: the variants run in turn, and the runs of
    the other variants have made the model drop these graphs.

    Args:
        wanted: the variants.
        calls: number of network calls per evaluation; each of them needs a graph.
    """
    needed = calls * sum(each.graphs != "off" for each in wanted)
    if needed <= MAX_GRAPHS:
        return ""
    return (
        f"The variants, which run in turns, need {needed} CUDA graphs, but a model keeps only {MAX_GRAPHS}. "
        "So each run has to capture its graphs again, which takes time. To avoid this, use fewer --ratios or "
        "fewer settings of --kv-cache."
    )


@torch.inference_mode()
def measure_case(
    bench: Bench, found: Sequence[Measured], repeats: int, left: Callable[[], float]
) -> list[dict[str, Any]]:
    """Measure a case's variants; returns one row per variant.

    Args:
        bench: the case.
        found: the variants, dense first.
        repeats: desired number of timed runs of each variant.
        left: function that returns the seconds left.
    """
    take_turns(found, bench.device, repeats, left)
    return [row_of(bench, each, found[0], found[0]) for each in found]


def row_of(bench: Bench, each: Measured, dense: Measured, own_dense: Measured) -> dict[str, Any]:
    """The figures of a variant, as values that JSON can hold.

    Args:
        bench: the case.
        each: measurements of the variant.
        dense: measurements of ComfyUI's dense run; `speedup` is relative to them.
        own_dense: measurements of the dense run in the same program as the variant (ComfyUI or diffusers);
            `own_speedup` is relative to them.
    """
    variant = each.variant
    row: dict[str, Any] = {
        "case": bench.case.key, "variant": variant.key, "method": variant.method, "ratio": variant.ratio,
        "graphs": variant.graphs, "option": variant.option, "compiled": variant.compiled,
        "weights": variant.weights, "speed": variant.speed, "comfyui": comfyui_version.__version__,
        "dynamic_vram": has_dynamic_vram(), "pixels": bench.pixels,
        "batch": bench.case.batch, "tokens": bench.n_tokens, "text_rows": list(bench.shape.rows_in_network),
        "dtype": str(bench.shape.dtype).removeprefix("torch."), "steps": bench.steps, "error": each.error,
        "blocks": bench.case.blocks,
    }  # fmt: skip
    if each.error and not each.seconds and not each.warm_up:
        return row
    seconds = statistics.median(each.seconds or [each.warm_up])
    base, own_base = (statistics.median(d.seconds or [d.warm_up]) for d in (dense, own_dense))
    row |= {
        "seconds": seconds, "all_seconds": each.seconds, "only_warm_up": not each.seconds,
        "node_seconds": statistics.median(each.node_seconds) if each.node_seconds else None,
        "warm_up_seconds": each.warm_up, "speedup": base / seconds if seconds else None,
        "own_speedup": own_base / seconds if seconds else None,
        "overhead_seconds": _overhead(each), "stages": each.stages, "kept_graphs": each.kept_graphs,
        "cuda_graphs": each.graphs, "log": each.log,
        "evaluations": len(each.steps[-1]) if each.steps else None, "memory": each.memory,
        "step_seconds": [statistics.median(laps) for laps in zip(*each.steps, strict=False)],
    }  # fmt: skip
    return row | _step_figures(each) | _against_ideal(bench, each, row["own_speedup"])


def _overhead(each: Measured) -> float | None:
    """Seconds that a sampler node's call takes in addition to sampling, as the median over the timed runs."""
    around = list(map(operator.sub, each.node_seconds, each.seconds))
    return statistics.median(around) if around else None


def _kinds(each: Measured) -> list[str]:
    if each.trace:
        return [evaluation.kind.value for evaluation in each.trace.evaluations]
    return ["regional" if count < max(each.counts) else "dense" for count in each.counts]


def _step_figures(each: Measured) -> dict[str, Any]:
    """Median seconds, and median CPU seconds, of a dense and of a regional step. The first and the last step
    of each run are left out.
    """
    kinds = _kinds(each)
    found: dict[str, list[float]] = {}
    for laps in each.steps:
        for i, seconds in enumerate(laps[1:-1], start=1):
            found.setdefault(kinds[i] if i < len(kinds) else "dense", []).append(seconds)
    for i, seconds in enumerate(each.enqueue[1:-1], start=1):
        found.setdefault(f"{kinds[i] if i < len(kinds) else 'dense'}_cpu", []).append(seconds)
    return {f"{kind}_step_seconds": statistics.median(values) for kind, values in found.items()}


def _against_ideal(bench: Bench, each: Measured, speedup: float | None) -> dict[str, Any]:
    trace, variant = each.trace, each.variant
    if variant.method not in ("ras", "reference") or not speedup:
        return {}
    if trace is None:
        counts = each.counts or planned_counts(bench.n_tokens, variant.ratio, bench.steps)
        return {"ideal": (ideal := bench.ideal(counts)), "of_ideal": speedup / ideal}
    counts = [round(e.active_share * bench.n_tokens) for e in trace.evaluations]
    ideal = bench.ideal(counts) * bench.steps / len(counts)  # a plan may have fewer steps than the dense run
    return {
        "ideal": ideal, "of_ideal": speedup / ideal, "kv_bytes": trace.kv_bytes,
        "regional_steps": trace.regional_steps, "log_expected": trace.expected_speedup,
        "log_measured": trace.measured_speedup, "notes": list(trace.notes),
        "trace_graphs": plain(getattr(trace, "graphs", None)),
    }  # fmt: skip


def plain(value: Any) -> Any:
    """Convert a value from a trace (a dataclass, list, dict or other object) to values that JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
