"""Inputs that the nodes with RAS settings no longer have; workflows that still pass these inputs are refused.

By default, ComfyUI ignores inputs that a node does not have. So a prompt in API format with the retired
input method = "paper" would silently run with multirate. Newer versions of ComfyUI can pass such inputs to
the node's `validate_inputs` (see ACCEPT_ALL); there the prompt is refused when it is queued. In older
versions, it is refused when the node is executed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..ras_core.errors import RASError, quoted
from .checks import CheckedNode

HARMLESS = {"method": "multirate", "budget": "fixed", "ratio_end": 0.0, "error_reset_steps": ""}
"""Retired inputs of the paper's method that are refused, each with the value that is accepted because it
changes nothing. The retired inputs metric, high_ratio and starvation_scale are accepted with any value:
they had an effect only with method = "paper", and that value is refused already."""

IN_STEPS = {"start_step": None, "end_step": 0}
"""Retired inputs that were numbers of steps, each with the value that is accepted because it changes nothing.
None stands for no value: every value of start_step is refused."""

HIDDEN = (io.Hidden.dynprompt, io.Hidden.unique_id)
"""Hidden inputs of a node's schema, which `refuse_in_prompt` reads."""

ACCEPT_ALL = (
    {"accept_all_inputs": True} if "accept_all_inputs" in inspect.signature(io.Schema).parameters else {}
)
"""Arguments of a node's schema. They make ComfyUI pass all inputs of the prompt, including those that the
schema does not list, to `RefusesRetired.validate_inputs`. Empty in versions of ComfyUI that cannot do
this."""


class RefusesRetired(CheckedNode):
    """Base of the nodes that had the retired inputs."""

    @classmethod
    def validate_inputs(cls, **inputs) -> bool:
        """Refuse a prompt with retired inputs when it is queued."""
        refuse_retired(inputs)
        return super().validate_inputs(**inputs)

    @classmethod
    def refuse_in_prompt(cls) -> None:
        """Refuse retired inputs when the node runs. Unlike `validate_inputs`, this works in every version of
        ComfyUI, and also for inputs that are linked to another node's output.
        """
        if cls.hidden is not None and cls.hidden.dynprompt is not None:
            refuse_retired(cls.hidden.dynprompt.get_node(cls.hidden.unique_id)["inputs"])


def refuse_retired(inputs: Mapping[str, Any]) -> None:
    """Refuse retired inputs, except those whose value changes nothing (the values in HARMLESS and IN_STEPS).

    Raises:
        RASError: the message names the inputs and their replacements.
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
