"""Train the transformer of one family on the autoencoder's latents, with ComfyUI's own network class."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..demo.loader import unpack_int8
from . import lean
from .bank import LatentBank
from .data import embed_numbers
from .export import save_packed
from .network import build_network, predict, shift_time
from .plan import Plan, Stage

log = logging.getLogger(__name__)

LEARNING_RATES = {"sd3": 1e-3, "lumina2": 8e-4, "flux": 1e-3, "flux_edit": 8e-4}
BASES = {"flux_edit": "flux"}
"""For each family that continues the training of another family's network: the name of the other family."""
WARMUP_STEPS = 400
FLAT_SHARE = 0.5
EMA_DECAY = 0.9995
TRAINING_SHIFT = 3.0
UNIFORM_TIME_SHARE = 0.1
LEAST_AGREEMENT = 0.98
SYNC_EVERY, LOG_EVERY, SAVE_EVERY_S = 25, 250, 60.0
# A loss of BURST times its running average has diverged. The state is copied at every KEEP_EVERY-th check.
BURST, KEEP_EVERY = 1.25, 10


def random_sigma(batch: int, generator: torch.Generator) -> Tensor:
    """Random noise levels: shifted logit-normal, but one in ten uniform so that levels near 0 and 1 occur."""
    chance = {"device": generator.device, "generator": generator}
    normal = shift_time(torch.sigmoid(torch.randn(batch, **chance)), TRAINING_SHIFT)
    uniform = torch.rand(batch, **chance)
    return torch.where(torch.rand(batch, **chance) < UNIFORM_TIME_SHARE, uniform, normal)


