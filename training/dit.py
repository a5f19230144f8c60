"""Train one transformer family on the autoencoder's latents, with ComfyUI's own network classes."""

from __future__ import annotations

import copy
import json
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.ldm.lumina.model as lumina
import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..demo.loader import FAMILIES, POSITION_GRID, SD3_WIDTH, sincos_table, unpack_int8
from ..demo.prompt import encode_prompt
from . import lean
from .autoencoder import build_autoencoder, whole_pictures
from .collect import Item
from .data import Vocabulary, embed_numbers, full_prompt, gradient_canvas, prompt_words, random_background
from .export import pack_int8, save_packed

log = logging.getLogger(__name__)

LEARNING_RATES = {"sd3": 1e-3, "lumina2": 8e-4}
WARMUP_STEPS = 400
FLAT_SHARE = 0.5
EMA_DECAY = 0.9995
EMPTY_TEXT_SHARE = 0.1
TRAINING_SHIFT = 3.0
UNIFORM_TIME_SHARE = 0.1
SAMPLE_CFG = 3.5
LEAST_AGREEMENT = 0.98
SYNC_EVERY, LOG_EVERY, SAVE_EVERY_S = 25, 250, 60.0
BURST, KEEP_EVERY = 1.25, 10  # relative loss that counts as divergence; checks between copies
GRID_COLOURS = ("blue", "white", "yellow", "pink and orange", "green", "lavender", "navy", "mint gradient")


@dataclass(frozen=True)
class Stage:
    """One resolution of the training: image size, batch size, and the share of the time at which it ends."""

    size: int
    batch: int
    until: float


@dataclass(frozen=True)
class Plan:
    """A training run: its stages, latent variants of each image, and prompts per variant."""

    stages: tuple[Stage, ...] = (Stage(256, 512, 0.35), Stage(512, 192, 1.0))
    variants: int = 6
    prompts: int = 4
    sample_steps: int = 28
    compiled: bool = True


SMOKE_PLAN = Plan(
    stages=(Stage(256, 2, 0.4), Stage(512, 2, 1.0)), variants=1, prompts=2, sample_steps=2, compiled=False
)


@dataclass(frozen=True)
class LatentBank:
    """Latents (n, 16, h, w) fp16 and, for each, word indices (n, prompts, 16) of several prompts."""

    latents: Tensor
    numbers: Tensor

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random batch of latents and word indices; some prompts are empty."""
        chance = {"device": self.latents.device, "generator": generator}
        row = torch.randint(len(self.latents), (batch,), **chance)
        prompt = torch.randint(self.numbers.shape[1], (batch,), **chance)
        keep = torch.rand(batch, 1, **chance) >= EMPTY_TEXT_SHARE
        return self.latents[row].float(), self.numbers[row, prompt].long() * keep


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **options: object
) -> Tensor:
    """Computes the same as ComfyUI's attention, but without its branches, so that it compiles to one
    operation.
    """
    if not options.get("skip_reshape"):
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
    return out.transpose(1, 2).flatten(2)


def fixed_rotation(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Use the first row's rotary angles for the whole batch, computed once for each number of tokens.

    Compiled code then reads a table instead of computing trigonometry in double precision.
    """
    tables: dict[int, Tensor] = {}

    def wrapped(positions: Tensor) -> Tensor:
        if positions.shape[1] not in tables:
            tables[positions.shape[1]] = function(positions[:1].detach())
        return tables[positions.shape[1]]

    return wrapped


