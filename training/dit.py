"""Train one transformer family on the autoencoder's latents, with ComfyUI's own network classes."""

from __future__ import annotations

import copy
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..demo.loader import unpack_int8
from . import lean
from .autoencoder import whole_pictures
from .collect import Item
from .data import Vocabulary, embed_numbers, gradient_canvas, prompt_words, random_background
from .export import save_packed
from .network import build_network, predict, shift_time

log = logging.getLogger(__name__)

LEARNING_RATES = {"sd3": 1e-3, "lumina2": 8e-4, "flux": 1e-3}
WARMUP_STEPS = 400
FLAT_SHARE = 0.5
EMA_DECAY = 0.9995
EMPTY_TEXT_SHARE = 0.1
TRAINING_SHIFT = 3.0
UNIFORM_TIME_SHARE = 0.1
LEAST_AGREEMENT = 0.98
SYNC_EVERY, LOG_EVERY, SAVE_EVERY_S = 25, 250, 60.0
BURST, KEEP_EVERY = 1.25, 10  # a loss of so many times the usual one has diverged; looks between copies


@dataclass(frozen=True)
class Stage:
    """One resolution of the training: image size, batch and the share of the time at which it ends.

    Of `mixed` steps one is taken at the resolution of the first stage; none if it is 0.
    """

    size: int
    batch: int
    until: float
    mixed: int = 0


@dataclass(frozen=True)
class Plan:
    """A training run: its stages, variants of each picture kept as latents, and prompts a variant."""

    stages: tuple[Stage, ...] = (Stage(256, 512, 0.35), Stage(512, 192, 1.0))
    variants: int = 6
    prompts: int = 4
    sample_steps: int = 28
    compiled: bool = True

    @property
    def sizes_drawn(self) -> tuple[int, ...]:
        """Image sizes that the last stage trains."""
        last = self.stages[-1]
        return (last.size, self.stages[0].size) if last.mixed else (last.size,)

    def next_stage(self, progress: float) -> Stage:
        """The stage at this share of the time."""
        return next(stage for stage in self.stages if progress < stage.until)


SMOKE_PLAN = Plan(
    stages=(Stage(256, 2, 0.4), Stage(512, 2, 1.0)), variants=1, prompts=2, sample_steps=2, compiled=False
)


def plan_for(family: str, smoke: bool) -> Plan:
    """The plan of a family. Flux has only rotary positions and learns both sizes."""
    plan = SMOKE_PLAN if smoke else Plan()
    if family != "flux":
        return plan
    return replace(plan, stages=(*plan.stages[:-1], replace(plan.stages[-1], mixed=3)))


