"""Train the autoencoder that all demo families share: ComfyUI's TAESD classes with 16 latent channels."""

from __future__ import annotations

import logging
import math
import random
import time
from pathlib import Path

import comfy.taesd.taesd as taesd
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .data import compose, gradient_canvas, random_background, random_places

log = logging.getLogger(__name__)

CROP = 128
CROP_SOURCES = (128, 160, 256)
LEARNING_RATE = 1e-3
WARMUP_STEPS = 100


def build_autoencoder() -> nn.ModuleDict:
    """Create encoder and decoder, named as in ComfyUI's state dict.

    ComfyUI's convolutions leave their weights uninitialised, so they are initialised here, as in torch.
    """
    model = nn.ModuleDict(
        {
            "taesd_encoder": taesd.Encoder(latent_channels=16),
            "taesd_decoder": taesd.Decoder(latent_channels=16),
        }
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound)
    return model


def random_crops(pictures: Tensor, backgrounds: Tensor, batch: int) -> Tensor:
    """Square crops (b, 3, 128, 128) of random images on random backgrounds.

    For each batch, a side length in pixels is chosen at random from `CROP_SOURCES`. All crops of the batch
    are cut with this side length and, if it is larger than 128 px, scaled down to 128 px.
    """
    source, device = random.choice(CROP_SOURCES), pictures.device
    row = torch.randint(len(pictures), (batch, 1, 1), device=device)
    corner = torch.randint(pictures.shape[1] - source + 1, (2, batch, 1, 1), device=device)
    steps = torch.arange(source, device=device)
    crops = pictures[row, corner[0] + steps[:, None], corner[1] + steps[None, :]]  # (b, s, s, 4)
    layers = crops.permute(0, 3, 1, 2).float() / 255
    choice = torch.randint(len(backgrounds), (batch,), device=device)
    canvas = backgrounds[choice]
    canvas = F.interpolate(canvas, size=(source, source), mode="bilinear", align_corners=False)
    image = layers[:, :3] + canvas * (1 - layers[:, 3:])
    if source != CROP:
        image = F.interpolate(image, size=(CROP, CROP), mode="bilinear", antialias=True)
    return image.clamp(0, 1)


def picture_loss(out: Tensor, image: Tensor) -> Tensor:
    """Image loss: L1 error + 2 * squared error + L1 error of the image gradients (means over all pixels)."""
    down = (out.diff(dim=2) - image.diff(dim=2)).abs().mean()
    right = (out.diff(dim=3) - image.diff(dim=3)).abs().mean()
    return F.l1_loss(out, image) + 2 * F.mse_loss(out, image) + down + right


def training_loss(model: nn.ModuleDict, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the total loss for training, and the mean squared error of the decoded images for the log.

    One term of the loss pulls the latents towards mean 0 and variance 1 per channel. A little noise is added
    to the latents, so that the decoder learns to tolerate errors of the sampler. Another term compares the
    decoded half-size latent with the half-size image, because latents that can be scaled like images are
    easier for a transformer to model.
    """
    latent = model["taesd_encoder"](image).float()
    mean, variance = latent.mean(dim=(0, 2, 3)), latent.var(dim=(0, 2, 3))
    normal = (mean**2 + (variance - 1) ** 2).mean()
    noise = torch.rand(len(latent), 1, 1, 1, device=latent.device) * 0.08 * torch.randn_like(latent)
    out = model["taesd_decoder"](latent + noise).float()
    half = len(latent) // 4
    small = model["taesd_decoder"](F.avg_pool2d(latent[:half], 2)).float()
    scaling = picture_loss(small, F.avg_pool2d(image[:half], 2))
    return picture_loss(out, image) + 0.02 * normal + 0.15 * scaling, F.mse_loss(out, image)


def train_autoencoder(pictures: Tensor, seconds: float, batch: int, compiled: bool) -> nn.ModuleDict:
    """Train for `seconds`. The learning rate depends on the elapsed share of this time."""
    device = pictures.device
    rng = random.Random(0)
    backgrounds = gradient_canvas([random_background(rng) for _ in range(512)], 64, device)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    step_loss = torch.compile(training_loss) if compiled else training_loss
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        rate = LEARNING_RATE * (0.5 + 0.5 * math.cos(math.pi * progress)) * min(1, (step + 1) / WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = rate
        image = random_crops(pictures, backgrounds, batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, error = step_loss(model, image.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 500 == 0:
            log.info("autoencoder step %d loss %.4f psnr %.2f", step, loss.item(), _psnr(error.item()))
        progress = (time.monotonic() - start) / seconds
    log.info("autoencoder: %d steps of %d crops in %.0f s", step, batch, time.monotonic() - start)
    return model


def _psnr(error: float) -> float:
    return -10 * math.log10(max(error, 1e-12))


@torch.no_grad()
def measure_psnr(model: nn.ModuleDict, pictures: Tensor) -> float:
    """Mean PSNR in dB between 512-px images on random backgrounds and their reconstructions, in float32."""
    rng, values = random.Random(1), []
    for part in pictures.split(8):
        backgrounds = [random_background(rng) for _ in part]
        image = whole_pictures(part, gradient_canvas(backgrounds, part.shape[1], part.device), rng)
        out = model["taesd_decoder"](model["taesd_encoder"](image)).clamp(0, 1)
        values += [_psnr(e) for e in (out - image).square().mean(dim=(1, 2, 3)).tolist()]
    return sum(values) / len(values)


def whole_pictures(pictures: Tensor, canvas: Tensor, rng: random.Random) -> Tensor:
    """Draw each image on the background of the same index in `canvas`, (b, 3, s, s).

    The image is scaled to 80 to 95 % of the background's size and shifted a little, both at random.
    """
    return compose(pictures, canvas, *random_places(len(pictures), rng, pictures.device))


@torch.no_grad()
def fit_preview_factors(model: nn.ModuleDict, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Fit preview colours: the least-squares map from a latent pixel to its RGB colour in -1..1.

    Returns factors (16, 3) and bias (3,).
    """
    rng, rows, targets = random.Random(2), [], []
    for part in pictures.split(8):
        backgrounds = [random_background(rng) for _ in part]
        image = whole_pictures(part, gradient_canvas(backgrounds, part.shape[1], part.device), rng)
        rows.append(model["taesd_encoder"](image).permute(0, 2, 3, 1).reshape(-1, 16))
        small = F.interpolate(image, scale_factor=1 / 8, mode="area") * 2 - 1
        targets.append(small.permute(0, 2, 3, 1).reshape(-1, 3))
    latent = torch.cat(rows).double()
    design = torch.cat((latent, torch.ones_like(latent[:, :1])), dim=1)
    target = torch.cat(targets).double()
    solution = torch.linalg.solve(design.T @ design, design.T @ target)
    log.info("latent mean %.3f std %.3f", latent.mean().item(), latent.std().item())
    return solution[:16].float().contiguous(), solution[16].float().contiguous()


def save_autoencoder(model: nn.ModuleDict, factors: tuple[Tensor, Tensor], path: Path) -> None:
    """Write the weights as fp16 and the preview colours as float32 into one file."""
    state = {name: tensor.half().contiguous().cpu() for name, tensor in model.state_dict().items()}
    state["latent_rgb_factors"], state["latent_rgb_factors_bias"] = (f.float().cpu() for f in factors)
    partial = path.with_suffix(".part")
    save_file(state, partial)
    partial.rename(path)
