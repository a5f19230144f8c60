"""A small interface to CUDA graphs: capture work once, replay it later. A tape is an object that captures
several pieces of work as graphs, which share the tape's working memory.

A tape has its own memory pool for the temporary tensors of its graphs. A tensor that outlives a failed
capture points into that pool, and freeing it later may crash the process. If a capture raises an error, the
frames of the error's traceback keep such tensors alive. So this module either drops these frames before the
capture ends (`without_frames`) or keeps them forever (`kept_forever`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from typing import Protocol

import torch

from .eligibility import MAX_TAPES

Work = Callable[[], None]
Around = Callable[[], AbstractContextManager[None]]
"""Returns the context manager that a capture runs inside."""


class Tape(Protocol):
    """Captures work as graphs, and replays the graphs. All graphs of one tape share working memory, so two of
    them must not run at the same time.
    """

    def capture(self, work: Work, around: Around = nullcontext) -> Work:
        """Run `work` once, then capture it inside the context manager that `around` returns. Returns a
        function that replays the captured work.
        """

    def launch(self, replay: Work) -> Work:
        """Launch the replay in parallel with the work that is enqueued next. Returns a function that makes
        the current stream wait for the replay.
        """


class CudaTape:
    """A tape of PyTorch's CUDA graphs, with a stream and a memory pool of its own. A tensor created in a
    capture is freed before the capture ends, or never.

    Args:
        number: number of this tape among the tapes of one model, from 0. Tapes with different numbers use
            different streams.
    """

    def __init__(self, number: int) -> None:
        self._stream = _streams(torch.cuda.current_device())[number]
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Work, around: Around = nullcontext) -> Work:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        torch.cuda.empty_cache()  # frees blocks cached for other streams, which this stream cannot use
        try:
            with torch.cuda.stream(self._stream):
                return self._warm_up_and_capture(work, around)
        finally:
            current.wait_stream(self._stream)

    def _warm_up_and_capture(self, work: Work, around: Around) -> Work:
        work()  # in this first run, libraries allocate their workspaces for this stream
        torch.cuda.empty_cache()  # frees blocks that the warm-up cached, which the pool cannot use
        with around():
            torch.cuda.synchronize()
            return self._capture(work)

    def _capture(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # "thread_local": ComfyUI's server thread may use the device during the capture.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        failure = None
        try:
            work()
        except BaseException as error:
            failure = kept_forever(error) if is_broken_by(error) else without_frames(error)
        try:
            graph.capture_end()
        except BaseException as error:
            self._leave_pool()
            failure = failure or error
        if failure is not None:
            raise failure
        return graph.replay

    def _leave_pool(self) -> None:
        """Stop the allocator from using the pool. `capture_end` does this, unless it fails before."""
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)

    def launch(self, replay: Work) -> Work:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            replay()
        return lambda: torch.cuda.current_stream().wait_stream(self._stream)


def without_frames(error: BaseException) -> BaseException:
    """The same error without its traceback. This frees the tensors that only the frames of the traceback keep
    alive. Tensors created in a capture must be freed before the capture ends, because with cudaMallocAsync,
    freeing them later terminates the process.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


def is_broken_by(error: BaseException) -> bool:
    """Whether this error was raised by the driver. A driver error invalidates the capture in which it
    occurs.
    """
    return isinstance(error, torch.cuda.OutOfMemoryError) or "CUDA" in str(error)


def kept_forever(error: BaseException) -> BaseException:
    """The same error, with its frames kept alive forever. Tensors made in a broken capture have an address
    but no memory; freeing them would raise an error that terminates the process.
    """
    each: BaseException | None = error
    while each is not None:
        if each.__traceback__ is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(each.__traceback__))
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


@cache
def _streams(device: int) -> tuple[torch.cuda.Stream, ...]:
    """One stream per tape number, shared by all models, because libraries allocate a workspace for each
    stream that they see and never free it. All are created at once, because PyTorch hands out its 32 streams
    in rotation, so that streams created at different times might be the same.
    """
    return tuple(torch.cuda.Stream(device) for _ in range(MAX_TAPES))
