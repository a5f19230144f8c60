"""Train an editing model: a Flux network that sees the rows of a reference image beside those of the image.

The training starts from the weights of the demo model Flux. The network is called as ComfyUI calls it with
the node ReferenceLatent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..demo.loader import WEIGHTS_DIR
from .bank import LatentBank
from .dit import Trainer
from .edits import BACKGROUND, BOTH, STYLE, Edit
from .measure import decode, fixed_loss, sample, save_grid
from .plan import Stage

log = logging.getLogger(__name__)

PLAIN_EVERY = 10
"""Each step with a number divisible by this trains without reference images."""

SHOWN = 8
SHIFT = 3.0


class EditTrainer(Trainer):
    """Trains the editing model.

    Steps without reference images are not compiled, because compiling takes longer than they do.
    """

    def _compile(self) -> None:
        super()._compile()
        compiled = self._loss

        def loss(*batch: Tensor) -> Tensor:
            return (compiled if len(batch) > 5 else self._raw_loss)(*batch)

        self._loss = loss

    def stages_to_check(self) -> Sequence[Stage]:
        return [stage for stage in self.plan.stages if self.progress < stage.until]

    def packed_weights(self, work: Path) -> Path:
        own = super().packed_weights(work)
        return own if own.exists() else WEIGHTS_DIR / f"{self.base}.safetensors"

    def draw(self, bank: LatentBank, batch: int) -> tuple[Tensor, ...]:
        if self.steps % PLAIN_EVERY:
            return bank.draw(batch, self.generator)
        return bank.draw(max(1, batch // 2), self.generator)[
            :2
        ]  # code that is not compiled needs more memory


@torch.no_grad()
def evaluate_edits(
    trainer: Trainer, decoder: nn.Module, bank: LatentBank, edits: Sequence[Edit], prompts: Sequence[str]
) -> tuple[dict[str, float], Tensor]:
    """Sample held-out edits and compare them with the wanted images.

    Args:
        bank: a bank of held-out edits; its first latents belong to `edits`.
        edits, prompts: the edits to sample, and a prompt for each.

    Returns:
        The figures by name, PSNR in dB, each the mean over images: of the edited image to the wanted one, for
        all edits and for each kind of edit; of the reference image to the wanted one; and of the image that
        is sampled without the reference. Losses on the bank with and without reference images. And the images
        in rows of three: reference, edited, wanted; (3 n, 3, h, w).
    """
    count = len(edits)
    latents, _, references = bank.rows(slice(count))
    size = 8 * latents.shape[-1]
    wanted, before = decode(decoder, latents), decode(decoder, references)
    edited, alone = (_sampled(trainer, decoder, prompts, size, given) for given in ([references], []))
    error = _psnr(edited, wanted)
    figures = {
        "edit_psnr": error.mean().item(),
        "reference_psnr": _psnr(before, wanted).mean().item(),
        "psnr_without_reference": _psnr(alone, wanted).mean().item(),
        "test_loss_with_reference": fixed_loss(trainer, bank),
        "test_loss_without_reference": fixed_loss(trainer, bank, references=False),
    }
    for kind in (BACKGROUND, STYLE, BOTH):
        rows = [row for row, edit in enumerate(edits) if edit.kind == kind]
        if rows:
            figures[f"edit_psnr_{kind}"] = error[rows].mean().item()
            figures[f"reference_psnr_{kind}"] = _psnr(before, wanted)[rows].mean().item()
    return figures, torch.stack((before, edited, wanted), dim=1).flatten(0, 1)


def save_edits(images: Tensor, path: Path) -> None:
    """Write the first edits into one PNG, two in a row: reference, edited, wanted."""
    save_grid(images[: 3 * SHOWN], path, columns=6 if len(images) > 3 else 3)


def _sampled(
    trainer: Trainer, decoder: nn.Module, prompts: Sequence[str], size: int, references: Sequence[Tensor]
) -> Tensor:
    found = []
    for first in range(0, len(prompts), 32):
        part = slice(first, first + 32)
        given = [each[part] for each in references]
        latents = sample(trainer.average, trainer, list(prompts[part]), SHIFT, size, given)
        found.append(decode(decoder, latents))
    return torch.cat(found)


def _psnr(images: Tensor, others: Tensor) -> Tensor:
    return -10 * (images - others).square().mean(dim=(1, 2, 3)).clamp(min=1e-12).log10()
