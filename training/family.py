"""Train one family, from rendered images to weight files: encode latents, train, measure, save."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .autoencoder import build_autoencoder
from .collect import Item
from .data import Vocabulary
from .dit import Plan, Trainer, encode_bank
from .export import save_packed
from .measure import evaluate, fixed_loss

log = logging.getLogger(__name__)


def load_autoencoder(path: Path, device: torch.device) -> nn.ModuleDict:
    """The trained encoder and decoder in float32."""
    state = {name: tensor.float() for name, tensor in load_file(path).items() if name.startswith("taesd")}
    model = build_autoencoder()
    model.load_state_dict(state)
    return model.to(device).requires_grad_(False)


def train_family(
    family: str,
    pictures: np.ndarray,
    items: list[Item],
    held_out_rows: list[int],
    autoencoder: Path,
    deadline: float,
    work: Path,
    plan: Plan,
    span: tuple[float, float],
) -> None:
    """Train one family and write its weights and measured values to the folder `work`.

    Waits for the autoencoder's file, encodes the images, trains the part `span` of the plan until `deadline`
    (`time.time()`), then measures the result. If an earlier call was interrupted before the start of the
    span, training continues from the state that the earlier call saved.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if device.type == "cuda":
        # PyTorch accumulates a parameter's gradient on the stream on which it was first computed, and a CUDA
        # graph capture must not use another stream than its own. So all work runs on one non-default stream.
        torch.cuda.set_stream(torch.cuda.Stream())
    trainer = Trainer(family, device, plan)
    trainer.progress = span[0]
    trainer.resume(work)
    while not autoencoder.exists():
        time.sleep(0.5)
    pair = load_autoencoder(autoencoder, device)
    held_set = set(held_out_rows)
    rows = [row for row in range(len(items)) if row not in held_set]
    vocabulary, begun = Vocabulary(), time.time()
    seen, unseen = [items[row] for row in rows], [items[row] for row in held_out_rows]
    train_pictures = torch.from_numpy(pictures[rows]).to(device)
    encoder = pair["taesd_encoder"].to(memory_format=torch.channels_last)
    sizes = [stage.size for stage in plan.stages]
    banks = {size: encode_bank(encoder, train_pictures, seen, size, plan, vocabulary) for size in sizes}
    test_pictures = torch.from_numpy(pictures[held_out_rows]).to(device)
    one = Plan(variants=1, prompts=1)
    test_banks = {
        size: encode_bank(encoder, test_pictures, unseen, size, one, vocabulary) for size in plan.sizes_drawn
    }
    del train_pictures, test_pictures
    trainer.table = vocabulary.table().to(device)
    log.info("%s: %d latents per size in %.0f s", family, len(banks[sizes[0]].latents), time.time() - begun)
    figures = {"first_test_loss": fixed_loss(trainer, test_banks[sizes[-1]])}
    log.info("%s: loss on held-out images before training %.4f", family, figures["first_test_loss"])
    trainer.check_compiled(banks)
    trainer.train(banks, deadline, work, span[1])
    trainer.save_state(work)
    state = {name: tensor.half().cpu().contiguous() for name, tensor in trainer.average.state_dict().items()}
    save_file(state, work / f"{family}_fp16.safetensors")
    save_packed(trainer.average.state_dict(), work / f"{family}.safetensors")
    figures |= evaluate(trainer, pair["taesd_decoder"], unseen, work)
    figures |= {f"train_loss_{size}px": fixed_loss(trainer, banks[size]) for size in test_banks}
    figures |= {f"test_loss_{size}px": fixed_loss(trainer, bank) for size, bank in test_banks.items()}
    figures |= {"steps": trainer.steps, "history": trainer.history, "vocabulary": len(vocabulary.numbers)}
    (work / f"figures_{family}.json").write_text(json.dumps(figures))
    log.info("%s figures: %s", family, {k: v for k, v in figures.items() if k != "history"})
