"""DBCache: if the residual of the first blocks changed little, cached residuals replace the other blocks.

Written from cache-dit's description (vipshop/cache-dit), for any model family that ras_core has an adapter
for. The first F blocks, the probe, run in every call of the network. Their residual r (output minus input)
is compared with r', the residual that they had in the last full call (all blocks ran) of the same branch:
the relative change is mean |r - r'| / mean |r'|. If this change is below the threshold, the blocks after the
probe do not run: each adds to its input the residual that it had in that full call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ...ras_core.models import adapter_for, network_of
from ...ras_core.models.cost import linear_weights

KEY = "bench_block_cache"
Position = int | str


@dataclass
class Kept:
    """Residuals cached from the last full call of a branch: the last call that ran all blocks.

    Attributes:
        probe: residual of the whole probe, one entry for each output of the last probe block: this output
            minus the matching input of the first block. The entry is None if no input matches.
        residuals: index of a block after the probe -> one entry for each output of the block. An entry is the
            position of the matching input among the block's arguments, and the output minus this input. The
            entry is None if no input matches.
    """

    probe: list[Tensor | None] = field(default_factory=list)
    residuals: dict[int, list[tuple[Position, Tensor] | None]] = field(default_factory=dict)


def with_block_cache(model: ModelPatcher, threshold: float, probe: int, warm_up: int) -> ModelPatcher:
    """A clone of the model that samples with DBCache.

    Args:
        model: a model whose family has an adapter in ras_core.
        threshold: relative change of the probe's residual below which the other blocks' cached residuals are
            reused.
        probe: F, the number of blocks at the start of the network that always run.
        warm_up: number of calls of each branch, at the start of the run, that always run all blocks.
    """
    network = network_of(model.get_model_object("diffusion_model"))
    adapter = adapter_for(network)
    cache = BlockCache(list(adapter.main_blocks(network)), threshold, probe, warm_up)
    cache.before = sum(map(linear_weights, adapter.refiner_blocks(network)))
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, cache.around_run)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, cache.around_call)
    return patched


def work_of_last_run(model: ModelPatcher) -> list[float]:
    """For each call of the last run, the share of the network's linear weights in the blocks that ran."""
    return model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)[0].__self__.work


class BlockCache:
    """The DBCache state of a patched model; each run starts with an empty cache.

    Attributes:
        work: for each call of the run, the share of the linear weights of all blocks that is in the blocks
            that ran.
        before: number of linear weights in the refiner blocks, which always run before the main blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module], threshold: float, probe: int, warm_up: int):
        self._blocks, self._threshold, self._warm_up = blocks, threshold, warm_up
        self._probe = max(1, min(probe, len(blocks) - 1))
        self.work: list[float] = []
        self.before = 0

    def around_run(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper: replaces the forward functions of the main blocks during this run."""
        self.work, self._kept, self._calls = [], {}, {}
        with self._attached():
            return executor(*args, **kwargs)

    def around_call(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        """APPLY_MODEL wrapper: one call, with the cache of the branches that its transformer_options name."""
        options = next((each for each in (*args, *kwargs.values()) if _names_branches(each)), {})
        self._branch = tuple(options.get("uuids", ()))
        self._calls[self._branch] = self._calls.get(self._branch, 0) + 1
        self._reuse, self._new, self._start = False, Kept(), None
        output = executor(*args, **kwargs)
        if not self._reuse:
            self._kept[self._branch] = self._new
        self.work.append(self._share())
        return output

    @contextmanager
    def _attached(self) -> Iterator[None]:
        try:
            for index, block in enumerate(self._blocks):
                block.forward = self._forward_of(index, block.forward)
            yield
        finally:
            for block in self._blocks:
                del block.forward  # the forward of the class takes effect again

    def _forward_of(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if index >= self._probe and self._reuse:
                return self._again(index, args, kwargs)
            hidden = _hidden(args, kwargs)
            output = forward(*args, **kwargs)
            if index >= self._probe:
                self._new.residuals[index] = _residuals(hidden, output)
            else:
                self._watch(index, hidden, output)
            return output

        return run

    def _watch(self, index: int, hidden: dict[Position, Tensor], output: Any) -> None:
        """Keep the input of the first block. After the last probe block, decide if the other blocks run."""
        if self._start is None:
            self._start = _inputs_of(hidden, output)
        if index != self._probe - 1:
            return
        outputs = _as_list(output)
        self._new.probe = [
            None if start is None or out is None or start[1].shape != out.shape else out - start[1]
            for start, out in zip(self._start, outputs, strict=True)
        ]
        kept = self._kept.get(self._branch)
        is_warm = self._calls[self._branch] > self._warm_up
        if kept is not None and is_warm and self._threshold > 0:
            self._reuse = _change(self._new.probe, kept.probe) < self._threshold

    def _again(self, index: int, args: tuple, kwargs: dict) -> Any:
        """The output of a skipped block: its inputs plus the residuals that it had in the last full call."""
        known = self._kept[self._branch].residuals[index]
        found = [None if each is None else _value(args, kwargs, each[0]) + each[1] for each in known]
        return found[0] if len(found) == 1 else tuple(found)

    def _share(self) -> float:
        weights = [linear_weights(block) for block in self._blocks]
        ran = sum(weights[: self._probe]) if self._reuse else sum(weights)
        return (self.before + ran) / (self.before + sum(weights))


def _names_branches(value: Any) -> bool:
    return isinstance(value, dict) and "uuids" in value


def _as_list(output: Any) -> list[Tensor | None]:
    return list(output) if isinstance(output, (tuple, list)) else [output]


def _value(args: tuple, kwargs: dict, position: Position) -> Tensor:
    return args[position] if isinstance(position, int) else kwargs[position]


def _hidden(args: tuple, kwargs: dict) -> dict[Position, Tensor]:
    """Copies of a block's inputs that may be hidden tensors, by position: copies, because Flux's blocks
    overwrite their inputs.
    """
    positions = [*enumerate(args), *kwargs.items()]
    return {key: value.clone() for key, value in positions if isinstance(value, Tensor) and value.ndim == 3}


def _inputs_of(hidden: dict[Position, Tensor], output: Any) -> list[tuple[Position, Tensor] | None]:
    """For each output of a block, position and value of the matching input. This is the first input that has
    the output's shape and does not match an earlier output.

    This works because blocks take and return their hidden tensors in the same order. The entry is None if the
    output is None or if no input has its shape.
    """
    left = list(hidden.items())
    found: list[tuple[Position, Tensor] | None] = []
    for out in _as_list(output):
        match = None
        if out is not None:
            match = next((each for each in left if each[1].shape == out.shape), None)
            left = [each for each in left if match is None or each[0] != match[0]]
        found.append(match)
    return found


def _residuals(hidden: dict[Position, Tensor], output: Any) -> list[tuple[Position, Tensor] | None]:
    pairs = zip(_inputs_of(hidden, output), _as_list(output), strict=True)
    return [None if start is None else (start[0], out - start[1]) for start, out in pairs]


def _change(new: Sequence[Tensor | None], old: Sequence[Tensor | None]) -> float:
    """Relative change, mean |a - b| / mean |b|, of the largest residual tensor: that of the image rows."""
    pairs = [(a, b) for a, b in zip(new, old, strict=True) if a is not None and b is not None]
    a, b = max(pairs, key=lambda pair: pair[0].numel())
    return float((a - b).abs().mean() / b.abs().mean().clamp_min(1e-12))
