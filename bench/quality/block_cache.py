"""DBCache: the first blocks are a probe; where they changed little, the others' residuals are used again.

By cache-dit's description (vipshop/cache-dit), for any family that has an adapter: the first F blocks always
run. Their residual is compared with that of the branch's last whole call, |r - r'| / |r'| in the mean. Below
the threshold each of the other blocks adds what it added in that call.
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
    """What a branch's last whole call left behind.

    Attributes:
        probe: residual of the first blocks, one tensor for each of their outputs.
        residuals: residuals of every other block, each with the position of its input in the call; None for
            an output that is none.
    """

    probe: list[Tensor | None] = field(default_factory=list)
    residuals: dict[int, list[tuple[Position, Tensor] | None]] = field(default_factory=dict)


def with_block_cache(model: ModelPatcher, threshold: float, probe: int, warm_up: int) -> ModelPatcher:
    """A clone that samples with DBCache.

    Args:
        model: of a family that has an adapter.
        threshold: relative change of the probe's residual below which the others' are used again.
        probe: F, blocks that always run.
        warm_up: whole calls of each branch at the start.
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
    """Share of the network's blocks, by weights, that each call of the last run computed."""
    return model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)[0].__self__.work


class BlockCache:
    """State of a patched model; it is new in each run.

    Attributes:
        work: share of the blocks, by weights, for each call of the run.
        before: weights of the blocks that run before the main ones.
    """

    def __init__(self, blocks: Sequence[nn.Module], threshold: float, probe: int, warm_up: int):
        self._blocks, self._threshold, self._warm_up = blocks, threshold, warm_up
        self._probe = max(1, min(probe, len(blocks) - 1))
        self.work: list[float] = []
        self.before = 0

    def around_run(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE: the blocks get their other forward for this run only."""
        self.work, self._kept, self._calls = [], {}, {}
        with self._attached():
            return executor(*args, **kwargs)

    def around_call(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        """APPLY_MODEL: a call starts, of the branches that its options name."""
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
                del block.forward  # the class's own shows again

    def _forward_of(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if index >= self._probe and self._reuse:
                return self._again(index, args, kwargs)
            output = forward(*args, **kwargs)
            if index >= self._probe:
                self._new.residuals[index] = _residuals(args, kwargs, output)
            else:
                self._watch(index, args, kwargs, output)
            return output

        return run

    def _watch(self, index: int, args: tuple, kwargs: dict, output: Any) -> None:
        """Keep the input of the first block; after the last of the probe, decide."""
        if self._start is None:
            self._start = _inputs_of(args, kwargs, output)
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
        """The block's inputs plus what it added in the last whole call."""
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


def _inputs_of(args: tuple, kwargs: dict, output: Any) -> list[tuple[Position, Tensor] | None]:
    """For each output of a block the input that it replaces: the next one of the same shape.

    Blocks take and return their hidden tensors in one order. None for an output that is None.
    """
    positions = [*enumerate(args), *kwargs.items()]
    left = [
        (position, value) for position, value in positions if isinstance(value, Tensor) and value.ndim == 3
    ]
    found: list[tuple[Position, Tensor] | None] = []
    for out in _as_list(output):
        match = None
        if out is not None:
            match = next((each for each in left if each[1].shape == out.shape), None)
            left = [each for each in left if match is None or each[0] != match[0]]
        found.append(match)
    return found


def _residuals(args: tuple, kwargs: dict, output: Any) -> list[tuple[Position, Tensor] | None]:
    pairs = zip(_inputs_of(args, kwargs, output), _as_list(output), strict=True)
    return [None if start is None else (start[0], out - start[1]) for start, out in pairs]


def _change(new: Sequence[Tensor | None], old: Sequence[Tensor | None]) -> float:
    """Mean relative change of the residual that has most rows: the image's."""
    pairs = [(a, b) for a, b in zip(new, old, strict=True) if a is not None and b is not None]
    a, b = max(pairs, key=lambda pair: pair[0].numel())
    return float((a - b).abs().mean() / b.abs().mean().clamp_min(1e-12))
