"""Run the reference code. The reference is microsoft/RAS, which patches pipelines of diffusers.

The networks have the layer sizes of the real models, and random weights. None of the reference's code is
copied: this module imports the user's checkout of microsoft/RAS, and the functions in it patch the pipeline.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ras_core.errors import RASError
from ..common.timing import Clock
from ..common.weights import draw_weights
from ..speed.cases import RESETS, START_STEP, Variant
from .job import Job, reference_arguments

DIFFUSERS = "0.35.2"
"""The version of diffusers with which this module was tested."""

# For each family: names of the transformer class and the pipeline class in diffusers, then names of the
# module and the function of the reference that patch the pipeline.
FAMILIES = {
    "sd3": (
        "SD3Transformer2DModel", "StableDiffusion3Pipeline",
        "ras.utils.stable_diffusion_3.update_pipeline_sd3", "update_sd3_pipeline",
    ),
    "lumina_next": (  # the reference still calls this pipeline class LuminaText2ImgPipeline
        "LuminaNextDiT2DModel", "LuminaPipeline",
        "ras.utils.lumina_next_t2i.update_pipeline_lumina", "update_lumina_pipeline",
    ),
}  # fmt: skip


def load_reference(checkout: Path) -> None:
    """Make diffusers and the reference importable.

    Raises:
        RASError: the checkout or diffusers is missing.
    """
    os.environ["USE_FLAX"] = "NO"  # else diffusers would import JAX, whose version may not fit diffusers
    source = checkout / "src"
    if not (source / "ras" / "utils" / "ras_manager.py").is_file():
        raise RASError(
            f"--reference {checkout} has no src/ras/utils/ras_manager.py.",
            "a folder with a checkout of github.com/microsoft/RAS.",
            "git clone that repository, and pass its folder to --reference.",
        )
    sys.path.insert(0, str(source.resolve()))
    try:
        import_module("diffusers")
    except ImportError as error:
        raise RASError(
            f"the reference needs diffusers, which cannot be imported ({error}).",
            f"diffusers {DIFFUSERS} in the Python that runs this program.",
            f"pip install --no-deps diffusers=={DIFFUSERS}",
        ) from error


class Reference:
    """A diffusers pipeline whose network is on the job's device. It samples the variants of a job, with or
    without the reference's patches. Call `load_reference` first.

    Args:
        job: the case.
    """

    def __init__(self, job: Job):
        self.job = job
        self.device, self.dtype = torch.device(job.device), getattr(torch, job.dtype)
        diffusers = import_module("diffusers")
        transformer, pipeline, module, function = FAMILIES[job.family]
        self._patch: Callable = getattr(import_module(module), function)
        self.network = build_network(getattr(diffusers, transformer), job, self.device, self.dtype)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if job.family == "sd3" else 1.0)
        parts = {"vae": None, "text_encoder": None, "tokenizer": None}
        if job.family == "sd3":
            parts |= {f"{name}_{i}": None for name in ("text_encoder", "tokenizer") for i in (2, 3)}
        self.pipeline = getattr(diffusers, pipeline)(transformer=self.network, scheduler=scheduler, **parts)
        self.pipeline.set_progress_bar_config(disable=True)
        self._scheduler = scheduler
        self._processors = {name: m.processor for name, m in self._attentions()}
        self._prompt = self._embeddings()

    def run(self, variant: Variant, clock: Clock) -> Callable[[int], None]:
        """A function that samples once with a seed. `clock` takes a timestamp at each network call and after
        the last step.
        """

        def sample(seed: int) -> None:
            self.prepare(variant)
            hook = self.network.register_forward_pre_hook(lambda *_: clock.mark())
            generator = torch.Generator(self.device).manual_seed(seed)
            clock.restart()
            try:
                self.pipeline(
                    num_inference_steps=self.job.steps, height=self.job.pixels, width=self.job.pixels,
                    generator=generator, output_type="latent", **self._prompt,
                )  # fmt: skip
                clock.mark()
            finally:
                hook.remove()

        return sample

    def prepare(self, variant: Variant) -> None:
        """Prepare the pipeline for a variant by applying the reference's patches. A dense variant without an
        `option` is diffusers' own dense run, and gets no patches.
        """
        self.restore()
        if variant.ratio >= 1 and not variant.option:
            return
        manager = _manager()
        manager.set_parameters(self._arguments(variant))
        manager.reset_cache()
        self._patch(self.pipeline)

    def restore(self) -> None:
        """Remove the reference's patches, and so free the keys and values that they cache."""
        self.network.__dict__.pop("forward", None)
        self.pipeline.scheduler = self._scheduler
        for name, module in self._attentions():
            module.set_processor(self._processors[name])

    def counts(self, variant: Variant) -> list[int]:
        """Number of active tokens of each step, as the reference plans them; empty for dense runs."""
        if variant.ratio >= 1:
            return []
        n_tokens = (self.job.pixels // 16) ** 2
        manager = _manager()
        manager.set_parameters(self._arguments(variant))
        return [n_tokens - skipped for skipped in manager.skip_token_num_list]

    def _arguments(self, variant: Variant) -> Any:
        given, sys.argv = sys.argv, ["ras", *reference_arguments(variant, self.job, START_STEP, RESETS)]
        try:
            return import_module("ras.utils.ras_argparser").parse_args()
        finally:
            sys.argv = given

    def _attentions(self) -> list[tuple[str, nn.Module]]:
        return [(name, m) for name, m in self.network.named_modules() if hasattr(m, "set_processor")]

    def _embeddings(self) -> dict[str, Tensor]:
        rows, width, pooled = self.job.text
        made = {"device": self.device, "dtype": self.dtype}
        prompt = {
            name: torch.randn(self.job.batch, rows, width, **made)
            for name in ("prompt_embeds", "negative_prompt_embeds")
        }
        if pooled:
            names = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
            return prompt | {name: torch.randn(self.job.batch, pooled, **made) for name in names}
        mask = torch.ones(self.job.batch, rows, dtype=torch.long, device=self.device)
        return prompt | {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}


def build_network(of_class: Any, job: Job, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A network with random weights, generated on the device."""
    with torch.device("meta"):
        network = of_class(**job.network)
    network = network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    draw_weights(network, 0)
    return network


def offer_flash_attention() -> None:
    """If the package flash-attn is missing, register a module named flash_attn in its place. The module's
    attention function calls PyTorch, which contains a copy of flash-attn's kernel.
    """
    try:
        import_module("flash_attn")
    except ImportError:
        module = types.ModuleType(
            "flash_attn", "PyTorch's attention, for code that imports the package flash-attn."
        )
        module.__spec__ = ModuleSpec("flash_attn", None)
        module.flash_attn_func = _flash_attention
        sys.modules["flash_attn"] = module


def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, **ignored: Any
) -> Tensor:
    """Attention of q, k and v: (b, rows, heads, channels), where k and v may have fewer heads than q. The
    result has the shape of q.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale, enable_gqa=True).transpose(1, 2)


def _manager() -> Any:
    return import_module("ras.utils").ras_manager.MANAGER
