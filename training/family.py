"""Train one family, from rendered images to weight files: encode latents, train, measure, save."""

from __future__ import annotations

import json
import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .autoencoder import build_autoencoder
from .bank import LatentBank, encode_bank, encode_edits
from .collect import Item
from .data import Vocabulary
from .dit import Trainer
from .edit_trainer import SHOWN, EditTrainer, evaluate_edits, save_edits
from .edits import Edit, edit_words, random_edits
from .export import save_packed
from .measure import evaluate, fixed_loss
from .plan import Plan

log = logging.getLogger(__name__)

EDITS_SAMPLED = 64


@dataclass(frozen=True)
class Banks:
    """What a family is trained and tested with.

    Attributes:
        training, test: banks of latents by image size in pixels; the images of `test` are held out.
        unseen: the held-out items.
        edits: for an editing model, the edits of the test banks, in their order; otherwise empty.
    """

    training: dict[int, LatentBank]
    test: dict[int, LatentBank]
    unseen: list[Item]
    edits: list[Edit]


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
    edits = family == "flux_edit"
    trainer = (EditTrainer if edits else Trainer)(family, device, plan)
    trainer.progress = span[0]
    trainer.resume(work)
    while not autoencoder.exists():
        time.sleep(0.5)
    pair = load_autoencoder(autoencoder, device)
    vocabulary, begun = Vocabulary(), time.time()
    encoder = pair["taesd_encoder"].to(memory_format=torch.channels_last)
    encode = edit_banks if edits else plain_banks
    banks = encode(encoder, pictures, items, held_out_rows, plan, vocabulary)
    trainer.table = vocabulary.table().to(device)
    first, last = plan.stages[0].size, plan.stages[-1].size
    count = len(banks.training[first].latents)
    log.info("%s: %d latents per size in %.0f s", family, count, time.time() - begun)
    figures = {"first_test_loss": fixed_loss(trainer, banks.test[last])}
    log.info("%s: loss on held-out images before training %.4f", family, figures["first_test_loss"])
    trainer.check_compiled(banks.training)
    trainer.train(banks.training, deadline, work, span[1])
    trainer.save_state(work)
    state = {name: tensor.half().cpu().contiguous() for name, tensor in trainer.average.state_dict().items()}
    save_file(state, work / f"{family}_fp16.safetensors")
    save_packed(trainer.average.state_dict(), work / f"{family}.safetensors")
    figures |= _evaluate(trainer, pair["taesd_decoder"], banks, work)
    figures |= {f"train_loss_{size}px": fixed_loss(trainer, banks.training[size]) for size in banks.test}
    figures |= {f"test_loss_{size}px": fixed_loss(trainer, bank) for size, bank in banks.test.items()}
    figures |= {"steps": trainer.steps, "history": trainer.history, "vocabulary": len(vocabulary.numbers)}
    (work / f"figures_{family}.json").write_text(json.dumps(figures))
    log.info("%s figures: %s", family, {k: v for k, v in figures.items() if k != "history"})


def plain_banks(
    encoder: nn.Module,
    pictures: np.ndarray,
    items: list[Item],
    held_out_rows: list[int],
    plan: Plan,
    vocabulary: Vocabulary,
) -> Banks:
    """Banks of single images, on the encoder's device."""
    device, held_set = next(encoder.parameters()).device, set(held_out_rows)
    rows = [row for row in range(len(items)) if row not in held_set]
    seen, unseen = [items[row] for row in rows], [items[row] for row in held_out_rows]
    train_pictures = torch.from_numpy(pictures[rows]).to(device)
    sizes = [stage.size for stage in plan.stages]
    training = {size: encode_bank(encoder, train_pictures, seen, size, plan, vocabulary) for size in sizes}
    test_pictures = torch.from_numpy(pictures[held_out_rows]).to(device)
    one = Plan(variants=1, prompts=1)
    test = {
        size: encode_bank(encoder, test_pictures, unseen, size, one, vocabulary) for size in plan.sizes_drawn
    }
    return Banks(training, test, unseen, [])


def edit_banks(
    encoder: nn.Module,
    pictures: np.ndarray,
    items: list[Item],
    held_out_rows: list[int],
    plan: Plan,
    vocabulary: Vocabulary,
) -> Banks:
    """Banks of edits, on the encoder's device. The wanted images of the test banks are held out."""
    device, held_set, rng = next(encoder.parameters()).device, set(held_out_rows), random.Random(5)
    rows = [row for row in range(len(items)) if row not in held_set]
    tested = random_edits(items, held_out_rows, range(len(items)), rng)
    rng.shuffle(tested)
    all_pictures = torch.from_numpy(np.array(pictures)).to(device)
    one = Plan(variants=1, prompts=1)
    test = {
        size: encode_edits(encoder, all_pictures, tested, size, one, vocabulary) for size in plan.sizes_drawn
    }
    training = {}
    for stage in plan.stages:
        edits = [edit for _ in range(plan.variants) for edit in random_edits(items, rows, rows, rng)]
        training[stage.size] = encode_edits(encoder, all_pictures, edits, stage.size, plan, vocabulary)
    return Banks(training, test, [items[row] for row in held_out_rows], tested)


def _evaluate(trainer: Trainer, decoder: nn.Module, banks: Banks, work: Path) -> dict[str, float]:
    """Sample held-out prompts or edits, save the images, and return the figures by name."""
    if not banks.edits:
        return evaluate(trainer, decoder, banks.unseen, work)
    edits, rng = banks.edits[:EDITS_SAMPLED], random.Random(7)
    prompts = [" ".join(edit_words(edit, rng)) for edit in edits]
    bank = banks.test[trainer.plan.stages[-1].size]
    figures, images = evaluate_edits(trainer, decoder, bank, edits, prompts)
    save_edits(images, work / f"grid_{trainer.family}.png")
    told = [f"{edit.kind}: {prompt}" for edit, prompt in zip(edits, prompts, strict=True)]
    log.info("edits shown: %s", json.dumps(told[:SHOWN]))
    return figures
