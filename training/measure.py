"""Measure a trained transformer: sample held-out prompts, compare int8 with float weights, compute losses."""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..demo.loader import unpack_int8
from ..demo.prompt import encode_prompt
from .collect import Item
from .data import full_prompt
from .export import pack_int8
from .network import predict, shift_time

if TYPE_CHECKING:
    from .dit import LatentBank, Trainer

log = logging.getLogger(__name__)

SAMPLE_CFG = 3.5
SHIFTS = {"lumina2": (3.0, 6.0)}
GRID_COLOURS = ("blue", "white", "yellow", "pink and orange", "green", "lavender", "navy", "mint gradient")


@torch.no_grad()
def sample(
    network: nn.Module,
    trainer: Trainer,
    prompts: list[str],
    shift: float,
    size: int,
    references: Sequence[Tensor] = (),
) -> Tensor:
    """Sample latents for prompts at `size` px from seeded noise, with Euler steps and CFG like KSampler.

    `references` are latents of reference images, (b, 16, h, w). The empty prompt has them too.
    """
    device = trainer.device
    pairs = [encode_prompt(prompt) for prompt in prompts]
    context = torch.cat([pair[0] for pair in pairs]).to(device)
    pooled = torch.cat([pair[1] for pair in pairs]).to(device)
    context, pooled = torch.cat((context, 0 * context)), torch.cat((pooled, 0 * pooled))
    references = [torch.cat((each, each)) for each in references]
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(len(prompts), 16, size // 8, size // 8, generator=generator).to(device)
    sigmas = shift_time(torch.linspace(1, 0, trainer.plan.sample_steps + 1), shift).tolist()
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        level = torch.full((2 * len(x),), sigma, device=device)
        out = predict(network, trainer.base, torch.cat((x, x)), level, context, pooled, references)
        cond, uncond = out.chunk(2)
        x = x + (following - sigma) * (uncond + SAMPLE_CFG * (cond - uncond))
    return x


@torch.no_grad()
def fixed_loss(trainer: Trainer, bank: LatentBank, rows: int = 256, references: bool = True) -> float:
    """Loss of the averaged (EMA) weights on the first `rows` latents of a bank, each with its first prompt.

    Noise and noise levels are the same in each call, so that losses can be compared. If `references` is
    False, the network does not see the reference images of the bank.
    """
    values = []
    trainer.generator.manual_seed(1)
    for first in range(0, min(rows, len(bank.latents)), 32):
        batch = bank.rows(slice(first, first + 32))
        x, sigma, context, pooled, target, *given = trainer.noised(*(batch if references else batch[:2]))
        out = predict(trainer.average, trainer.base, x, sigma, context, pooled, given)
        values.append(F.mse_loss(out, target).item())
    trainer.generator.seed()
    return sum(values) / len(values)


def evaluate(trainer: Trainer, decoder: nn.Module, held_out: list[Item], out: Path) -> dict[str, float]:
    """Sample held-out prompts with the float weights and with the packed int8 weights.

    Samples at each shift of the noise schedule in `SHIFTS` and at each image size of the plan's last stage.
    Saves the images of the int8 weights, one PNG for each schedule shift and image size. Returns a dict: for
    each shift and size (named by the key), the mean PSNR in dB between the images of int8 and float weights.
    """
    picked = random.Random(3).sample(held_out, min(16, len(held_out)))
    prompts = [full_prompt(item, GRID_COLOURS[i % len(GRID_COLOURS)]) for i, item in enumerate(picked)]
    packed = copy.deepcopy(trainer.average)
    state = unpack_int8(pack_int8(trainer.average.state_dict()))
    packed.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    figures = {}
    shifts, sizes = SHIFTS.get(trainer.family, (3.0,)), trainer.plan.sizes_drawn
    for shift, size in product(shifts, sizes):
        image, other = (
            decode(decoder, sample(network, trainer, prompts, shift, size))
            for network in (trainer.average, packed)
        )
        error = (image - other).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
        figures[f"int8_psnr_shift{shift:g}_{size}px"] = (-10 * error.log10()).mean().item()
        save_grid(other, out / f"grid_{trainer.family}_shift{shift:g}_{size}px.png")
    log.info("grid prompts: %s", json.dumps(prompts))
    return figures


@torch.no_grad()
def decode(decoder: nn.Module, latents: Tensor) -> Tensor:
    """Decode latents to images (b, 3, h, w) in 0..1."""
    return torch.cat([decoder(part).clamp(0, 1) for part in latents.split(4)])


def save_grid(images: Tensor, path: Path, columns: int = 4) -> None:
    """Write images row by row into one PNG; an incomplete last row is left out."""
    from PIL import Image

    columns = min(columns, len(images))
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns) if len(row) == columns]
    sheet = (torch.cat(rows, dim=1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(sheet).save(path)
