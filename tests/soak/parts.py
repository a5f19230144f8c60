"""Creates ComfyUI's objects for a scenario (model, prompts, patches and guider), and samples with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.cldm.mmdit
import comfy.controlnet
import comfy.hooks
import comfy.ops
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_nodes
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_apg, nodes_cfg, nodes_easycache, nodes_pag, nodes_perpneg, nodes_slg
from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG
from comfy_extras.nodes_tcfg import TCFG
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.host.names import ATTENTION
from ras_pack.ras_core.host.outer_sample import Settings
from ras_pack.ras_core.host.patch import patch_model
from ras_pack.ras_core.host.speed import Speed
from ras_pack.ras_core.models import adapter_for
from support.families import FAMILIES, draw_weights
from support.sampling import CALC_COND_BATCH
from torch import Tensor

from .foreign import PassBy, RowAdder, RowChecker, StepCache, runs_twice
from .scenario import Scenario

LORA_LAYERS = ("qkv.weight", "fc1.weight", "w1.weight", "to_q.weight", "linear_1.weight")
SEED = 5


class Parts:
    """The objects of one scenario. All runs of the scenario use the same network.

    Attributes:
        base: the model without any patch, a ModelPatcher.
        noise: the noise of the runs, (b, c, H, W).
        latent: the latent image of the runs, (b, c, H, W).
        lora: a LoRA, as weight patches by the names of the weights.
        layer, layer_forward: name of a linear layer in the network's second main block, and its forward
            function.
    """

    def __init__(self, scenario: Scenario):
        self._scenario = scenario
        self._family = FAMILIES[scenario.family]
        self.base = self._built(0)
        self._second = self._built(7) if scenario.guidance == "dual_model" else None
        self.noise = self._family.noise(*scenario.size, batch=scenario.batch)
        image = self._family.noise(*scenario.size, batch=scenario.batch, seed=21)
        self.latent = image if scenario.latent == "image" else torch.zeros_like(self.noise)
        # The LoRA is computed now, while the network has no patches: the weights of a loaded model include
        # the patches.
        self.lora = _lora(self.base)
        self.layer, self.layer_forward = _middle_layer(self.network)
        self._rows = {name: kind(self.network) for name, kind in self._row_patches().items()}
        self.prompts = self._prompts()

    @property
    def network(self) -> torch.nn.Module:
        return self.base.model.diffusion_model

    def settings(self, values: dict[str, Any]) -> Settings | RASConfig:
        """The settings object of RAS for a scenario's `settings` or `other`."""
        if "speed" in values:
            return Speed(values["speed"])
        values = dict(values)
        if "paper" in values:
            values["paper"] = PaperSettings(**values["paper"])
        return RASConfig(**values, cuda_graphs="auto" if self._scenario.tape else "off")

    def model(self, values: dict[str, Any] | None) -> Any:
        """A clone of the model with the scenario's patches. RAS is among them if `values`, the settings of
        RAS, are not None.
        """
        model = self.base.clone()
        for name in self._scenario.patches:
            if name == "ras":
                model = model if values is None else self._with_ras(model, values)
            else:
                model = self._patched(model, name)
        return self._guided(model)

    @contextmanager
    def rows_learned(self) -> Iterator[None]:
        """In the body of the `with`, which must be a dense run, the row patches learn how many rows their
        block's output has in dense calls.
        """
        for patch in self._rows.values():
            patch.is_learning = True
        yield
        for patch in self._rows.values():
            patch.is_learning = False

    @torch.inference_mode()  # ComfyUI executes nodes in this mode
    def sample(self, model: Any, noise: Tensor, callback: Callable | None = None) -> Iterator[Tensor]:
        """Sample with a guider of ComfyUI. Yields the latent of the run, (b, c, H, W), or two latents if the
        scenario splits the schedule into halves.
        """
        latent = self.latent if noise.shape == self.latent.shape else torch.zeros_like(noise)
        for i, sigmas in enumerate(self._schedules(model)):
            torch.manual_seed(SEED)  # some samplers draw from the global generator
            with self._calls_grouped():
                latent = self.guider(model).sample(
                    torch.zeros_like(noise) if i else noise, latent,
                    comfy.samplers.sampler_object(self._scenario.sampler), sigmas,
                    denoise_mask=self._mask(), callback=callback, disable_pbar=True, seed=SEED,
                )  # fmt: skip
            yield latent

    def other_noise(self, what: str) -> Tensor:
        """Noise for the scenario's `detour`, (b, c, H, W). It differs from the usual noise in its size or
        batch.
        """
        height, width = self._scenario.size
        if what == "size":
            return self._family.noise(width + 2, height, batch=self._scenario.batch)
        return self._family.noise(height, width, batch=self._scenario.batch + 1)

    def guider(self, model: Any) -> Any:
        """A new guider for this model, created as ComfyUI's node for the scenario's `guidance` creates it."""
        scenario, (positive, negative, third) = self._scenario, self.prompts
        if scenario.guidance == "basic":
            guider = custom_nodes.Guider_Basic(model)
            guider.set_conds(positive)
        elif scenario.guidance == "perp_neg":
            guider = nodes_perpneg.Guider_PerpNeg(model)
            guider.set_conds(positive, negative, third)
            guider.set_cfg(scenario.cfg, 0.7)
        elif scenario.guidance == "dual_cfg":
            guider = custom_nodes.Guider_DualCFG(model)
            guider.set_conds(positive, third, negative)
            guider.set_cfg(scenario.cfg, 2.0)
        else:
            dual = getattr(custom_nodes, "Guider_DualModel", None) if self._second is not None else None
            guider = dual(model, self._second) if dual else comfy.samplers.CFGGuider(model)
            guider.set_conds(positive, negative)
            guider.set_cfg(scenario.cfg)
        return guider

    def _built(self, seed: int) -> Any:
        return self._family.build(seed, dtype=getattr(torch, self._scenario.dtype))

    def _schedules(self, model: Any) -> list[Tensor]:
        scenario = self._scenario
        sampler = comfy.samplers.KSampler(
            model, scenario.steps, model.load_device, scenario.sampler, scenario.scheduler, scenario.denoise,
            model.model_options,
        )  # fmt: skip
        sigmas = sampler.sigmas
        if not scenario.halves or len(sigmas) < 3:
            return [sigmas]
        middle = len(sigmas) // 2
        return [sigmas[: middle + 1], sigmas[middle:]]

    @contextmanager
    def _calls_grouped(self) -> Iterator[None]:
        """In the body of the `with`, all prompts of an evaluation are evaluated in one call, or each in a
        call of its own, or the evaluations alternate between both. ComfyUI also decides this for each
        evaluation, depending on the free memory.
        """
        number = itertools.count()

        def one_by_one(model: Any, conds: list, *args: Any) -> list:
            if self._scenario.calls == "switching" and next(number) % 5 < 3:
                return CALC_COND_BATCH(model, conds, *args)
            return [CALC_COND_BATCH(model, [cond], *args)[0] for cond in conds]

        if self._scenario.calls != "together":
            comfy.samplers._calc_cond_batch = one_by_one
        try:
            yield
        finally:
            comfy.samplers._calc_cond_batch = CALC_COND_BATCH

    def _mask(self) -> Tensor | None:
        if self._scenario.mask is None:
            return None
        mask = torch.ones(1, 1, *self.noise.shape[2:])
        if self._scenario.mask != "whole":
            mask[..., : mask.shape[-1] // 2] = 0.0 if self._scenario.mask == "part" else 0.5
        return mask

    def _with_ras(self, model: Any, values: dict[str, Any]) -> Any:
        height, width = self.noise.shape[2:]
        priority = {
            "half": torch.cat([torch.zeros(height, width // 2), torch.ones(height, width - width // 2)], 1),
            "noise": torch.rand(height, width, generator=torch.Generator().manual_seed(2)),
            "zero": torch.zeros(height, width),
        }.get(self._scenario.priority)
        return patch_model(model, self.settings(values), None if priority is None else priority[None])

    def _patched(self, model: Any, name: str) -> Any:
        if name in self._rows or name == "control":
            return model  # these patches are already on the network, or on the prompts
        return _PATCHES[name](model.clone(), self)

    def _guided(self, model: Any) -> Any:
        add = _GUIDANCE.get(self._scenario.guidance)
        return model if add is None else add(model)

    def _row_patches(self) -> dict[str, type]:
        kinds = {"row_adder": RowAdder, "row_checker": RowChecker}
        return {name: kind for name, kind in kinds.items() if name in self._scenario.patches}

    def _prompts(self) -> tuple[list, list, list]:
        """The positive prompt, the negative prompt, and a third prompt that some guiders need."""
        make, kind = self._family.conditioning, self._scenario.prompts
        positive, negative = make(1, 11 if kind == "long" else 7), make(2, 5 if kind == "long" else 7)
        if kind in ("two", "masked", "area", "late", "early"):
            more = make(3)
            more[0][1].update(self._of_second(kind))
            positive = positive + more
        if kind == "hooked":
            positive = comfy.hooks.set_hooks_for_conditioning(positive, self._lora_hook())
        if "control" in self._scenario.patches and self._scenario.family.startswith("sd3"):
            positive, negative = (self._controlled(prompt) for prompt in (positive, negative))
        return positive, negative, make(4)

    def _of_second(self, kind: str) -> dict[str, Any]:
        height, width = self.noise.shape[2:]
        if kind == "masked":
            mask = torch.zeros(1, height, width)
            mask[:, :, width // 2 :] = 1.0
            return {"mask": mask, "mask_strength": 1.0}
        if kind == "area":
            return {"area": (height // 2, width // 2, 0, 0), "strength": 1.0}
        ranges = {"late": (0.5, 1.0), "early": (0.0, 0.4)}
        return dict(zip(("start_percent", "end_percent"), ranges.get(kind, (0.0, 1.0)), strict=True))

    def _lora_hook(self) -> comfy.hooks.HookGroup:
        name, weight = next(iter(_lora_weights(self.base).items()))
        patch = {name.removesuffix(".weight") + ".diff": torch.full_like(weight, 0.05)}
        return comfy.hooks.create_hook_lora(patch, 1.0, 1.0)

    def _controlled(self, prompt: list) -> list:
        config = self._family.unet_config()
        kept = {name: config[name] for name in config if name not in ("num_blocks", "out_channels")}
        network = comfy.cldm.mmdit.ControlNet(num_blocks=2, operations=comfy.ops.disable_weight_init, **kept)
        draw_weights(network, 8)
        control = comfy.controlnet.ControlNet(network, compression_ratio=1, load_device=torch.device("cpu"))
        net = control.set_cond_hint(self._family.noise(*self.noise.shape[2:], seed=12), 0.7, (0.0, 0.6))
        added = {"control": net, "control_apply_to_uncond": False}
        return [[text, {**extras, **added}] for text, extras in prompt]


def _lora_weights(model: Any) -> dict[str, Tensor]:
    return {name: each for name, each in model.model.state_dict().items() if name.endswith(LORA_LAYERS)}


def _lora(model: Any) -> dict[str, tuple[Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return {
        name: (0.2 * torch.randn(weight.shape, generator=generator) * weight.float().std(),)
        for name, weight in _lora_weights(model).items()
    }


def _middle_layer(network: torch.nn.Module) -> tuple[str, Callable[[Tensor], Tensor]]:
    inner = set(adapter_for(network).main_blocks(network)[1].modules())
    linear = [n for n, each in network.named_modules() if each in inner and isinstance(each, torch.nn.Linear)]
    return linear[-1], network.get_submodule(linear[-1]).forward


def _with_lora(model: Any, parts: Parts) -> Any:
    model.add_patches(parts.lora, 1.0)
    return model


def _with_attention(model: Any, parts: Parts) -> Any:
    model.model_options["transformer_options"][ATTENTION] = _attend
    return model


def _attend(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return function(*args, **kwargs)


def _with_block(model: Any, parts: Parts) -> Any:
    """Replace a block by a function that only calls the block, as packs do that read a block's output."""
    model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 1)
    return model


def _with_object(model: Any, parts: Parts) -> Any:
    """Replace the forward function of a linear layer."""
    model.add_object_patch(f"diffusion_model.{parts.layer}.forward", partial(_scaled, parts.layer_forward))
    return model


def _scaled(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return forward(x) * 1.1


def _with_wrapper(wrapper: type) -> Callable:
    def add(model: Any, parts: Parts) -> Any:
        model.set_model_unet_function_wrapper(wrapper())
        return model

    return add


def _with_cache(node: Any, threshold: float) -> Callable:
    return lambda model, parts: node.execute(model, threshold, 0.15, 0.95, False)[0]


def _with_post_cfg(model: Any, parts: Parts) -> Any:
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.99)
    return model


def _with_two_passes(model: Any, parts: Parts) -> Any:
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "two_passes", runs_twice)
    return model


_PATCHES: dict[str, Callable[[Any, Parts], Any]] = {
    "lora": _with_lora,
    "shift": lambda model, parts: ModelSamplingSD3().patch(model, 2.0)[0],
    "attention": _with_attention,
    "block": _with_block,
    "object": _with_object,
    "unet_wrapper": _with_wrapper(PassBy),
    "step_cache": _with_wrapper(StepCache),
    "post_cfg": _with_post_cfg,
    "lazy_cache": _with_cache(nodes_easycache.LazyCacheNode, 1.5),
    "easy_cache": _with_cache(nodes_easycache.EasyCacheNode, 0.2),
    "two_passes": _with_two_passes,
}


def _node(kind: Any, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    """A function that applies ComfyUI's node class `kind`, with these arguments, to a model."""
    name = next(name for name in ("execute", "patch", "skip_guidance") if hasattr(kind, name))
    method = getattr(kind, name) if name == "execute" else getattr(kind(), name)
    return lambda model: method(model, *args, **kwargs)[0]


def _nag(model: Any) -> Any:
    try:
        from comfy_extras import nodes_nag
    except ImportError:  # an older ComfyUI does not have this node
        return model
    return nodes_nag.NAGuidance.execute(model, 5.0, 0.5, 1.5)[0]


_GUIDANCE: dict[str, Callable[[Any], Any]] = {
    "rescale": _node(RescaleCFG, 0.7),
    "cfg_zero": _node(nodes_cfg.CFGZeroStar),
    "apg": _node(nodes_apg.APG, 1.0, 5.0, 0.0),
    "tcfg": _node(TCFG),
    "nag": _nag,
    "slg": _node(
        nodes_slg.SkipLayerGuidanceDiT, scale=3.0, start_percent=0.01, end_percent=0.6, double_layers="1",
        single_layers="1",
    ),
    "pag": _node(nodes_pag.PerturbedAttentionGuidance, 2.0),
}  # fmt: skip
