"""Handles each evaluation of a run, and each network call in it: runs it dense, regional, or unchanged."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .call import Call, Forward
from .captured import CapturedCalls
from .coverage import Coverage
from .dense import DenseCalls
from .evaluation import estimate_in
from .foreign import holds_results, other_cache, watched
from .joining import Joining
from .live import Estimate, live_step
from .recorder import UNCACHED_ONCE
from .regional import RegionalCalls
from .state import RunState
from .timing import Timestamp, timestamp
from .tools import Tools

SEVERAL_THREADS = "another node calls the network in several threads"

SEVERAL_DEVICES = "ComfyUI runs copies of the model on several devices in parallel (multi-GPU)"


class NetworkCalls:
    """Handles the evaluations and network calls of one run.

    Attributes:
        joining: finds the evaluations in which a conditioning joins the run.
    """

    def __init__(self, run: RunState, tools: Tools):
        self.joining = Joining()
        self._run = run
        self._adapter = tools.adapter
        self._other_code = tools.other_code
        self._view = tools.view
        self._graphs = tools.graphs
        coverage = Coverage(tools.adapter)
        captured = CapturedCalls(run.grid.n, tools, coverage, run.spread_over)
        self._dense = DenseCalls(run, tools, coverage, captured)
        self._regional = RegionalCalls(run, tools, coverage, captured)
        self._estimate: Estimate | None = None  # the latest, for the live view
        self._networks: list[nn.Module] = []  # the networks that were called in this run
        self._ran = False  # whether a network has run in this evaluation
        self._is_visible = False  # whether a watched network has been seen to run
        self._thread = 0  # id of the thread that samples
        self._is_in_threads = False  # whether other threads have called a network

    def evaluate(
        self,
        x: Tensor,
        level: Tensor,
        denoise: Callable[[], Tensor],
        is_parallel: bool = False,
        calls_are_plain: bool = True,
    ) -> Tensor:
        """Run one guided evaluation. Returns the denoised estimate, (b, c, H, W).

        Args:
            x: input, (b, c, H, W).
            level: noise level, (b,) on the device.
            denoise: calls the network and returns the denoised estimate, (b, c, H, W).
            is_parallel: whether ComfyUI calls copies of the model on other devices, each in its own thread.
            calls_are_plain: whether all network calls of this evaluation use the same weights, and no code of
                another pack runs between these calls. Only then can a call be launched before ComfyUI
                requests it (graphs/overlap.py).
        """
        run, self._thread = self._run, threading.get_ident()
        if self._view is None and not run.any_regional and run.known_sigma is None:
            return self._plain(level.flatten()[:1].clone(), denoise)
        if (is_parallel or self._is_in_threads) and not run.is_dense:
            self._refuse_threads(SEVERAL_DEVICES if is_parallel else SEVERAL_THREADS)
        sigma = run.sigma_of(level.flatten()[:1])
        if self._graphs is not None and (trouble := self._graphs.begin_evaluation(calls_are_plain)):
            run.go_dense(trouble)
        self._begin(sigma, timestamp(x.device))
        if self._view is not None:
            self._view.step(live_step(run, lambda: self._estimate))
        self._ran, plan = False, run.evaluation.plan
        try:
            denoised = denoise()
        except BaseException:
            run.evaluation = None
            raise
        if self._ran:
            self.joining.keep(sigma)
            kept = denoised.clone() if isinstance(denoised, Tensor) else denoised
            run.end_evaluation(x, kept, sigma)  # a callback may write into the estimate that it gets
            self._show(plan.index, kept)
        else:
            run.skip_evaluation()
        return denoised

    def call(self, forward: Forward) -> Tensor:
        """Run one call of ComfyUI's model, for one or more branches. Returns (bb, c, H, W)."""
        # The state of a run belongs to one thread. Dynamo cannot trace the id of a thread.
        if not torch.compiler.is_compiling() and threading.get_ident() != self._thread:
            self._is_in_threads = self._ran = True
            return forward()
        if self._graphs is not None:
            self._graphs.begin_call(forward.model)
        evaluation = self._run.evaluation
        if evaluation is None or not self._is_ours(forward):
            return self._unchanged(forward)
        self._ran, network = True, forward.network
        variant = (self._number_of(network), forward.replaced_blocks)
        call = Call(network, evaluation.branches(forward.conditionings, variant), forward)
        if evaluation.active_idx is not None:
            output = self._regional.run(call)
            if output is not None:
                return output
        return self._dense.run(call)

    def _begin(self, sigma: float, now: Timestamp) -> None:
        """Start an evaluation; its calls are all dense if a conditioning joins the run in it."""
        run = self._run
        run.begin_evaluation(sigma, now)
        if run.evaluation.active_idx is not None and self.joining.is_at(sigma):
            run.evaluation.active_idx = None
            run.recorder.count_uncached()
            run.warn(UNCACHED_ONCE)

    def _show(self, index: int, result: object) -> None:
        """Keep the result of a step's evaluation for the live view, if there is one."""
        if self._view is None:
            return
        latent = estimate_in(result, self._run.batch, self._run.grid.size)
        self._estimate = None if latent is None else Estimate(index, latent)

    def _plain(self, level: Tensor, denoise: Callable[[], Tensor]) -> Tensor:
        """An evaluation of a run without regional steps, at a noise level (1,). Returns (b, c, H, W)."""
        self._ran, now = False, timestamp(level.device)
        denoised = denoise()
        if self._ran:
            self._run.record_plain_evaluation(level, now)
        else:
            self._run.steps.next()  # it counts as an evaluation of the sampler
            self._run.skip_evaluation()
        return denoised

    def _unchanged(self, forward: Forward) -> Tensor:
        """Run a call of all tokens, of which nothing is kept. Returns (bb, c, H, W)."""
        network = forward.network
        if forward.is_compiled or not self._is_wrapped(forward) or not self._adapter.matches(network):
            self._ran = True
            return forward()
        with watched(self._adapter.main_blocks(network)) as ran:
            output = forward()
        self._is_visible |= bool(ran)
        self._ran |= bool(ran) or not self._is_visible
        return output

    def _is_wrapped(self, forward: Forward) -> bool:
        """Whether another node's code runs between this pack's code and the network."""
        return forward.wraps_inside or (self._adapter.runs_wrappers and forward.wraps_network)

    def end(self) -> None:
        """Finish the run's use of CUDA graphs after the last evaluation, and log a warning if they failed."""
        if self._graphs is not None and (trouble := self._graphs.end()):
            self._run.warn(trouble)

    def _is_ours(self, forward: Forward) -> bool:
        """Whether RAS can handle this call. If it cannot, the run continues dense, with a warning."""
        if not self._run.is_regional:
            return False
        if (obstacle := self._obstacle(forward)) is not None:
            self._run.go_dense(obstacle)
        return obstacle is None

    def _obstacle(self, forward: Forward) -> str | None:
        run, x = self._run, forward.inputs["x"]
        if self._adapter.runs_wrappers and forward.wraps_network:
            return "another node (such as EasyCache) wraps the network and would cache partial outputs"
        if forward.wraps_inside:
            return "another node's code sees the network's output before this pack has completed it"
        n_rows = run.batch * len(forward.conditionings or ())
        if not n_rows or x.shape[0] != n_rows or tuple(x.shape[2:]) != run.grid.size:
            return (
                f"a model call has input of shape {tuple(x.shape)}, not the whole latent {run.grid.size} for "
                "each conditioning (area conditioning, tiling and context windows do this)"
            )
        network = forward.network
        if not self._adapter.matches(network) or self._adapter.unsupported(network):
            return f"the guider also calls a network of another family ({type(network).__name__})"
        if holds_results(forward.other_attention):
            return "another node's attention function keeps results from one step to the next"
        refusal = self._adapter.refusal(network, forward.inputs, forward.options)
        refusal = refusal or other_cache(network, self._adapter.blocks(network), forward.replacements)
        return refusal or self._other_code.obstacle(network, run.evaluation.active_idx is not None)

    def _number_of(self, network: nn.Module) -> int:
        """The network's number in this run. A guider may call two models. The network's number is part of
        each branch's name, so that the branches of the two networks have different names.
        """
        for number, each in enumerate(self._networks):
            if each is network:
                return number
        self._networks.append(network)
        return len(self._networks) - 1

    def _refuse_threads(self, reason: str) -> None:
        """Continue the run dense, because networks are called in parallel threads."""
        if self._graphs is not None:
            self._graphs.refuse("the run is dense")
        self._run.go_dense(reason)
