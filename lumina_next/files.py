"""Finds the weight files of a part of the model (transformer, text encoder or VAE), reads their headers, and
builds errors for wrong files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import comfy.utils
from torch import Tensor

from ..ras_core.errors import RASError

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)[.-]")
LONGEST_HEADER = 100 * 2**20
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""Prefixes that ComfyUI's own nodes add to the tensor names of a saved network."""

# Kinds of weight files: (part of a tensor's name, kind). A file is of the first kind that matches a tensor.
KINDS = (
    ("lora_", "a LoRA"),
    ("joint_blocks.0.", "an SD3 / SD3.5 model"),
    ("attn.add_q_proj.", "an SD3, SD3.5 or Flux model in diffusers' layout"),
    ("double_blocks.0.", "a Flux model"),
    ("noise_refiner.0.", "a Lumina-Image-2.0 or Z-Image model"),
    ("attention.wk_y.", "a Lumina-Next transformer in its original layout"),
    ("attn2.to_k.weight", "a transformer or U-Net with cross-attention in diffusers' layout"),
    ("input_blocks.0.", "an SD1, SD2 or SDXL model"),
    ("encoder.block.0.", "a T5 text encoder"),
    ("text_model.encoder.", "a CLIP text encoder"),
    ("pre_feedforward_layernorm", "a Gemma 2 or Gemma 3 text encoder"),
    ("self_attn.q_proj.bias", "a Qwen language model"),
    ("self_attn.q_proj.weight", "a language model of Gemma's or Llama's kind"),
    ("taesd_decoder.", "a tiny autoencoder"),
    ("decoder.conv_in.", "a VAE"),
)


@dataclass(frozen=True)
class Part:
    """One of the three parts of the model: transformer, text encoder or VAE.

    Attributes:
        label: name in messages, also the name of the part's folder in diffusers' layout.
        models: name of the part's folder in ComfyUI's models folder.
        needed: description of the file that is needed for this part.
    """

    label: str
    models: str
    needed: str

    def refuse(self, what: str) -> RASError:
        """The error for a wrong file of this part; `what` is a sentence that says what is wrong with it."""
        return RASError(what, f"{self.needed}.", f"choose that file for {self.label}, or download it again.")


TRANSFORMER = Part(
    "transformer", "diffusion_models",
    "the transformer of Lumina-Next-T2I in diffusers' layout "
    "(transformer/diffusion_pytorch_model.safetensors of Lumina-Next-SFT-diffusers)",
)  # fmt: skip
TEXT_ENCODER = Part(
    "text_encoder", "text_encoders",
    "the text encoder of Lumina-Next: Gemma-2B of the first generation, in transformers' names",
)  # fmt: skip
VAE = Part("vae", "vae", "the VAE of SDXL, which has 4 latent channels, as one safetensors file")


@dataclass(frozen=True)
class Header:
    """The headers of a part's weight files, as one table of tensors.

    Attributes:
        part: the part that the files were chosen for.
        paths: the weight file, or all its shards in order.
        shapes: shape of each tensor, by its name without the prefix that ComfyUI adds to tensor names when it
            saves a network.
        dtypes: names of all data types in the files, in safetensors' spelling, such as "BF16".
    """

    part: Part
    paths: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    dtypes: frozenset[str]

    @property
    def name(self) -> str:
        """The name of the file, or of the first of several shards, in messages, such as 'the transformer file
        x.safetensors'.
        """
        return f"the {self.part.label} file {self.paths[0].name}"

    @property
    def kind(self) -> str:
        """What kind of file it is, judging by its tensor names, such as 'a Flux model' (see `KINDS`)."""
        return next(
            (kind for piece, kind in KINDS if any(piece in name for name in self.shapes)),
            "a file of an unknown kind",
        )

    def wrong_kind(self) -> RASError:
        """The error for a file that contains a model of another kind than this part needs."""
        first = min(self.shapes, default="no tensor at all")
        return self.part.refuse(f"{self.name} is {self.kind} (it holds {first}).")

    def check(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Compare the names and shapes of the tensors with the expected ones.

        Raises:
            RASError: names or shapes differ. The message says how many tensors differ, and names one of them.
        """
        missing = sorted(expected.keys() - self.shapes.keys())
        surplus = sorted(self.shapes.keys() - expected.keys())
        shaped = sorted(k for k in expected if k in self.shapes and expected[k] != self.shapes[k])
        if not (missing or surplus or shaped):
            return
        if missing:
            first = f"{missing[0]} is missing"
        elif surplus:
            first = f"{surplus[0]} is unknown"
        else:
            first = f"{shaped[0]} has shape {self.shapes[shaped[0]]} instead of {expected[shaped[0]]}"
        count = len(missing) + len(surplus) + len(shaped)
        raise self.part.refuse(
            f"{self.name} differs in {count} of {len(expected)} tensors, for example: {first}."
        )

    def load(self) -> dict[str, Tensor]:
        """Load the tensors of all files to the CPU, under the same names as in `shapes`."""
        state: dict[str, Tensor] = {}
        for path in self.paths:
            state.update(comfy.utils.load_torch_file(str(path), safe_load=True))
        return {_bare(name): tensor for name, tensor in state.items()}


def read_header(part: Part, path: Path) -> Header:
    """Read the header of a file; if the file is one of several shards, the headers of all shards.

    Raises:
        RASError: one of the files is missing, truncated, or not a safetensors file.
    """
    paths = _with_shards(part, path)
    entries: dict[str, dict] = {}
    for each in paths:
        entries.update(_entries(part, each))
    shapes = {_bare(name): tuple(entry["shape"]) for name, entry in entries.items()}
    return Header(part, paths, shapes, frozenset(entry["dtype"] for entry in entries.values()))


def part_in_folder(part: Part, folder: Path) -> Path:
    """The weight file of a part (or its first shard) in diffusers' layout: `<folder>/<part>/*.safetensors`.

    Raises:
        RASError: the folder has no safetensors file for this part.
    """
    files = sorted((folder / part.label).glob("*.safetensors"))
    plain = [path for path in files if not VARIANT.search(path.name)]
    if not files:
        raise RASError(
            f"the folder {folder.name} has no safetensors file in {part.label}/.",
            f"{part.needed}.",
            f"download that file into {folder.name}/{part.label}/, or choose a file for {part.label}.",
        )
    return (plain or files)[0]


def _with_shards(part: Part, path: Path) -> tuple[Path, ...]:
    match = SHARD.search(path.name)
    if match is None:
        return (path,)
    count, stem = int(match.group(2)), path.name[: match.start()]
    shards = [path.with_name(f"{stem}-{i:05}-of-{count:05}.safetensors") for i in range(1, count + 1)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise part.refuse(f"the {part.label} has {count} shards, of which {', '.join(missing)} is missing.")
    return tuple(shards)


def _entries(part: Part, path: Path) -> dict[str, dict]:
    """The header of a safetensors file: tensor name -> dtype, shape and offsets of the data."""
    name = f"the {part.label} file {path.name}"
    if not path.is_file():
        raise part.refuse(f"{name} does not exist.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start.startswith(b"version "):
            raise part.refuse(f"{name} is a Git LFS pointer ({size} bytes), not the weights.")
        if len(start) < 8 or length > LONGEST_HEADER:
            raise part.refuse(f"{name} is no safetensors file ({size:,} bytes).")
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        state = "is cut short" if len(raw) < length else "is no safetensors file"
        raise part.refuse(f"{name} {state} ({size:,} bytes).") from None
    if size < end:
        raise part.refuse(f"{name} is cut short: it has only {size:,} of its {end:,} bytes.")
    return entries


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name