def plain_rotation(q: Tensor, k: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of queries and keys (b, n, heads, d) by (1, n, 1, d / 2, 2, 2), without in-place
    operations.
    """
    return _rotate(q, angles), _rotate(k, angles)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    pairs = x.float().unflatten(-1, (-1, 1, 2))
    return (angles[..., 0] * pairs[..., 0] + angles[..., 1] * pairs[..., 1]).flatten(-2).type_as(x)


def build_network(family: str) -> nn.Module:
    """The family's network with plain torch layers, newly initialised. Gates and output start at zero."""
    config = dict(FAMILIES[family].unet_config)
    if family == "sd3":
        network = mmdit.OpenAISignatureMMDITWrapper(**config, operations=nn)
        network.pos_embed = sincos_table(SD3_WIDTH, POSITION_GRID)
        embedders = (network.x_embedder, network.context_embedder)
        mmdit.optimized_attention = plain_attention
    else:
        network = lumina.NextDiT(**config, operations=nn)
        embedders = (network.x_embedder, network.cap_embedder)
        network.rope_embedder.forward = fixed_rotation(network.rope_embedder.forward)
        lumina.optimized_attention_masked, lumina.apply_rope = plain_attention, plain_rotation
    for name, parameter in network.named_parameters():
        _initialise(name, parameter)
    for embedder in embedders:  # the residual stream stays float32 under autocast
        embedder.register_forward_hook(lambda module, args, out: out.float())
    return network


@torch.no_grad()
def _initialise(name: str, parameter: Tensor) -> None:
    if (
        name == "cap_embedder.1.bias"
    ):  # padding rows must not be zero: eight norms would make their gradient explode
        nn.init.normal_(parameter, std=0.5)
    elif "adaLN_modulation" in name or name.startswith("final_layer") or name.endswith("bias"):
        nn.init.zeros_(parameter)
    elif parameter.ndim == 1:
        nn.init.ones_(parameter)
    elif "t_embedder" in name or "y_embedder" in name:
        nn.init.normal_(parameter, std=0.02)
    else:
        nn.init.xavier_uniform_(parameter.flatten(1))


def predict(
    network: nn.Module, family: str, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor
) -> Tensor:
    """Predicted noise minus image; calls the network as ComfyUI does at noise level `sigma` (b,)."""
    if family == "sd3":
        return network(x, sigma * 1000, context=context, y=pooled)
    return network._forward(x, sigma, context, context.shape[1])


def shift_time(u: Tensor, shift: float) -> Tensor:
    """Flow-matching shift of SD3 (Esser et al. 2024, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)


def random_sigma(batch: int, generator: torch.Generator) -> Tensor:
    """Shifted logit-normal noise levels, one in ten uniform, so that both ends occur."""
    chance = {"device": generator.device, "generator": generator}
    normal = shift_time(torch.sigmoid(torch.randn(batch, **chance)), TRAINING_SHIFT)
    uniform = torch.rand(batch, **chance)
    return torch.where(torch.rand(batch, **chance) < UNIFORM_TIME_SHARE, uniform, normal)


class DivergenceGuard:
    """Watches a trainer's loss. On divergence, it restores the last good state, without compilation and with
    half the learning rate.

    Attributes:
        rate_share: factor on the learning rate.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.rate_share = 1.0
        self._trainer, self._size, self._usual, self._looks = trainer, 0, math.inf, 0
        self._kept: list[dict] = []

    def look(self, loss: float, size: int) -> None:
        """Check the mean loss of the latest steps with images of this `size`."""
        if size != self._size:  # losses of different sizes cannot be compared
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
    """A step captured as a CUDA graph: launching its thousands of small kernels takes longer than running
    them.
    """

    WARM_UP = 3

    def __init__(self, trainer: Trainer, batch: tuple[Tensor, ...]) -> None:
        self._places = tuple(tensor.clone() for tensor in batch)
        start = time.monotonic()
        for _ in range(self.WARM_UP):  # compiles, and initialises libraries
            trainer.descend(self._places)
        trainer.optimizer.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
            self._loss = trainer.descend(self._places)
        log.info("%s: step captured in %.0f s", trainer.family, time.monotonic() - start)

    def __call__(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Replay with this batch; returns the loss, which is valid until the next step."""
        for place, tensor in zip(self._places, batch, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return self._loss


class Trainer:
    """Network, optimiser and running average of one family."""

    def __init__(self, family: str, device: torch.device, plan: Plan) -> None:
        torch.manual_seed(0)
        self.family, self.device, self.plan = family, device, plan
        # A separate generator: the default one is used by a captured step, also by a failed capture.
        self.generator = torch.Generator(device)
        self.generator.seed()
        self.network = build_network(family).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.parts = lean.install(self.network) if family == "lumina2" else {}
        # On a GPU NextDiT's step is captured (`Captured`), which needs the rate as a tensor.
        self.uses_graph = device.type == "cuda" and family == "lumina2"
        rate = torch.tensor(LEARNING_RATES[family], device=device) if self.uses_graph else 1e-3
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True,
            capturable=self.uses_graph,
        )  # fmt: skip
        self._captured: dict[int, Captured] = {}
        self.table = torch.zeros(1, 64, device=device)
        self.steps, self.history = 0, []
        self.loss_sum, self.recent_loss = torch.zeros((), device=device), torch.zeros((), device=device)
        self._loss, self.share = self._raw_loss, 1.0
        if plan.compiled:
            self._compile()
        self.autocast = device.type == "cuda"
        self.guard = DivergenceGuard(self)

    def _compile(self) -> None:
        """Compile SD3 as a whole, which takes a minute; of NextDiT only the elementwise parts (lean.py)."""
        torch._dynamo.config.recompile_limit = 64
        if self.family == "sd3":
            self._loss = torch.compile(self._raw_loss, dynamic=False)
        else:
            self.parts.update(lean.compiled())

    def _stop_compiling(self) -> None:
        """Return to plain code with half the batch size, since it needs more memory."""
        self._captured.clear()
        self._loss, self.share = self._raw_loss, 0.5
        self.parts.update(lean.PLAIN)

    def _raw_loss(self, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor, target: Tensor) -> Tensor:
        out = predict(self.network, self.family, x, sigma, context, pooled)
        return F.mse_loss(out.float(), target)

    def loss(self, latent: Tensor, numbers: Tensor) -> Tensor:
        """Flow-matching loss of one batch."""
        return self._mixed(self._loss, self.noised(latent, numbers))

    def noised(self, latent: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        """Inputs of the loss: noisy latents, levels, context, pooled vectors and targets."""
        context, pooled = embed_numbers(self.table, numbers)
        sigma = random_sigma(len(latent), self.generator)
        noise = torch.randn(latent.shape, device=self.device, generator=self.generator)
        level = sigma[:, None, None, None]
        return level * noise + (1 - level) * latent, sigma, context, pooled, noise - latent

    def _mixed(self, function: Callable[..., Tensor], batch: Sequence[Tensor]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return function(*batch)

    def step(self, latent: Tensor, numbers: Tensor, progress: float) -> None:
        """One optimiser step; the learning rate is constant for half of the time, then decays as a cosine."""
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
        """Update the weights once; returns the loss."""
        if not self.uses_graph:
            return self.descend(batch)
        rows = batch[0].shape[-1]
        if rows not in self._captured:
            try:
                self._captured[rows] = Captured(self, batch)
            except Exception:  # the driver may refuse; plain training always works
                log.exception("%s: a step cannot be captured, using plain steps from here", self.family)
                self.uses_graph = False
                return self.descend(batch)
        return self._captured[rows](batch)

    def descend(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Compute the gradient of a batch and apply the optimiser; returns the loss."""
        loss = self._mixed(self._loss, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def resume(self, work: Path) -> None:
        """Continue from the full state of an earlier call, or else from packed weights, if there are any."""
        state, packed = work / f"state_{self.family}.pt", work / f"{self.family}.safetensors"
        if state.exists():
            saved = torch.load(state, map_location=self.device)
            self.network.load_state_dict(saved["network"])
            self.average.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.steps, self.history = saved["steps"], saved["history"]
        elif packed.exists():
            weights = {name: tensor.float() for name, tensor in unpack_int8(load_file(packed)).items()}
            self.network.load_state_dict(weights, strict=False)
            self.average.load_state_dict(weights, strict=False)
        log.info(
            "%s continues from %s", self.family, next((p for p in (state, packed) if p.exists()), "nothing")
        )

    def save_state(self, work: Path) -> None:
        """Save everything that the next call needs to continue without a difference."""
        state = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "steps": self.steps, "history": self.history}
        torch.save(state, work / f"state_{self.family}.pt")

    def check_compiled(self, banks: dict[int, LatentBank], begin: float = 0.0) -> None:
        """Compile for the stage at `begin`; return to plain code if that fails or changes the gradient."""
        if not self.plan.compiled:
            return
        try:
            for stage in [stage for stage in self.plan.stages if stage.until > begin][:1]:
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
        except Exception:  # the compiler may fail in many ways; plain training always works
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

    def train(
        self, banks: dict[int, LatentBank], deadline: float, checkpoint: Path, span: tuple[float, float]
    ) -> None:
        """Train this `span` of the plan until the deadline (`time.time()`), saving weights every minute."""
        start = saved = time.time()
        seconds, progress = max(1.0, deadline - start), span[0]
        while progress < span[1]:
            stage = next(stage for stage in self.plan.stages if progress < stage.until)
            self.step(*banks[stage.size].draw(int(stage.batch * self.share), self.generator), progress)
            if self.steps % SYNC_EVERY == 0:
                self.guard.look(self.recent_loss.item() / SYNC_EVERY, stage.size)
                self.recent_loss.zero_()
            if self.steps % LOG_EVERY == 0:
                self._log(stage, progress)
            now = time.time()
            if now - saved > SAVE_EVERY_S:
                save_packed(self.average.state_dict(), checkpoint)
                saved = now
            progress = span[0] + (span[1] - span[0]) * (now - start) / seconds
        log.info("%s: %d steps in %.0f s", self.family, self.steps, time.time() - start)

    def _log(self, stage: Stage, progress: float) -> None:
        loss = self.loss_sum.item() / LOG_EVERY
        self.loss_sum.zero_()
        self.history.append((self.steps, stage.size, round(loss, 5)))
        log.info(
            "%s step %d (%.0f %%, %d px) loss %.4f", self.family, self.steps, 100 * progress, stage.size, loss
        )


@torch.no_grad()
def encode_bank(
    encoder: nn.Module, pictures: Tensor, items: list[Item], size: int, plan: Plan, vocabulary: Vocabulary
) -> LatentBank:
    """Encode several variants of every image, each with its own background and prompts."""
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


@torch.no_grad()
def sample(
    network: nn.Module, family: str, prompts: list[str], shift: float, steps: int, device: torch.device
) -> Tensor:
    """512-px latents of prompts: Euler steps with guidance from seeded noise, as in KSampler."""
    pairs = [encode_prompt(prompt) for prompt in prompts]
    context = torch.cat([pair[0] for pair in pairs]).to(device)
    pooled = torch.cat([pair[1] for pair in pairs]).to(device)
    context, pooled = torch.cat((context, 0 * context)), torch.cat((pooled, 0 * pooled))
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(len(prompts), 16, 64, 64, generator=generator).to(device)
    sigmas = shift_time(torch.linspace(1, 0, steps + 1), shift).tolist()
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        level = torch.full((2 * len(x),), sigma, device=device)
        cond, uncond = predict(network, family, torch.cat((x, x)), level, context, pooled).chunk(2)
        x = x + (following - sigma) * (uncond + SAMPLE_CFG * (cond - uncond))
    return x


@torch.no_grad()
def fixed_loss(trainer: Trainer, bank: LatentBank, rows: int = 256) -> float:
    """Loss of the averaged weights for fixed rows, noise and levels, with text."""
    values = []
    trainer.generator.manual_seed(1)
    for first in range(0, min(rows, len(bank.latents)), 32):
        latent = bank.latents[first : first + 32].float()
        numbers = bank.numbers[first : first + 32, 0].long()
        x, sigma, context, pooled, target = trainer.noised(latent, numbers)
        out = predict(trainer.average, trainer.family, x, sigma, context, pooled)
        values.append(F.mse_loss(out, target).item())
    trainer.generator.seed()
    return sum(values) / len(values)


def evaluate(trainer: Trainer, decoder: nn.Module, held_out: list[Item], out: Path) -> dict[str, float]:
    """Sample held-out prompts with float and packed weights; save grids, return the PSNR between them."""
    picked = random.Random(3).sample(held_out, min(16, len(held_out)))
    prompts = [full_prompt(item, GRID_COLOURS[i % len(GRID_COLOURS)]) for i, item in enumerate(picked)]
    device = trainer.device
    packed = copy.deepcopy(trainer.average)
    state = unpack_int8(pack_int8(trainer.average.state_dict()))
    packed.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    figures = {}
    for shift in (3.0, 6.0) if trainer.family == "lumina2" else (3.0,):
        image, other = (
            decode(
                decoder, sample(network, trainer.family, prompts, shift, trainer.plan.sample_steps, device)
            )
            for network in (trainer.average, packed)
        )
        error = (image - other).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
        figures[f"int8_psnr_shift{shift:g}"] = (-10 * error.log10()).mean().item()
        save_grid(other, out / f"grid_{trainer.family}_shift{shift:g}.png")
    log.info("grid prompts: %s", json.dumps(prompts))
    return figures


@torch.no_grad()
def decode(decoder: nn.Module, latents: Tensor) -> Tensor:
    """Decode latents to images (b, 3, h, w) in 0..1."""
    return torch.cat([decoder(part).clamp(0, 1) for part in latents.split(4)])


def save_grid(images: Tensor, path: Path, columns: int = 4) -> None:
    """Write images as one PNG, row by row."""
    from PIL import Image

    columns = min(columns, len(images))
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns) if len(row) == columns]
    sheet = (torch.cat(rows, dim=1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(sheet).save(path)


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
    """Wait for the autoencoder, encode, train a span of the plan until the deadline, measure and save."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if device.type == "cuda":
        # Gradients are summed on the stream of their first use, also in a capture, so all work is on one
        # stream.
        # It is not the default stream, on which nothing can be captured.
        torch.cuda.set_stream(torch.cuda.Stream())
    trainer = Trainer(family, device, plan)
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
    test_bank = encode_bank(encoder, test_pictures, unseen, sizes[-1], one, vocabulary)
    del train_pictures, test_pictures
    trainer.table = vocabulary.table().to(device)
    log.info("%s: banks of %d latents in %.0f s", family, len(banks[sizes[0]].latents), time.time() - begun)
    figures = {"first_test_loss": fixed_loss(trainer, test_bank)}
    log.info("%s starts with a loss of %.4f on held-out images", family, figures["first_test_loss"])
    trainer.check_compiled(banks, span[0])
    trainer.train(banks, deadline, work / f"{family}.safetensors", span)
    trainer.save_state(work)
    state = {name: tensor.half().cpu().contiguous() for name, tensor in trainer.average.state_dict().items()}
    save_file(state, work / f"{family}_fp16.safetensors")
    save_packed(trainer.average.state_dict(), work / f"{family}.safetensors")
    figures |= evaluate(trainer, pair["taesd_decoder"], unseen, work)
    figures |= {
        "train_loss": fixed_loss(trainer, banks[sizes[-1]]),
        "test_loss": fixed_loss(trainer, test_bank),
    }
    figures |= {"steps": trainer.steps, "history": trainer.history, "vocabulary": len(vocabulary.numbers)}
    (work / f"figures_{family}.json").write_text(json.dumps(figures))
    log.info("%s figures: %s", family, {k: v for k, v in figures.items() if k != "history"})
