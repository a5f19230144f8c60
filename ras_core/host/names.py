"""Keys and attribute names in ComfyUI's objects, both ComfyUI's own and those of this pack."""

from __future__ import annotations

KEY = "multirate_ras"
"""Key of this pack's wrappers and callbacks."""

RUN = "multirate_ras_run"
"""Key of a run's state in transformer options."""

GRAPHS = "_multirate_ras_graphs"
"""Attribute of ComfyUI's model that holds its CUDA graphs: they read the model's weights, so they must not
outlive the model."""

TRANSFORMER_OPTIONS = "transformer_options"
ATTENTION = "optimized_attention_override"
"""Key of an attention override in transformer options."""

UUIDS = "uuids"
"""Key, in transformer options, of the ids of the conditionings that a call evaluates."""

PATCHES_REPLACE, REPLACED_BLOCKS = "patches_replace", "dit"
"""Keys of the blocks that other nodes' patches replace. The first is a key of transformer options; its
value is a dict, in which the second is a key."""

ORIGINAL = "original_block"
"""Key of the function that runs a replaced block, in the second argument of the patch that replaces it."""

WRAPPERS = "wrappers"
COMPILES = "torch.compile"
"""Key of ComfyUI's torch.compile wrappers, which replace the network's modules by compiled modules during a
call."""

PREDICT_NOISE, LAZY_CACHE = "predict_noise", "lazycache"
"""Keys of the wrapper with which ComfyUI's node LazyCache answers whole evaluations. The first is a key of
the wrappers in transformer options; its value is a dict, in which the second is a key."""

KEEPS_NEGATIVE = "disable_cfg1_optimization"
"""Key of the model option with which ComfyUI evaluates negative conditionings at cfg 1 too."""

MASK_FUNCTION = "denoise_mask_function"
"""Key of the model option that changes the mask of inpainting at each evaluation."""

NEGATIVE = "negative"
START = "timestep_start"
"""Key, in a conditioning, of the noise level from which on it applies; it is there once sampling starts."""

TEXT = "cross_attn"
"""Key of the encoded text in a conditioning."""

REFERENCE_IMAGES = "reference_latents"
"""Key, in a conditioning, of the reference images: a list of latents, (1, c, H, W) each."""

REFERENCE_METHOD = "reference_latents_method"
"""Key of a conditioning whose value says how the network uses reference images."""

INPUTS = "model_conds"
"""Key, in a conditioning, of a dict of the network's inputs: objects whose attribute `cond` is a tensor."""

MULTIGPU, MULTIGPU_CLONES = "multigpu", "multigpu_clones"
"""Keys of a model's copies on other devices (multi-GPU). The first is a key of the additional models that
ComfyUI attaches to a ModelPatcher, the second a key of a run's model options. ComfyUI calls each copy in its
own thread."""

BETWEEN_CALLS = ("model_function_wrapper", "sampler_calc_cond_batch_function", MULTIGPU_CLONES)
"""Keys of model options. If a run has one of them, the network calls of an evaluation are made by another
node's code or by several threads."""

PATCHED = ("patches", PATCHES_REPLACE)
"""Keys, in transformer options, of other nodes' patches of the network."""

NOT_READ = (UUIDS, "sigmas", "sample_sigmas", WRAPPERS, "callbacks", *PATCHED, ATTENTION, RUN)
"""Keys of transformer options that do not change what a captured call computes, so they are not compared.
The sigmas need no comparison, because networks also get them as inputs, which every replay copies. Patches
and other nodes' wrappers need none, because calls with them are not captured."""
