"""Keys and attribute names in ComfyUI's objects, both ComfyUI's own and those of this pack."""

from __future__ import annotations

KEY = "multirate_ras"
"""Key of this pack's wrappers and callbacks."""

RUN = "multirate_ras_run"
"""Key of a run's state in transformer options."""

GRAPHS = "_multirate_ras_graphs"
"""Attribute of ComfyUI's model that keeps captured calls: they read its weights and must not outlive it."""

TRANSFORMER_OPTIONS = "transformer_options"
ATTENTION = "optimized_attention_override"
"""Key of an attention override in transformer options."""

UUIDS = "uuids"
"""Key, in transformer options, of the ids of the conditionings that a call evaluates."""

PATCHES_REPLACE, REPLACED_BLOCKS = "patches_replace", "dit"
"""Key, in transformer options, of blocks that other patches replace."""

WRAPPERS = "wrappers"
COMPILES = "torch.compile"
"""Key of wrappers that temporarily replace the network's modules by compiled ones."""

KEEPS_NEGATIVE = "disable_cfg1_optimization"
"""Key of the model option to evaluate negative conditionings at cfg 1 too."""

MASK_FUNCTION = "denoise_mask_function"
"""Key of the model option that changes the mask of inpainting at each evaluation."""

NEGATIVE = "negative"
TEXT = "cross_attn"
"""Key of the encoded text in a conditioning."""

REFERENCE_IMAGES = "reference_latents"
"""Key of reference images, latents (1, c, H, W), in a conditioning."""

INPUTS = "model_conds"
"""Key, in a conditioning, of the network's inputs: objects with a tensor `cond`, by name."""

MULTIGPU, MULTIGPU_CLONES = "multigpu", "multigpu_clones"
"""Keys of a model's copies on other devices: in its additional models, and in a run's model options. Each
copy is called in its own thread."""

BETWEEN_CALLS = ("model_function_wrapper", "sampler_calc_cond_batch_function", MULTIGPU_CLONES)
"""Keys of model options that let other code, or several threads, make the calls of an evaluation."""

PATCHED = ("patches", PATCHES_REPLACE)
"""Keys, in transformer options, of other nodes' patches of the network."""

NOT_READ = (UUIDS, "sigmas", "sample_sigmas", WRAPPERS, "callbacks", *PATCHED, ATTENTION, RUN)
"""Keys, in transformer options, that do not change what a captured call computes: networks also get the
sigmas as inputs, and a call with patches or other nodes' wrappers is not captured."""
