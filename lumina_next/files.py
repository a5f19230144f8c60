"""Finds the weight files of a part of the model (transformer, text encoder or VAE), reads their headers, and
builds errors for wrong files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import comfy.utils
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..ras_core.errors import RASError

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)[.-]")
SUFFIXES = (".safetensors", ".sft")
LONGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses longer headers
INCOMPLETE = ("incomplete metadata", "MetadataIncompleteBuffer")
"""Parts of the error messages with which different versions of the safetensors library report that a file has
fewer or more bytes than its header states."""

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
"""The supported data types of weights. Weights of other types, such as int8, would need scales."""

MOST_LAYERS = 256
"""Largest number of layers for which a network is built, in order to compare its tensors with those of a
file. Lumina-Next has 24 layers, Gemma-2B has 18."""

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
        """The error for a wrong file of this part; `what` is a sentence that says what is wrong with the
        file.
        """
        return RASError(what, f"{self.needed}.", f"choose that file for {self.label}, or download it again.")


TRANSFORMER = Part(
    "transformer", "diffusion_models",
    "the transformer of Lumina-Next-SFT in diffusers' layout",
)  # fmt: skip
TEXT_ENCODER = Part(
    "text_encoder", "text_encoders",
    "Gemma-2B of the first generation, in transformers' names",
)  # fmt: skip
VAE = Part("vae", "vae", "the VAE of SDXL, which has 4 latent channels, as one safetensors file")


Entry = tuple[tuple[int, ...], str]
"""Shape and data type of a tensor in a file."""


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
        """A description of the file for messages, such as 'the transformer file x.safetensors'; of several
        shards, the first is named.
        """
        return f"the {self.part.label} file {self.paths[0].name}"

    @property
    def kind(self) -> str:
        """The kind of model in the file, such as 'a Flux model': the first of `KINDS` that fits a tensor."""
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

    def check_floats(self) -> None:
        """Refuse weights that are not floating-point numbers.

        Raises:
            RASError: a weight has a data type that is not in FLOATS; the message names this data type.
        """
        if others := sorted(self.dtypes - FLOATS):
            raise self.part.refuse(f"{self.name} has weights of the data type {others[0]}.")

    def count_layers(self) -> int:
        """Number of layers in the file: the number of different i in tensor names that start with
        `layers.i.`.

        Raises:
            RASError: the file has more than MOST_LAYERS layers.
        """
        count = len({name.split(".")[1] for name in self.shapes if name.startswith("layers.")})
        if count > MOST_LAYERS:
            raise self.part.refuse(f"{self.name} has {count:,} layers.")
        return count

    def load(self) -> dict[str, Tensor]:
        """Load the tensors of all files to the CPU, under the same names as in `shapes`.

        Raises:
            RASError: a file cannot be read, for example because it was deleted after its header was read.
        """
        state: dict[str, Tensor] = {}
        try:
            for path in self.paths:
                state.update(comfy.utils.load_torch_file(str(path), safe_load=True))
        except (SafetensorError, OSError, ValueError) as error:
            raise self.part.refuse(f"{self.name} cannot be read ({error}).") from error
        return {_bare(name): tensor for name, tensor in state.items()}


def read_header(part: Part, path: Path) -> Header:
    """Read the header of a file; if the file is one of several shards, the headers of all shards.

    Raises:
        RASError: one of the files is missing, truncated, or not a safetensors file; or two tensors have the
            same name.
    """
    paths = _with_shards(part, path)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: set[str] = set()
    for each in paths:
        for name, (shape, dtype) in _entries(part, each).items():
            if _bare(name) in shapes:
                raise part.refuse(f"the {part.label} file {each.name} has the tensor {_bare(name)} twice.")
            shapes[_bare(name)] = shape
            dtypes.add(dtype)
    return Header(part, paths, shapes, frozenset(dtypes))


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
    own, count, stem = int(match.group(1)), int(match.group(2)), path.name[: match.start()]
    if not 1 <= own <= count:
        raise part.refuse(f"the {part.label} file {path.name} is by its name shard {own} of {count}.")
    shards = []
    for i in range(1, count + 1):
        shards.append(path.with_name(f"{stem}-{i:05}-of-{count:05}.safetensors"))
        if not shards[-1].is_file():
            raise part.refuse(f"the {part.label} has {count} shards, of which {shards[-1].name} is missing.")
    return tuple(shards)


def _entries(part: Part, path: Path) -> dict[str, Entry]:
    """Shape and data type of each tensor of a safetensors file, by the tensor's name.

    Raises:
        RASError: the file is missing, incomplete or not a safetensors file, or one of its tensors is empty.
    """
    name = f"the {part.label} file {path.name}"
    if not path.is_file():
        raise part.refuse(f"{name} does not exist.")
    if path.suffix.lower() not in SUFFIXES:  # ComfyUI would read a file with another suffix in another format
        raise part.refuse(f"{name} is not named as a safetensors file.")
    try:
        size, entries = path.stat().st_size, _header(path)
    except (SafetensorError, OSError) as error:
        raise part.refuse(f"{name} {_unusable(path, error)}.") from None
    empty = min((key for key, (shape, _) in entries.items() if 0 in shape), default=None)
    if empty is not None:
        raise part.refuse(f"{name} ({size:,} bytes) has an empty tensor: {empty}.")
    return entries


def _header(path: Path) -> dict[str, Entry]:
    with safe_open(str(path), framework="pt") as file:
        slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118 (`file` is not a dict)
        return {name: (tuple(each.get_shape()), str(each.get_dtype())) for name, each in slices}


def _unusable(path: Path, error: Exception) -> str:
    """Why a file is not a complete safetensors file, as the end of a sentence that begins with the file's
    name.

    Args:
        error: the exception that was raised when the file's header was read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as reason:
        return f"cannot be read ({reason.strerror})"
    if start.startswith(b"version "):
        return f"is a Git LFS pointer ({size} bytes), not the weights"
    length = int.from_bytes(start, "little")
    lacks_header = len(start) == 8 and 8 + length > size and length <= LONGEST_HEADER
    if lacks_header or any(each in str(error) for each in INCOMPLETE):
        return f"is cut short, or does not fit its header: it has {size:,} bytes"
    return f"is no safetensors file ({size:,} bytes)"


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name
