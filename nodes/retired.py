"""Inputs that the nodes with RAS settings no longer have; graphs that still pass them are refused.

ComfyUI ignores unknown inputs: a prompt in API format with method = paper would silently run as multirate. If
ComfyUI can pass unknown inputs to a node (`accept_all_inputs`), the prompt is refused when it is queued; in
older versions, when the node is executed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..ras_core.errors import RASError, quoted
from .checks import CheckedNode

HARMLESS = {"method": "multirate", "budget": "fixed", "ratio_end": 0.0, "error_reset_steps": ""}
"""Retired inputs of the paper's method that had an effect, each with its neutral value. The others (metric,
high_ratio, starvation_scale) had no effect without method = paper."""

IN_STEPS = {"start_step": None, "end_step": 0}
"""Retired inputs that counted steps, each with its neutral value; None: there is none."""

HIDDEN = (io.Hidden.dynprompt, io.Hidden.unique_id)
"""Hidden inputs that `refuse_in_prompt` reads; for a node's schema."""

ACCEPT_ALL = (
    {"accept_all_inputs": True} if "accept_all_inputs" in inspect.signature(io.Schema).parameters else {}
)
"""For a node's schema: pass inputs that the schema does not list to `RefusesRetired.validate_inputs`."""


class RefusesRetired(CheckedNode):
    """Base of the nodes that had the retired inputs."""

    @classmethod
    def validate_inputs(cls, **inputs) -> bool:
        """Refuse a prompt when it is queued."""
        refuse_retired(inputs)
        return super().validate_inputs(**inputs)

    @classmethod
    def refuse_in_prompt(cls) -> None:
        """Refuse retired inputs when the node runs: in every version of ComfyUI, also for linked values."""
        if cls.hidden is not None and cls.hidden.dynprompt is not None:
            refuse_retired(cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"])


def refuse_retired(inputs: Mapping[str, Any]) -> None:
    """Refuse retired inputs with values other than the neutral ones.

    Raises:
        RASError: the message names the inputs and their replacement.
    """
    _refuse(
        _given(inputs, HARMLESS),
        "RASPaperSettings connected to the input paper, or nothing for multirate.",
        "and connect RASPaperSettings for the paper's method",
    )
    _refuse(
        _given(inputs, IN_STEPS),
        "start_percent and end_percent, shares of the run's steps: 0.2 for 6 of 28 steps.",
        "and set start_percent or end_percent, or a speed other than custom",
    )


def _given(inputs: Mapping[str, Any], neutral: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: inputs.get(name) for name in neutral}
    return {name: value for name, value in found.items() if value not in (None, neutral[name])}


def _refuse(lost: Mapping[str, Any], expected: str, replacement: str) -> None:
    if not lost:
        return
    values = ", ".join(f"{name} = {quoted(value)}" for name, value in lost.items())
    raise RASError(
        f"the graph passes {values}, which this node no longer has.",
        expected,
        f"remove {', '.join(lost)}, {replacement}.",
    )