@dataclass(frozen=True)
class LatentBank:
    """Latents (n, 16, h, w) fp16 and, for each, word numbers (n, prompts, 16) of several prompts."""

    latents: Tensor
    numbers: Tensor

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random batch of latents and word numbers, some of them empty."""
        chance = {"device": self.latents.device, "generator": generator}
        row = torch.randint(len(self.latents), (batch,), **chance)
        prompt = torch.randint(self.numbers.shape[1], (batch,), **chance)
        keep = torch.rand(batch, 1, **chance) >= EMPTY_TEXT_SHARE
        return self.latents[row].float(), self.numbers[row, prompt].long() * keep


def random_sigma(batch: int, generator: torch.Generator) -> Tensor:
    """Shifted logit-normal noise levels, one in ten uniform so that both ends are seen."""
    chance = {"device": generator.device, "generator": generator}
    normal = shift_time(torch.sigmoid(torch.randn(batch, **chance)), TRAINING_SHIFT)
    uniform = torch.rand(batch, **chance)
    return torch.where(torch.rand(batch, **chance) < UNIFORM_TIME_SHARE, uniform, normal)


class DivergenceGuard:
    """Watches a trainer's loss; when it bursts, takes everything back to when it was well, plain and slower.

    Attributes:
        rate_share: factor on the learning rate.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.rate_share = 1.0
        self._trainer, self._size, self._usual, self._looks = trainer, 0, math.inf, 0
        self._kept: list[dict] = []

    def look(self, loss: float, size: int) -> None:
        """The mean loss of the latest steps, at pictures of this `size`."""
        if size != self._size:  # losses of another size compare with nothing
            self._size, self._usual = size, math.inf
        if not loss < BURST * self._usual:
            if self._kept:
                self._take_back(loss)
            return
        self._usual = loss if math.isinf(self._usual) else 0.9 * self._usual + 0.1 * loss
        self._looks += 1
        if self._looks % KEEP_EVERY == 1:
            self._kept = [copy.deepcopy(part.state_dict()) for part in self._parts()]

    def _take_back(self, loss: float) -> None:
        log.warning(
            "%s: loss %.4f after %.4f at step %d: back to the last good state, plain code, half the rate",
            self._trainer.family, loss, self._usual, self._trainer.steps,
        )  # fmt: skip
        for part, state in zip(self._parts(), self._kept, strict=True):
            part.load_state_dict(copy.deepcopy(state))
        self._trainer._stop_compiling()
        self.rate_share *= 0.5
        self._usual = math.inf

    def _parts(self) -> tuple:
        return self._trainer.network, self._trainer.average, self._trainer.optimizer


