"""Figures that need weights which the pack cannot include: LPIPS, CLIP score, FID, for users who have them.

A package is imported only if its figure is requested; nothing is downloaded; missing weights are an error.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...ras_core.errors import RASError
from .figures import frechet_distance


class Plugin(ABC):
    """Collects images batch by batch and computes one figure of a cell.

    Attributes:
        column: its column in the table.
    """

    column: str

    @abstractmethod
    def add(self, pictures: Tensor, reference: Tensor, texts: Sequence[str]) -> None:
        """Add a batch: images and their converged references, (b, 3, H, W) in [0, 1], and their prompts."""

    @abstractmethod
    def value(self) -> float:
        """The figure of the collected images; clears the collection."""


class Mean(Plugin):
    """A figure that is the mean of one value per image."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []

    def value(self) -> float:
        values, self._values = torch.cat(self._values), []
        return float(values.mean())


class Lpips(Mean):
    """Perceptual distance to the converged image (Zhang et al. 2018), by the package lpips."""

    column = "lpips"

    def __init__(self, weights: str, device: torch.device, real: Sequence[Any]):
        super().__init__()
        package = _package("lpips", "lpips")
        # The package would download its backbone; users who have it set TORCH_HOME to its folder.
        _torch_hub_file("lpips", "alexnet*.pth")
        self._net = package.LPIPS(net="alex", verbose=False).to(device).eval()

    @torch.inference_mode()
    def add(self, pictures: Tensor, reference: Tensor, texts: Sequence[str]) -> None:
        self._values.append(self._net(pictures * 2 - 1, reference.float() * 2 - 1).flatten())


class ClipScore(Mean):
    """100 x cosine between image and prompt (Hessel et al. 2021), clipped at 0, with transformers."""

    column = "clip_score"

    def __init__(self, weights: str, device: torch.device, real: Sequence[Any]):
        super().__init__()
        folder = Path(weights)
        if not weights or not (folder / "config.json").is_file():
            raise RASError(
                f"no CLIP model in {weights!r}.",
                "a folder with a CLIPModel of the transformers library and its processor.",
                "name it: --with clip_score=FOLDER.",
            )
        package = _package("transformers", "clip_score")
        self._device = device
        self._net = package.CLIPModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        self._process = package.CLIPProcessor.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def add(self, pictures: Tensor, reference: Tensor, texts: Sequence[str]) -> None:
        images = (pictures * 255).round().byte().cpu()
        inputs = self._process(
            text=list(texts), images=list(images), return_tensors="pt", padding=True, truncation=True
        )
        output = self._net(**inputs.to(self._device))
        cosine = torch.cosine_similarity(output.image_embeds, output.text_embeds)
        self._values.append(100 * cosine.clamp_min(0))


class Fid(Plugin):
    """Frechet Inception distance (Heusel et al. 2017) by the package pytorch-fid and its weights."""

    column = "fid"

    def __init__(self, weights: str, device: torch.device, real: Sequence[Any]):
        if not real:
            raise RASError("FID without real images.", "--real FOLDER.", "name them, or leave out fid.")
        inception = _package("pytorch_fid.inception", "fid")
        _torch_hub_file("fid", "pt_inception*.pth")
        self._device = device
        self._net = inception.InceptionV3().to(device).eval()
        self._made: list[Tensor] = []
        self._real = torch.cat([self._features(batch) for half in real for batch in half])

    @torch.inference_mode()
    def _features(self, pictures: Tensor) -> Tensor:
        return self._net(pictures.to(self._device).float())[0].flatten(1)

    def add(self, pictures: Tensor, reference: Tensor, texts: Sequence[str]) -> None:
        self._made.append(self._features(pictures))

    def value(self) -> float:
        made, self._made = torch.cat(self._made), []
        return frechet_distance(made, self._real)


PLUGINS: dict[str, type[Plugin]] = {plugin.column: plugin for plugin in (Lpips, ClipScore, Fid)}


def parse_plugins(text: str) -> tuple[tuple[str, str], ...]:
    """ "lpips,clip_score=FOLDER" -> (("lpips", ""), ("clip_score", "FOLDER"))."""
    found = tuple(tuple(f"{part.strip()}=".split("=")[:2]) for part in text.split(",") if part.strip())
    if wrong := [name for name, _ in found if name not in PLUGINS]:
        raise RASError(f"--with {', '.join(wrong)}.", f"of {', '.join(PLUGINS)}.", "correct --with.")
    return found


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RASError(
            f"--with {name}, but {module.partition('.')[0]} cannot be imported ({error}).",
            "that package in the Python that runs ComfyUI.",
            f"install it, or leave {name} out.",
        ) from error


def _torch_hub_file(name: str, pattern: str) -> None:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not any(folder.glob(pattern)):
        raise RASError(
            f"--with {name}, but its weights are not there.",
            f"{pattern} in {folder}; nothing is downloaded here.",
            f"put the file there (or set TORCH_HOME), or leave {name} out.",
        )
