"""The steps of the multirate integrator as ComfyUI sees them: evaluations of its model, each reported to its
callback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def counted(first: int, stop: int, count: Callable[[], object]) -> Iterator[int]:
    """The numbers from `first` to below `stop`; `count` is called after each."""
    for number in range(first, stop):
        yield number
        count()


class Evaluations:
    """Evaluates the model for the multirate integrator, and reports each step to ComfyUI's callback.

    Args:
        model, sigmas, extra_args, callback: as in `sample_multirate`.
        levels: the sigmas as plain numbers.
        known: by step, denoised estimates that are already computed.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        sigmas: Tensor,
        levels: list[float],
        extra_args: dict[str, Any],
        callback: Callable[[dict[str, Any]], None] | None,
        known: dict[int, Tensor],
    ):
        self._model, self._sigmas, self._extra_args = model, sigmas, extra_args
        self._callback, self._known = callback, known
        self._last = len(levels) - 2 if levels[-1] == 0 else None
        self._x: Tensor | None = None

    def __call__(self, i: int, x: Tensor) -> Tensor:
        """The denoised estimate of x, (b, c, H, W), at step i."""
        if (denoised := self._known.pop(i, None)) is None:
            ones = x.new_ones([x.shape[0]])
            denoised = self._model(x, self._sigmas[i] * ones, **self._extra_args)
        if i == self._last:
            self._x = x
        else:
            self._report(i, x, denoised)
        return denoised

    def report_last(self, result: Tensor) -> None:
        """Report the last step if it ends at noise level 0. Its result is then the final estimate: the
        integrator continues the estimates of cached tokens, so it may differ from what the model returned.
        """
        if self._x is not None:
            self._report(self._last, self._x, result)

    def _report(self, i: int, x: Tensor, denoised: Tensor) -> None:
        if self._callback is not None:
            sigma = self._sigmas[i]
            shown = denoised.clone()  # the callback may write into it, but it is still needed
            self._callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": shown})