class DivergenceGuard:
    """Watches a trainer's loss. If the loss diverges, restores the last good state of the training.

    Training then continues without compilation and with half the learning rate.

    Attributes:
        rate_share: factor on the learning rate, halved at each divergence.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.rate_share = 1.0
        self._trainer, self._size, self._usual, self._looks = trainer, 0, math.inf, 0
        self._kept: list[dict] = []

    def look(self, loss: float, size: int) -> None:
        """Check whether the mean `loss` of the latest steps has diverged; if so, restore the last good state.

        All these steps were at the image size `size`, in pixels.
        """
        if size != self._size:  # losses of different image sizes cannot be compared
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
            "%s: loss %.4f after %.4f at step %d; restored last good state, not compiled, at half rate",
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
    """A training step captured as a CUDA graph.

    Without a graph, launching the step's thousands of small kernels would take longer than running them.
    """

    WARM_UP = 3

    def __init__(self, trainer: Trainer, batch: tuple[Tensor, ...]) -> None:
        self._places = tuple(tensor.clone() for tensor in batch)
        start = time.monotonic()
        for _ in range(self.WARM_UP):  # compiles the functions, and lets libraries initialise
            trainer.descend(self._places)
        trainer.optimizer.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
            self._loss = trainer.descend(self._places)
        log.info(
            "%s: captured the training step as a CUDA graph in %.0f s",
            trainer.family,
            time.monotonic() - start,
        )

    def __call__(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Run the step on this batch by replaying the CUDA graph.

        Returns the loss. It is a tensor that the next replay of the graph overwrites.
        """
        for place, tensor in zip(self._places, batch, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return self._loss


class Trainer:
    """Trains one family: its network, the optimiser, and the running average (EMA) of the weights."""

    def __init__(self, family: str, device: torch.device, plan: Plan) -> None:
        torch.manual_seed(0)
        self.family, self.device, self.plan = family, device, plan
        self.base = BASES.get(family, family)
        # Not the default generator, since a CUDA graph capture takes possession of it, even if it fails.
        self.generator = torch.Generator(device)
        self.generator.seed()
        self.network = build_network(self.base).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.parts = lean.install(self.network) if family == "lumina2" else {}
        # On a GPU, NextDiT's step is captured (`Captured`), which needs the learning rate as a tensor.
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
        """Compile the whole loss for SD3 and Flux, only the functions in lean.py for NextDiT."""
        torch._dynamo.config.recompile_limit = 64
        if self.family == "lumina2":
            self.parts.update(lean.compiled())
        else:
            self._loss = torch.compile(self._raw_loss, dynamic=False)

    def _stop_compiling(self) -> None:
        """Turn off compilation and drop captured steps.

        Also halves the batch size, because eager code needs more memory.
        """
        self._captured.clear()
        self._loss, self.share = self._raw_loss, 0.5
        if self.parts:
            self.parts.update(lean.PLAIN)

    def _raw_loss(
        self, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor, target: Tensor, *references: Tensor
    ) -> Tensor:
        out = predict(self.network, self.base, x, sigma, context, pooled, references)
        return F.mse_loss(out.float(), target)

    def noised(self, latent: Tensor, numbers: Tensor, *references: Tensor) -> tuple[Tensor, ...]:
        """The arguments of the loss: noisy latents, noise levels, context, pooled vectors, targets, and the
        latents of reference images.
        """
        context, pooled = embed_numbers(self.table, numbers)
        sigma = random_sigma(len(latent), self.generator)
        noise = torch.randn(latent.shape, device=self.device, generator=self.generator)
        level = sigma[:, None, None, None]
        return level * noise + (1 - level) * latent, sigma, context, pooled, noise - latent, *references

    def _mixed(self, function: Callable[..., Tensor], batch: Sequence[Tensor]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return function(*batch)

    def step(self, batch: Sequence[Tensor], progress: float) -> None:
        """One optimiser step on a batch that a bank has drawn.

        After a warm-up, the learning rate is constant in the first half of the training time. In the second
        half it falls along a cosine to 1 % of this constant rate.
        """
        fall = max(0.0, (progress - FLAT_SHARE) / (1 - FLAT_SHARE))
        rate = LEARNING_RATES[self.family] * min(1, (self.steps + 1) / WARMUP_STEPS) * self.guard.rate_share
        self._set_rate(rate * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, fall)))))
        loss = self._update(self.noised(*batch))
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
        """Update the weights on one batch, by a captured step where possible; returns the loss."""
        if not self.uses_graph:
            return self.descend(batch)
        rows = batch[0].shape[-1]
        if rows not in self._captured:
            try:
                self._captured[rows] = Captured(self, batch)
            except Exception:  # capture may fail; eager training always works
                log.exception(
                    "%s: the step cannot be captured; training continues without CUDA graphs", self.family
                )
                self.uses_graph = False
                return self.descend(batch)
        return self._captured[rows](batch)

    def descend(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Compute the gradient on one batch and apply the optimiser; returns the loss."""
        loss = self._mixed(self._loss, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def resume(self, work: Path) -> None:
        """Continue from what earlier calls saved in `work`.

        Loads the saved state of the training. If there is none, loads the family's packed int8 weights. If
        there are none either, the training starts from the initial weights.
        """
        state, packed = work / f"state_{self.family}.pt", self.packed_weights(work)
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

    def packed_weights(self, work: Path) -> Path:
        """The file of packed int8 weights that the training starts from if there is no saved state."""
        return work / f"{self.family}.safetensors"

    def save_state(self, work: Path) -> None:
        """Save what a later call needs to continue the training: weights, optimiser, steps and progress."""
        state = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "steps": self.steps, "history": self.history}
        path = work / f"state_{self.family}.pt"
        partial = path.with_suffix(".part")
        torch.save(state | {"progress": self.progress}, partial)
        partial.rename(path)

    def check_compiled(self, banks: dict[int, LatentBank]) -> None:
        """Check that compilation works: compile the loss and compare its gradient with the eager one.

        Does so at the image sizes of `stages_to_check`. Turns compilation off if it fails, or if the two
        gradients differ.
        """
        if not self.plan.compiled or self.progress >= 1:
            return
        try:
            for stage in self.stages_to_check():
                start, batch = (
                    time.monotonic(),
                    self.noised(*banks[stage.size].draw(stage.batch, self.generator)),
                )
                agreement = self._agreement(batch)
                seconds = time.monotonic() - start
                log.info(
                    "%s %d px: cosine of compiled and eager gradient %.5f, %.0f s",
                    self.family,
                    stage.size,
                    agreement,
                    seconds,
                )
                if not agreement > LEAST_AGREEMENT:
                    raise RuntimeError(f"cosine of compiled and eager gradient is only {agreement}")
        except Exception:  # the compiler may fail in many ways; eager training always works
            log.exception("%s trains without torch.compile", self.family)
            self._stop_compiling()
        self.optimizer.zero_grad(set_to_none=True)

    def stages_to_check(self) -> Sequence[Stage]:
        """The coming stage, or all stages if the last stage of the plan mixes image sizes."""
        if len(self.plan.sizes_drawn) > 1:
            return self.plan.stages
        return [self.plan.next_stage(self.progress)]

    def _agreement(self, batch: tuple[Tensor, ...]) -> float:
        """Cosine between the compiled gradient of a batch and the eager one.

        The eager gradient is summed over parts of 64 images, because eager code needs more memory.
        """
        with torch.compiler.set_stance("force_eager"):  # also fills the table of rotary angles
            plain = self._gradient(self._raw_loss, batch, 64)
        compiled = self._gradient(self._loss, batch, len(batch[0]))
        return F.cosine_similarity(compiled, plain, dim=0).item()

    def _gradient(self, function: Callable[..., Tensor], batch: tuple[Tensor, ...], part: int) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        for pieces in zip(*(tensor.split(part) for tensor in batch), strict=True):
            self._mixed(function, pieces).backward()
        return torch.cat([p.grad.flatten() for p in self.network.parameters() if p.grad is not None])

    def train(self, banks: dict[int, LatentBank], deadline: float, work: Path, until: float) -> None:
        """Train until the time `deadline`, in seconds as of `time.time()`.

        The progress through the plan follows the time: it reaches the share `until` at the deadline. Saves
        weights and state once a minute.
        """
        start = saved = time.time()
        seconds, begin = max(1.0, deadline - start), self.progress
        while self.progress < until:
            stage = self._next_stage()
            self.step(self.draw(banks[stage.size], int(stage.batch * self.share)), self.progress)
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
        log.info("%s: at step %d after %.0f s", self.family, self.steps, time.time() - start)

    def draw(self, bank: LatentBank, batch: int) -> tuple[Tensor, ...]:
        """The next batch of the training."""
        return bank.draw(batch, self.generator)

    def _next_stage(self) -> Stage:
        stage = self.plan.next_stage(self.progress)
        return self.plan.stages[0] if stage.mixed and self.steps % stage.mixed == 0 else stage

    def _log(self, stage: Stage) -> None:
        loss = self.loss_sum.item() / LOG_EVERY
        self.loss_sum.zero_()
        self.history.append((self.steps, stage.size, round(loss, 5)))
        share = 100 * self.progress
        log.info("%s step %d (%.0f %%, %d px) loss %.4f", self.family, self.steps, share, stage.size, loss)