class Captured:
    """A step as a CUDA graph: launching its thousands of small kernels takes longer than they run."""

    WARM_UP = 3

    def __init__(self, trainer: Trainer, batch: tuple[Tensor, ...]) -> None:
        self._places = tuple(tensor.clone() for tensor in batch)
        start = time.monotonic()
        for _ in range(self.WARM_UP):  # compiles, and lets libraries set up
            trainer.descend(self._places)
        trainer.optimizer.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
            self._loss = trainer.descend(self._places)
        log.info("%s: step captured in %.0f s", trainer.family, time.monotonic() - start)

    def __call__(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Replay on this batch; returns the loss, good until the next step."""
        for place, tensor in zip(self._places, batch, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return self._loss


class Trainer:
    """Network, optimiser and running average of one family."""

    def __init__(self, family: str, device: torch.device, plan: Plan) -> None:
        torch.manual_seed(0)
        self.family, self.device, self.plan = family, device, plan
        # Its own: the default one belongs to a captured step, and to a capture that failed.
        self.generator = torch.Generator(device)
        self.generator.seed()
        self.network = build_network(family).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.parts = lean.install(self.network) if family == "lumina2" else {}
        # On a GPU NextDiT's step is captured (`Captured`), for which the rate has to be a tensor.
        self.uses_graph = device.type == "cuda" and family == "lumina2"
        rate = torch.tensor(LEARNING_RATES[family], device=device) if self.uses_graph else 1e-3
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True,
            capturable=self.uses_graph,
        )  # fmt: skip
        self._captured: dict[int, Captured] = {}
        self.table = torch.zeros(1, 64, device=device)
        self.steps, self.progress, self.history = 0, 0.0, []
        self.loss_sum, self.recent_loss = torch.zeros((), device=device), torch.zeros((), device=device)
        self._loss, self.share = self._raw_loss, 1.0
        if plan.compiled:
            self._compile()
        self.autocast = device.type == "cuda"
        self.guard = DivergenceGuard(self)

    def _compile(self) -> None:
        """SD3 and Flux as a whole, which takes a minute; of NextDiT the elementwise parts (lean.py)."""
        torch._dynamo.config.recompile_limit = 64
        if self.family == "lumina2":
            self.parts.update(lean.compiled())
        else:
            self._loss = torch.compile(self._raw_loss, dynamic=False)

    def _stop_compiling(self) -> None:
        """Back to plain code, which needs more memory: with half the batch."""
        self._captured.clear()
        self._loss, self.share = self._raw_loss, 0.5
        if self.parts:
            self.parts.update(lean.PLAIN)

    def _raw_loss(self, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor, target: Tensor) -> Tensor:
        out = predict(self.network, self.family, x, sigma, context, pooled)
        return F.mse_loss(out.float(), target)

    def loss(self, latent: Tensor, numbers: Tensor) -> Tensor:
        """Flow-matching loss of one batch."""
        return self._mixed(self._loss, self.noised(latent, numbers))

    def noised(self, latent: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        """What the loss takes: noisy latents, levels, context, pooled vectors and targets."""
        context, pooled = embed_numbers(self.table, numbers)
        sigma = random_sigma(len(latent), self.generator)
        noise = torch.randn(latent.shape, device=self.device, generator=self.generator)
        level = sigma[:, None, None, None]
        return level * noise + (1 - level) * latent, sigma, context, pooled, noise - latent

    def _mixed(self, function: Callable[..., Tensor], batch: Sequence[Tensor]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return function(*batch)

    def step(self, latent: Tensor, numbers: Tensor, progress: float) -> None:
        """One optimiser step; the learning rate is flat for half of the time, then falls as a cosine."""
        fall = max(0.0, (progress - FLAT_SHARE) / (1 - FLAT_SHARE))
        rate = LEARNING_RATES[self.family] * min(1, (self.steps + 1) / WARMUP_STEPS) * self.guard.rate_share
        self._set_rate(rate * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, fall)))))
        loss = self._update(self.noised(latent, numbers))
        self.steps += 1
        self.loss_sum += loss.detach()
        self.recent_loss += loss.detach()
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _update(self, batch: tuple[Tensor, ...]) -> Tensor:
        """One change of the weights; returns the loss."""
        if not self.uses_graph:
            return self.descend(batch)
        rows = batch[0].shape[-1]
        if rows not in self._captured:
            try:
                self._captured[rows] = Captured(self, batch)
            except Exception:  # the driver may refuse; plain training always works
                log.exception("%s: a step cannot be captured, plain steps from here", self.family)
                self.uses_graph = False
                return self.descend(batch)
        return self._captured[rows](batch)

    def descend(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Gradient and optimiser on one batch; returns the loss."""
        loss = self._mixed(self._loss, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def resume(self, work: Path) -> None:
        """Continue from the whole state of an earlier call, else from packed weights, if there are any."""
        state, packed = work / f"state_{self.family}.pt", work / f"{self.family}.safetensors"
        if state.exists():
            saved = torch.load(state, map_location=self.device)
            self.network.load_state_dict(saved["network"])
            self.average.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.steps, self.progress, self.history = saved["steps"], saved["progress"], saved["history"]
        elif packed.exists():
            weights = {name: tensor.float() for name, tensor in unpack_int8(load_file(packed)).items()}
            self.network.load_state_dict(weights, strict=False)
            self.average.load_state_dict(weights, strict=False)
        found = next((path for path in (state, packed) if path.exists()), "nothing")
        log.info("%s continues from %s at %.0f %%", self.family, found, 100 * self.progress)

    def save_state(self, work: Path) -> None:
        """Everything the next call needs to continue as if there had been no break."""
        state = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "steps": self.steps, "history": self.history}
        path = work / f"state_{self.family}.pt"
        partial = path.with_suffix(".part")
        torch.save(state | {"progress": self.progress}, partial)
        partial.rename(path)

    def check_compiled(self, banks: dict[int, LatentBank]) -> None:
        """Compile for the coming stage, or for all that will mix; plain code again when that fails or gives
        another gradient.
        """
        if not self.plan.compiled or self.progress >= 1:
            return
        try:
            coming = self.plan.next_stage(self.progress)
            for stage in self.plan.stages if len(self.plan.sizes_drawn) > 1 else [coming]:
                start, batch = (
                    time.monotonic(),
                    self.noised(*banks[stage.size].draw(stage.batch, self.generator)),
                )
                agreement = self._agreement(batch)
                seconds = time.monotonic() - start
                log.info(
                    "%s %d px: gradient cosine %.5f, %.0f s", self.family, stage.size, agreement, seconds
                )
                if not agreement > LEAST_AGREEMENT:
                    raise RuntimeError(f"compiled gradient has cosine {agreement} with the plain one")
        except Exception:  # the compiler may fail in many ways, plain training always works
            log.exception("%s trains without torch.compile", self.family)
            self._stop_compiling()
        self.optimizer.zero_grad(set_to_none=True)

    def _agreement(self, batch: tuple[Tensor, ...]) -> float:
        """Cosine between the compiled gradient of a batch and the plain one, summed over small parts."""
        with torch.compiler.set_stance("force_eager"):  # first: it also fills the table of rotary angles
            plain = self._gradient(self._raw_loss, batch, 64)
        compiled = self._gradient(self._loss, batch, len(batch[0]))
        return F.cosine_similarity(compiled, plain, dim=0).item()

    def _gradient(self, function: Callable[..., Tensor], batch: tuple[Tensor, ...], part: int) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        for pieces in zip(*(tensor.split(part) for tensor in batch), strict=True):
            self._mixed(function, pieces).backward()
        return torch.cat([p.grad.flatten() for p in self.network.parameters() if p.grad is not None])

    def train(self, banks: dict[int, LatentBank], deadline: float, work: Path, until: float) -> None:
        """Train to this share of the plan by the deadline (`time.time()`), saving everything each minute."""
        start = saved = time.time()
        seconds, begin = max(1.0, deadline - start), self.progress
        while self.progress < until:
            stage = self._next_stage()
            self.step(*banks[stage.size].draw(int(stage.batch * self.share), self.generator), self.progress)
            if self.steps % SYNC_EVERY == 0:
                self.guard.look(self.recent_loss.item() / SYNC_EVERY, stage.size)
                self.recent_loss.zero_()
            if self.steps % LOG_EVERY == 0:
                self._log(stage)
            now = time.time()
            if now - saved > SAVE_EVERY_S:
                save_packed(self.average.state_dict(), work / f"{self.family}.safetensors")
                self.save_state(work)
                saved = now
            self.progress = min(until, begin + (until - begin) * (now - start) / seconds)
        log.info("%s: %d steps in %.0f s", self.family, self.steps, time.time() - start)

    def _next_stage(self) -> Stage:
        stage = self.plan.next_stage(self.progress)
        return self.plan.stages[0] if stage.mixed and self.steps % stage.mixed == 0 else stage

    def _log(self, stage: Stage) -> None:
        loss = self.loss_sum.item() / LOG_EVERY
        self.loss_sum.zero_()
        self.history.append((self.steps, stage.size, round(loss, 5)))
        share = 100 * self.progress
        log.info("%s step %d (%.0f %%, %d px) loss %.4f", self.family, self.steps, share, stage.size, loss)


@torch.no_grad()
def encode_bank(
    encoder: nn.Module, pictures: Tensor, items: list[Item], size: int, plan: Plan, vocabulary: Vocabulary
) -> LatentBank:
    """Encode several variants of every picture, each with its own background and prompts."""
    rng, device = random.Random(size), pictures.device
    latents, numbers = [], []
    for _ in range(plan.variants):
        for first in range(0, len(items), 64):
            part, names = pictures[first : first + 64], items[first : first + 64]
            backgrounds = [random_background(rng) for _ in names]
            image = whole_pictures(part, gradient_canvas(backgrounds, size, device), rng)
            with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                latents.append(encoder(image.contiguous(memory_format=torch.channels_last)).half())
            numbers += [
                [vocabulary.encode(prompt_words(item, background, rng)) for _ in range(plan.prompts)]
                for item, background in zip(names, backgrounds, strict=True)
            ]
    packed = torch.from_numpy(np.array(numbers, dtype=np.int16)).to(device)
    return LatentBank(torch.cat(latents).contiguous(), packed)
