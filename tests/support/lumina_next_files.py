"""A tiny Lumina-Next in diffusers' layout with random weights: every file that the loader reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from support import tiny_lumina_next as tiny

WORDS = ("<pad>", "<eos>", "<bos>", "<unk>", "a", "red", "fox", "in", "the", "snow", "sharp", ",")
GEMMA = {
    "vocab_size": len(WORDS),
    "hidden_size": tiny.CAPTION_WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 256,
}


def write_folder(folder: Path) -> Path:
    """Write all files of the pipeline to a folder; the text encoder is split into two files (shards)."""
    write_json(folder / "model_index.json", {"_class_name": "LuminaText2ImgPipeline"})
    write_json(folder / "scheduler" / "scheduler_config.json", {"shift": 3.0})
    config = {"_class_name": "LuminaNextDiT2DModel", "sample_size": tiny.SAMPLE_SIZE}
    write_json(folder / "transformer" / "config.json", config)
    save(network_weights(), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    text = gemma_weights()
    names = sorted(text)
    for i, half in enumerate((names[:9], names[9:]), start=1):
        path = folder / "text_encoder" / f"model-{i:05}-of-00002.safetensors"
        save({name: text[name] for name in half}, path)
    write_tokenizer(folder / "tokenizer" / "tokenizer.json")
    save(autoencoder_weights(), folder / "vae" / "diffusion_pytorch_model.safetensors")
    return folder


def network_weights() -> dict[str, torch.Tensor]:
    from comfy.ops import disable_weight_init
    from ras_pack.lumina_next.network import LuminaNextDiT

    with torch.device("meta"):
        network = LuminaNextDiT(**tiny.NETWORK_CONFIG, operations=disable_weight_init)
    return tiny.random_weights({name: t.shape for name, t in network.state_dict().items()})


def gemma_weights() -> dict[str, torch.Tensor]:
    from transformers import GemmaConfig, GemmaModel

    with torch.device("meta"):
        shapes = {name: t.shape for name, t in GemmaModel(GemmaConfig(**GEMMA)).state_dict().items()}
    return tiny.random_weights(shapes, seed=2)


def autoencoder_weights(channels: int = 4) -> dict[str, torch.Tensor]:
    """Weights of a tiny autoencoder that ComfyUI loads as a VAE: a hundredth of the size of SDXL's."""
    from comfy.taesd.taesd import TAESD

    generator = torch.Generator().manual_seed(3)
    shapes = {name: t.shape for name, t in TAESD(latent_channels=channels).state_dict().items()}
    weights = {}
    for name in sorted(shapes):  # ComfyUI does not initialise the network's own weights
        values = torch.randn(shapes[name], generator=generator)
        weights[name] = values / math.sqrt(values[0].numel()) if values.ndim > 1 else 0.1 * values
    weights["vae_scale"], weights["vae_shift"] = torch.tensor(1.0), torch.tensor(0.0)
    return weights


def write_tokenizer(path: Path, words: tuple[str, ...] = WORDS) -> None:
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(path))
    return path
