"""Quality figures that need network weights which the user provides: LPIPS, CLIP score and FID.

The pack cannot include these weights. Each figure is computed by a Python package, which is imported only if
the command-line option --with names the figure. Nothing is downloaded: if weights are missing, an error says
where they must be.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...ras_core.errors import RASError, path_end
from .figures import frechet_distance


class Plugin(ABC):
    """Base class of a figure: collects the images of a cell batch by batch, then computes the figure.

    Attributes:
        column: name of the figure's column in the results table.
    """

    column: str

    @abstractmethod
    def add(self, pictures: Tensor, reference: Tensor, texts: Sequence[str]) -> None:
        """Add a batch of images.

        Args:
            pictures: the images, (b, 3, H, W) in [0, 1].
            reference: the images of the converged trajectory for the same prompts, (b, 3, H, W) in [0, 1].
            texts: the b prompts.
        """

    @abstractmethod
    def value(self) -> float:
        """The figure of all images added since the last call of this function."""


class Mean(Plugin):
    """Base class of a figure that has one value per image; the cell's figure is their mean."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []

    def value(self) -> float:
        values, self._values = torch.cat(self._values), []
        return float(values.mean())


class Lpips(Mean):
    """LPIPS distance (Zhang et al. 2018) to the reference image, computed by the package lpips.

    The reference image is that of the converged trajectory, a dense run with very many steps.
    """

    column = "lpips"

    def __init__(self, weights: str, device: torch.device, real: Sequence[Any]):
        super().__init__()
        package = _package("lpips", "lpips")
        # Without AlexNet's weights lpips would download them, so they must exist. TORCH_HOME sets their
        # folder.
        _torch_hub_file("lpips", "alexnet*.pth")
        self._net = package.LPIPS(net="alex", verbose=False).to(device).eval()

    @torch.inference_mode()
    def add(self, pictures: Tensor, reference: Tensor, texts: Sequence[str]) -> None:
        self._values.append(self._net(pictures * 2 - 1, reference.float() * 2 - 1).flatten())


class ClipScore(Mean):
    """CLIP score (Hessel et al. 2021): 100 x the cosine of image and prompt embeddings, at least 0.

    The package transformers loads the CLIP model from the user's folder.
    """

    column = "clip_score"

    def __init__(self, weights: str, device: torch.device, real: Sequence[Any]):
        super().__init__()
        folder = Path(weights)
        if not weights or not (folder / "config.json").is_file():
            raise RASError(
                f"there is no CLIP model in the folder {weights!r}.",
                "a folder with a CLIPModel and a CLIPProcessor as the library transformers saves them.",
                "name such a folder: --with clip_score=FOLDER.",
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
    """Frechet Inception distance (Heusel et al. 2017) to the real images, with the network of pytorch-fid."""

    column = "fid"

    def __init__(self, weights: str, device: torch.device, real: Sequence[Any]):
        if not real:
            raise RASError(
                "--with fid, but no real images.",
                "a folder of real images, which FID compares the sampled images with.",
                "name the folder with --real FOLDER, or leave fid out of --with.",
            )
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
    """Split the value of --with into names and folders.

    "lpips,clip_score=FOLDER" gives (("lpips", ""), ("clip_score", "FOLDER")).
    """
    found = tuple(tuple(f"{part.strip()}=".split("=")[:2]) for part in text.split(",") if part.strip())
    if wrong := [name for name, _ in found if name not in PLUGINS]:
        raise RASError(f"--with {', '.join(wrong)}.", f"of {', '.join(PLUGINS)}.", "correct --with.")
    return found


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RASError(
            f"--with {name}, but the package {module.partition('.')[0]} cannot be imported ({error}).",
            "this package in the Python environment that runs ComfyUI.",
            f"install the package, or leave {name} out of --with.",
        ) from error


def _torch_hub_file(name: str, pattern: str) -> None:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not any(folder.glob(pattern)):
        raise RASError(
            f"--with {name}, but the weights that it needs are missing.",
            f"a file {pattern} in {path_end(folder)} (it is not downloaded automatically).",
            f"put the file into this folder (TORCH_HOME can set another), or leave {name} out of --with.",
        )
