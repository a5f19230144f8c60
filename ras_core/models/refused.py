"""Short reasons, for an error message, why some of ComfyUI's networks are not supported."""

from __future__ import annotations

from typing import Final

VIDEO: Final = "as it makes videos, whose K/V cache is too large ({} per prompt)"
"""The sizes are in 16 bit, at 480p, computed from the numbers of blocks, tokens and heads."""

REASONS: Final[dict[str, str]] = {
    "chroma_radiance.model": "as it computes pixels from those around them",
    "ernie.model": "as ComfyUI lets no node replace its attention",
    "hunyuan_video.model": VIDEO.format("21 GiB"),
    "lightricks.model": "as it makes videos, on which RAS is not tested",
    "lightricks.av_model": "as it makes videos, on which RAS is not tested",
    "wan.model": VIDEO.format("25 GiB"),
}
"""Reasons by the module of the network's class."""


def reason(module: str) -> str:
    """Why networks of this module are not supported, as the end of a sentence; empty if unknown."""
    found = [text for name, text in REASONS.items() if module.endswith(f".{name}")]
    return f", {found[0]}" if found else ""
