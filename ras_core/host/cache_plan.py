"""Chooses the format of a run's K/V cache, once ComfyUI has loaded the run's models."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import comfy.patcher_extension
import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import nn

from ..graphs.eligibility import format_obstacle
from ..graphs.session import GraphSession
from ..kv import forecast
from ..kv.choose import Choice, Needs, Room, choose, for_corrected
from ..kv.float8 import has_float8
from ..kv.formats import AUTO, first_choice
from ..kv.spec import CacheSize
from ..kv.spread import LEAST_SHARE, TRANSIENTS
from ..method.schedule import StepKind
from ..models.base import METHOD, REFERENCES, ModelAdapter
from ..models.cost import CostProfile, expected_speedup
from ..run.other_code import OtherCode
from ..run.state import RunState
from .graphs_of_model import graph_store
from .memory import evictable_room, free_device_bytes, free_main_memory, make_room, working_memory
from .names import KEEPS_NEGATIVE, KEY, NEGATIVE, REFERENCE_IMAGES, REFERENCE_METHOD, TEXT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachePlan:
    """Chooses the K/V format of one run.

    Attributes:
        guider: ComfyUI's guider of this run.
        network, adapter: the network and the adapter of its family.
        run: state of the run; the chosen format is set on it.
        graphs: the run's CUDA graphs, or None.
        wanted: the user's setting of `kv_cache`, or a setting that replaces it if the sampler does not
            support it.
        is_corrected: whether the sampler corrects a token that becomes active again: it repeats the steps in
            which the token was cached, with the new estimate (method/integrator.py). With other samplers,
            forecasts of cached K/V rows do not improve images enough to justify their memory.
        asked_steps: steps of the run without a plan, over which the expected speed-up is logged.
    """

    guider: Any
    network: nn.Module
    adapter: ModelAdapter
    run: RunState
    graphs: GraphSession | None
    wanted: str
    is_corrected: bool = False
    asked_steps: int = 0

    def attach(self) -> None:
        """Choose the K/V format as soon as ComfyUI has loaded the run's models (PREPARE_SAMPLING)."""
        if not self.run.is_regional:
            return
        if self.wanted != AUTO:  # set the format now, in case this guider never runs PREPARE_SAMPLING
            self.run.keep_cache_as(self.wanted)
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.PREPARE_SAMPLING, KEY, self.prepare, self.guider.model_options, is_model_options=True
        )

    def prepare(
        self, executor: Any, model: ModelPatcher, noise_shape: Any, conds: dict, *args: Any, **kwargs: Any
    ) -> Any:
        """The PREPARE_SAMPLING wrapper: lets ComfyUI load the run's models, then chooses the K/V format."""
        prepared = executor(model, noise_shape, conds, *args, **kwargs)
        if obstacle := OtherCode(self.adapter).obstacle(self.network):
            self.run.go_dense(obstacle)
            return prepared
        borders = self._borders(conds)
        self._log_estimate(borders)
        needs = cache_needs(model, self.network, self.adapter, self.run, borders)
        working = working_memory(model, noise_shape) + self._spread_nbytes(needs.size)
        room = self._room(model, working, needs)
        wanted = for_corrected(self.wanted, needs, room) if self.is_corrected else self.wanted
        self._keep(choose(wanted, needs, room), needs)
        return prepared

    def _spread_nbytes(self, size: CacheSize) -> int:
        """Working memory for spreading forecast errors. Nothing is spread in runs whose regional steps all
        compute few tokens.
        """
        n = self.run.grid.n
        spreads = any(LEAST_SHARE * n <= step.active_count(n) < n for step in self.run.plan)
        if not self.run.config.spread or not spreads:
            return 0
        return TRANSIENTS * size.attention_nbytes

    def _room(self, model: ModelPatcher, working: int, needs: Needs) -> Room:
        """Lets ComfyUI unload other models; returns the memory that is then available to the K/V cache, with
        `working` bytes left free.
        """
        first = first_choice(self.wanted).name
        # K/V buffers held by CUDA graphs of earlier runs count as free: this run either uses or frees them.
        held = 0 if self.graphs is None else sum(map(graph_store(model).nbytes, self._reusable(first)))
        make_room(needs.on_device(first) - held + working - evictable_room(model), model.load_device)
        free = free_device_bytes(model, working)
        return Room(free + held, free_main_memory(), has_float8(model.load_device))

    def _reusable(self, first: str) -> set[str]:
        """Names of the K/V formats that this run may use. If earlier CUDA graphs hold buffers in these
        formats, this run either reuses the buffers or frees them.
        """
        return {first, forecast.FORMAT.name} if self._may_forecast else {first}

    @property
    def _may_forecast(self) -> bool:
        return self.is_corrected and self.wanted == AUTO

    def _keep(self, choice: Choice, needs: Needs) -> None:
        """Use the chosen K/V format, or run dense if no format fits into memory. Logs the reason."""
        if self.graphs is not None and (obstacle := format_obstacle(choice.format_name)):
            self.graphs.refuse(obstacle)
            self.graphs.drop()
        if choice.format_name is None:
            self.run.go_dense(choice.reason)
            return
        self.run.keep_cache_as(choice.format_name, needs.of_a_branch(choice.format_name))
        if self.graphs is not None and (choice.is_fallback or self._may_forecast):
            self.graphs.keep_only(choice.format_name)
        if choice.is_fallback:
            self.run.warn(choice.reason)
        else:
            logger.info("Multirate RAS: %s.", choice.reason)

    def _borders(self, conds: dict[str, list[dict]]) -> list[OtherRows]:
        """For each conditioning that is evaluated: the rows that it adds to the image rows."""
        return [
            rows_of_cond(self.network, self.adapter, self.run.grid.n, cond)
            for cond in evaluated_conditionings(self.guider, conds)
        ]

    def _log_estimate(self, of_branches: list[OtherRows]) -> None:
        """Log the speed-up that is expected from FLOPs, over the same dense run as in the line at the end of
        the run (`Trace.compared_steps`). `of_branches` has the rows that each conditioning adds to the image
        rows.
        """
        n, plan = self.run.grid.n, self.run.plan
        counts = [n if step.kind is StepKind.DENSE else step.active_count(n) for step in plan]
        regional = sum(step.kind is StepKind.REGIONAL for step in plan)
        profile, n_text = with_others(self.adapter.cost_profile(self.network), of_branches)
        asked = max(self.asked_steps, len(counts))
        gain = expected_speedup(profile, n, n_text, counts) * asked / len(counts)
        logger.info(
            "Multirate RAS: %d of %d steps planned as regional; expected speed-up %.2fx (FLOPs) "
            "over %d dense steps.",
            regional, len(counts), gain, asked,
        )  # fmt: skip


