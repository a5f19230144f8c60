"""The CUDA graphs of one network during one run: decides when to capture a call and when to replay it."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import NotResident, RegionalAbort
from ..kv.formats import FORMATS
from ..kv.store import Branch
from .capture import Attempt, CapturedCall, Forward, RegionalCall, Slots
from .eligibility import form_of, signature, without_residuals
from .leases import Leases
from .network_identity import Network
from .overlap import Overlap
from .residency import Residency
from .sightings import Sightings
from .store import Buffers, GraphEnvironment, GraphStore

logger = logging.getLogger(__name__)

NO_MEMORY = "there is not enough memory"


class NetworkGraphs:
    """One network's CUDA graphs during one run.

    Args:
        store: keeps the graphs between runs.
        environment: access to ComfyUI (store.py).
        logged: messages that this run has logged, for any of its networks.

    Attributes:
        network: the network's description at the run's first call; None before.
        obstacle: why nothing, or nothing more, is captured and replayed; None if nothing prevents it.
        captured: how many of this network's calls this run has captured.
        replayed: how many of this network's calls this run has replayed.
    """

    def __init__(
        self,
        store: GraphStore,
        environment: GraphEnvironment | None = None,
        logged: set[str] | None = None,
    ):
        store.runs += 1
        self._store = store
        self._environment = environment or GraphEnvironment(lambda model: store)
        self._logged = set() if logged is None else logged
        self._leases = Leases(store)
        self._sightings = Sightings()
        self._overlap = Overlap()
        self.network: Network | None = None
        self.obstacle: str | None = None
        self.captured = self.replayed = 0

    @property
    def is_ready(self) -> bool:
        """Whether this run has inspected the network."""
        return self.network is not None

    @property
    def device(self) -> torch.device | None:
        """The device that the network runs on; None before its first call."""
        return self.network and self.network.device

    @property
    def residency(self) -> Residency | None:
        """The network's evictable weights; None if it has none, or before its first call."""
        return self.network and self.network.residency

    @property
    def reason(self) -> str | None:
        """Why calls of this network were not captured, or why their replays ended; None if neither."""
        return self.obstacle or self._sightings.postponed

    def prepare(self, network: Network) -> None:
        """Before the run's first call of the network, drop graphs captured with other weights or code."""
        self.network = network
        self._store.start_on(network)
        if obstacle := network.obstacle or self._store.capture_failure:
            self.refuse(obstacle)

    def refuse(self, reason: str) -> None:
        """Use no graphs of this network in this run; log the reason once."""
        if self.obstacle is None:
            self.obstacle = reason
            self._log_once("Multirate RAS: no CUDA graphs in this run: %s.", reason)

    def lend(self, branches: tuple[Branch, ...], inputs: dict[str, Any], format_name: str = "gpu") -> Slots:
        """K/V slots of an earlier run with the same K/V format, or none if no slots fit. After a dense call
        has filled these slots, that run's graphs can be replayed.
        """
        wanted = None if self.obstacle else signature(without_residuals(inputs))
        buffers = None if wanted is None else self._leases.lend(branches, wanted, format_name)
        if buffers is None:
            return {}
        self._overlap.forget(buffers.calls.values())
        for sequence in buffers.slots.values():
            sequence.forget()
        return dict(buffers.slots)

    def run(
        self,
        branches: tuple[Branch, ...],
        inputs: dict[str, Any],
        active_idx: Tensor,
        slots: Slots,
        forward: Forward,
        options: Hashable = (),
    ) -> Tensor | None:
        """Replay the call, capturing it first if due. Returns its output, or None if it must run eagerly.

        Raises:
            RowsAdvanced: the call failed after advancing its K/V rows; it must run again without these rows.
        """
        if self.obstacle is not None or not self._weights_are_resident():
            return None
        form = form_of(active_idx.shape[1], inputs, options)
        buffers = self._leases.find(branches, slots)
        if (captured := buffers.calls.get(form) if buffers else None) is None:
            call = RegionalCall(inputs, active_idx, slots, forward, branches, form)
            return self._capture(call, buffers) if self._is_due(call) else None
        if not captured.fits(inputs):
            return None
        captured.last_run = self._store.runs
        with torch.inference_mode(), self._weights_held(captured) as whole:
            if not whole:
                return None
            output = self._overlap.run(captured, inputs, active_idx, len(branches))
        self.replayed += 1
        return output

    def begin_evaluation(self, calls_are_plain: bool) -> str | None:
        """As `GraphSession.begin_evaluation`."""
        return self._overlap.begin_evaluation(calls_are_plain)

    def begin_call(self) -> None:
        """Count a call of this network that ComfyUI makes, captured or not."""
        self._overlap.begin_call()

    def settle(self) -> None:
        """Make the device complete early replays (see overlap.py) before it starts work enqueued later."""
        self._overlap.settle()

    def has_advanced(self, branches: tuple[Branch, ...]) -> bool:
        """Whether a call that was launched early (see overlap.py) has advanced K/V rows of these branches in
        vain, because ComfyUI did not request the call in the captured form.
        """
        lent = self._leases.of_any(branches)
        return any(self._overlap.has_advanced(buffers.calls.values()) for buffers in lent)

    def end(self) -> str | None:
        """As `GraphSession.end`."""
        return self._overlap.end()

    def close(self) -> None:
        """Return all K/V buffers to the store, at the end of the run."""
        self._overlap.forget()
        self._leases.release()

    def keep_only(self, format_name: str) -> None:
        """Memory is short: free all K/V buffers in formats other than the run's format, `format_name`."""
        self._store.buffers = [each for each in self._store.buffers if each.format_name == format_name]

    def drop(self) -> None:
        """Free all graphs and K/V buffers, because memory is short."""
        self.close()
        self._store.clear()
        self.obstacle = self.obstacle or NO_MEMORY

    def _log_once(self, message: str, reason: str) -> None:
        line = message % reason
        if line not in self._logged:
            logger.info(line)
        self._logged.add(line)

    def _weights_are_resident(self) -> bool:
        """Whether all evictable weights are resident; checks again if an eviction followed the last check."""
        weights = self.residency
        if weights is None or weights.is_proved:
            return True
        is_resident = weights.look()
        if obstacle := weights.obstacle:
            self.refuse(obstacle)
        return is_resident and obstacle is None

    def _weights_held(self, captured: CapturedCall) -> AbstractContextManager[bool]:
        return nullcontext(True) if self.residency is None else self.residency.held(captured.layers)

    def _weights_captured(self) -> AbstractContextManager[None]:
        return nullcontext() if self.residency is None else self.residency.captured()

    def _is_due(self, call: RegionalCall) -> bool:
        """Count an occurrence of this call. Returns whether to capture the call now."""
        if not self._sightings.is_due(call.key):
            return False
        if signature(call.inputs) is None:
            self.refuse("the network gets inputs of an unknown type")
            return False
        if momentary := self._environment.obstacle():
            self._sightings.postpone(call.key, momentary)
            self._log_once("Multirate RAS: a call runs without a CUDA graph for now: %s.", momentary)
            return False
        return self._store.make_room()

    def _capture(self, call: RegionalCall, buffers: Buffers | None) -> Tensor | None:
        """Capture a call. Returns the call's output, or None if the call must run eagerly."""
        if buffers is None:
            buffers = Buffers(signature(without_residuals(call.inputs)), dict(call.slots), is_lent=True)
        attempt = Attempt(FORMATS[buffers.format_name].advances)
        captured = self._try_capture(replace(call, slots=buffers.slots), attempt)
        if captured and not buffers.match(call.slots):
            self.refuse("the K/V buffers were replaced during the capture")
            captured = None
        if captured is None:
            return attempt.take_output(buffers.slots, call.slots)
        self.captured += 1
        self._sightings.succeed(call.key)
        captured.last_run = self._store.runs
        captured.layers = frozenset() if self.residency is None else self.residency.read
        buffers.calls[call.form] = captured
        self._overlap.add(captured, len(call.branches))
        self._leases.add(call.branches, buffers)
        return captured.output

    def _try_capture(self, call: RegionalCall, attempt: Attempt) -> CapturedCall | None:
        try:
            with torch.inference_mode():
                return self._store.capture(call, attempt, self._overlap.busy, self._weights_captured)
        except self._environment.interrupts:
            raise
        except NotResident:
            return None
        except Exception as error:  # a driver, a library or another pack may raise any error
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        name = "" if isinstance(error, RegionalAbort) else f"{type(error).__name__}: "
        self.refuse(f"capture failed ({name}{str(error)[:200]})")
        self.close()
        self._store.buffers = []
        self._store.capture_failure = self.obstacle  # no capture until the network changes, to save time
