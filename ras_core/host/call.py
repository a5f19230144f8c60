"""One call of ComfyUI's model: the class here implements the interface `run.call.Forward`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..graphs.eligibility import RESIDUAL, call_obstacle, frozen_options
from ..models import network_of
from ..models.base import REFERENCES
from ..run.call import Attend
from ..run.observation import Observations
from ..run.other_code import OWNERS, is_written_by
from ..run.torch_compile import CAN_SWITCH
from .names import (
    ATTENTION,
    COMPILES,
    NOT_READ,
    PATCHED,
    PATCHES_REPLACE,
    REPLACED_BLOCKS,
    UUIDS,
    WRAPPERS,
)
from .replaced_blocks import with_observed_blocks

ARGUMENTS = ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options")
"""Names of the arguments that ComfyUI passes to APPLY_MODEL by position."""


@dataclass  # not frozen: torch's Dynamo fails on the constructor of a frozen dataclass
class ModelCall:
    """One call of ComfyUI's model, with its arguments by name, so that each can be replaced.

    Attributes:
        executor: ComfyUI's executor, which calls the wrappers that follow this pack's, and then the model.
        inputs: APPLY_MODEL's arguments by name, except `control` and `transformer_options`.
        control: a ControlNet's residuals, or None.
        options: transformer options.
        observations: observes other nodes' patches that replace blocks; None to run them unobserved.
    """

    executor: Any
    inputs: dict[str, Any]
    control: dict | None
    options: dict
    observations: Observations | None = None

    @classmethod
    def of(cls, executor: Any, *args: Any, **kwargs: Any) -> ModelCall:
        """The call that has these arguments of APPLY_MODEL, passed by position or by name."""
        inputs = dict.fromkeys(ARGUMENTS)
        inputs |= dict(zip(ARGUMENTS[: len(args)], args, strict=True)) | kwargs
        control, options = inputs.pop("control"), inputs.pop("transformer_options")
        return cls(executor, inputs, control, options or {})

    def __call__(self, attend: Attend | None = None) -> Tensor:
        options = self.options if attend is None else {**self.options, ATTENTION: attend}
        if self.observations is not None and self.replaced_blocks:
            options = with_observed_blocks(options, self.observations)
        named = dict(self.inputs)
        first = [named.pop(name) for name in ARGUMENTS[:4]]
        return self.executor(*first, self.control, options, **named)

    def with_control(self, control: dict | None) -> ModelCall:
        return replace(self, control=control)

    def observed_by(self, observations: Observations) -> ModelCall:
        return replace(self, observations=observations)

    def on(self, inputs: dict[str, Any]) -> ModelCall:
        control = self.control and {
            name: [inputs[f"{RESIDUAL}{name}.{i}"] for i in range(len(residuals or ()))]
            for name, residuals in self.control.items()
        }
        own = {
            name: [inputs[f"{name}.{i}"] for i in range(len(each))]
            if isinstance(each, list)
            else inputs[name]
            for name, each in self.inputs.items()
        }
        return replace(self, inputs=own, control=control)

    @property
    def captured_inputs(self) -> dict[str, Any]:
        found = {name: each for name, each in self.inputs.items() if not isinstance(each, list)}
        for name, several in self.inputs.items():  # an argument that is a list has the reference images
            if isinstance(several, list):
                found |= {f"{name}.{i}": each for i, each in enumerate(several)}
        return found | self._residuals

    @property
    def references(self) -> tuple[Hashable, list[Tensor]]:
        images = list(self.inputs.get(REFERENCES) or ())
        plain = tuple((name, each) for name, each in self.inputs.items() if isinstance(each, (str, float)))
        hooks = getattr(getattr(self.model, "current_patcher", None), "current_hooks", None)
        strengths = tuple((id(hook.hook_ref), hook.strength) for hook in getattr(hooks, "hooks", ()))
        return (plain, strengths), images

    @property
    def model(self) -> Any:
        return self.executor.class_obj

    @property
    def network(self) -> nn.Module:
        return network_of(self.model.diffusion_model)

    @property
    def sampling(self) -> object:
        return getattr(self.model, "model_sampling", None)

    @property
    def conditionings(self) -> list | None:
        return self.options.get(UUIDS)

    @property
    def replaced_blocks(self) -> tuple[str, ...]:
        return tuple(sorted(map(str, self.options.get(PATCHES_REPLACE, {}).get(REPLACED_BLOCKS, {}))))

    @property
    def replacements(self) -> tuple[Any, ...]:
        return tuple(self.options.get(PATCHES_REPLACE, {}).get(REPLACED_BLOCKS, {}).values())

    @property
    def other_attention(self) -> Attend | None:
        return self.options.get(ATTENTION)

    @property
    def wraps_network(self) -> bool:
        return bool(self.options.get(WRAPPERS, {}).get("diffusion_model"))

    @property
    def is_compiled(self) -> bool:
        return bool(self._compilers)

    @property
    def wraps_inside(self) -> bool:
        inner = getattr(self.executor, "wrappers", [])[getattr(self.executor, "idx", 0) + 1 :]
        original = getattr(self.model, "_apply_model", None)
        return any(each not in self._compilers for each in inner) or not (
            original is None or is_written_by(original, OWNERS)
        )

    def graph_obstacle(self) -> str | None:
        is_patched = any(self.options.get(name) for name in PATCHED)
        return call_obstacle(self._is_wrapped, self.other_attention, is_patched)

    def frozen_options(self) -> Hashable:
        return frozen_options(self.options, NOT_READ)

    @property
    def _residuals(self) -> dict[str, Tensor | None]:
        """A ControlNet's residuals as named inputs."""
        return {
            f"{RESIDUAL}{name}.{i}": each
            for name, residuals in (self.control or {}).items()
            for i, each in enumerate(residuals or ())
        }

    @property
    def _compilers(self) -> Sequence[Callable]:
        """The wrappers of ComfyUI's torch.compile node around this call."""
        return self.options.get(WRAPPERS, {}).get("apply_model", {}).get(COMPILES, ())

    @property
    def _is_wrapped(self) -> bool:
        """Whether another node wraps the model's calls; ComfyUI's torch.compile wrapper does not count."""
        harmless = len(self._compilers) if CAN_SWITCH else 0
        return len(getattr(self.executor, "wrappers", ())) - harmless > 1
