"""Keys and attributes by which ComfyUI and this pack know each other's things."""

from __future__ import annotations

KEY = "multirate_ras"
"""Of this pack's wrappers and callbacks."""

RUN = "multirate_ras_run"
"""Of a run's state, in transformer options."""

GRAPHS = "_multirate_ras_graphs"
"""Attribute of ComfyUI's model that keeps captured calls: they read its weights and must not outlive it."""

TRANSFORMER_OPTIONS = "transformer_options"
ATTENTION = "optimized_attention_override"
"""Of an attention function that ComfyUI calls instead of its own, in transformer options."""

UUIDS = "uuids"
"""Of the conditionings that a call evaluates, in transformer options."""

PATCHES_REPLACE, REPLACED_BLOCKS = "patches_replace", "dit"
"""Of blocks that other patches replace, in transformer options."""

WRAPPERS = "wrappers"
COMPILES = "torch.compile"
"""Of wrappers that put compiled modules in the place of the network's own, and back."""

KEEPS_NEGATIVE = "disable_cfg1_optimization"
"""Of the model option to evaluate negative conditionings at cfg 1 too."""

NEGATIVE = "negative"
TEXT = "cross_attn"
"""Of the encoded text in a conditioning."""

INPUTS = "model_conds"
"""Of what the network gets in a conditioning: objects with a tensor, `cond`, by name."""

MULTIGPU, MULTIGPU_CLONES = "multigpu", "multigpu_clones"
"""Of a model's copies on other devices: among its additional models, and in the model options of a run."""
