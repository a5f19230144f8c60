"""Collect the attentions of a run: keys, values and attention outputs of every image token, step by step.

The probe is an attention override of ComfyUI. In a regional step, RAS first replaces the old keys and values
of the active tokens in the cache by the new ones. It then calls the override with the keys and values of all
tokens, so the probe sees exactly the keys and values that the active tokens attend to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...ras_core.host.names import ATTENTION, RUN
from ...ras_core.method.grid import TokenGrid
from ...ras_core.models import adapter_for
from ..quality.sources import Source

Place = tuple[int, int, int]
"""Identifies an attention in a step by three indices from 0: (index of the network call in the step, index of
the main block in the network, index of the attention in the main block)."""


@dataclass
class Seen:
    """Keys, values and outputs of the image tokens in one attention at one step: (bb, n, d) each."""

    key: Tensor
    value: Tensor
    output: Tensor


@dataclass
class Probe:
    """Collects the attentions of a step.

    Attributes:
        source: the model whose run is probed, as loaded by quality/sources.py.
        grid: token grid of that run.
        seen: the attentions of the last step.
        cached: (bb, n) bool, the tokens that the last step did not process; None if that step was dense.
    """

    source: Source
    grid: TokenGrid
    seen: dict[Place, Seen] = field(default_factory=dict)
    cached: Tensor | None = None
    _call: int = -1
    _block: int | None = None
    _attention: int = 0

    def begin_step(self) -> None:
        """Call this before each step: the next network call then counts as the first call of the step."""
        self._call = -1

    @contextmanager
    def attached(self, model: ModelPatcher):
        """Yields a clone of the model with this probe attached, for use inside the with statement."""
        probed = model.clone()
        options = probed.model_options.setdefault("transformer_options", {})
        probed.model_options["transformer_options"] = {**options, ATTENTION: self._attend}
        probed.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "multirate_probe", self._begin_call)
        network = self.source.network
        with ExitStack() as hooks:
            for number, block in enumerate(adapter_for(network).main_blocks(network)):
                hooks.callback(block.register_forward_pre_hook(self._enter(number)).remove)
            yield probed

    def _begin_call(
        self, executor: comfy.patcher_extension.WrapperExecutor, *args: Any, **kwargs: Any
    ) -> Tensor:
        self._call += 1
        self._block = None
        return executor(*args, **kwargs)

    def _enter(self, number: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple) -> None:
            self._block, self._attention = number, 0

        return hook

    def _attend(self, func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any):
        output = func(q, k, v, heads, *args, **kwargs)
        if self._block is not None:
            run = kwargs.get("transformer_options", {}).get(RUN)
            active = None if run is None or run.evaluation is None else run.evaluation.active_idx
            axis = 2 if kwargs.get("skip_reshape") else 1
            self._keep(_rows(k, axis), _rows(v, axis), output, active)
            self._attention += 1
        return output

    def _keep(self, key: Tensor, value: Tensor, output: Tensor, active: Tensor | None) -> None:
        place = (self._call, self._block, self._attention)
        suffix = adapter_for(self.source.network).suffix_rows(self.source.network, self.grid.n)
        prefix = key.shape[1] - self.grid.n - suffix
        image = slice(prefix, prefix + self.grid.n)
        if active is None:
            whole, self.cached = output[:, image].clone(), None
        else:
            index = active.repeat(key.shape[0] // active.shape[0], 1)
            fresh = output[:, prefix : prefix + index.shape[1]]
            whole = self.seen[place].output.clone()
            whole.scatter_(1, index[:, :, None].expand_as(fresh), fresh)
            self.cached = ~self.grid.active_mask(index)
        self.seen[place] = Seen(key[:, image].clone(), value[:, image].clone(), whole)


def _rows(t: Tensor, token_axis: int) -> Tensor:
    """Flatten the heads of keys or values: (bb, r, ...) or (bb, heads, r, e) -> (bb, r, d)."""
    return (t.movedim(2, 1) if token_axis == 2 else t).flatten(2)