def cache_needs(
    model: ModelPatcher,
    network: nn.Module,
    adapter: ModelAdapter,
    run: RunState,
    of_branches: Sequence[OtherRows],
) -> Needs:
    """The memory that the K/V cache of a run needs. `of_branches` has the rows that each branch adds to the
    image rows.
    """
    suffix = max((rows.after + rows.frozen for rows in of_branches), default=0)
    tokens = sum(run.grid.n + rows.frozen for rows in of_branches) * run.batch
    borders = [sum(rows) for rows in of_branches for _ in range(run.batch)]
    itemsize = (model.model.manual_cast_dtype or model.model.get_dtype()).itemsize
    profile = adapter.cache_profile(network)
    numbers, rows, largest = profile.counts(run.grid.n, borders, suffix)
    size = CacheSize(numbers, rows, tokens, largest, itemsize)
    return Needs(size, max(len(of_branches), 1))


def evaluated_conditionings(guider: Any, conds: dict[str, list[dict]]) -> list[dict]:
    """The conditionings that the run evaluates: at cfg 1, ComfyUI skips the negative conditionings."""
    is_comfyuis = getattr(type(guider), "predict_noise", None) is comfy.samplers.CFGGuider.predict_noise
    keeps_all = guider.model_options.get(KEEPS_NEGATIVE, False)
    leaves_out = is_comfyuis and math.isclose(guider.cfg, 1.0) and not keeps_all
    return [cond for name, group in conds.items() for cond in group if not (leaves_out and name == NEGATIVE)]


class OtherRows(NamedTuple):
    """Rows that a conditioning adds to the image rows.

    Attributes:
        text: text rows; for a family whose text comes after the image rows (`suffix_rows` returns `ALL`, -1),
            all rows except the frozen ones.
        after: rows after the image rows that every step processes (padding).
        frozen: rows of reference images, which only dense steps process.
    """

    text: int
    after: int
    frozen: int


def rows_of_cond(
    network: nn.Module, adapter: ModelAdapter, n_tokens: int, cond: Mapping[str, Any]
) -> OtherRows:
    """The rows that a conditioning adds to the image rows."""
    context, inputs = cond.get(TEXT), {REFERENCES: cond.get(REFERENCE_IMAGES)}
    if REFERENCE_METHOD in cond:
        inputs[METHOD] = cond[REFERENCE_METHOD]
    text = adapter.text_rows(network, 0 if context is None else context.shape[1])
    after = max(adapter.suffix_rows(network, n_tokens, inputs), 0)
    return OtherRows(text, after, adapter.frozen_rows(network, inputs))


def with_others(profile: CostProfile, of_branches: Sequence[OtherRows]) -> tuple[CostProfile, int]:
    """A cost profile that counts the rows of reference images, and the number of the remaining rows that are
    not image rows, both of the conditioning that has most of them.
    """
    frozen = max((rows.frozen for rows in of_branches), default=0)
    others = max((rows.text + rows.after for rows in of_branches), default=0)
    return replace(profile, frozen_rows=frozen), others
