"""Text for Lumina-Next: Gemma-2B from `transformers`, wrapped as a CLIP for ComfyUI.

As in the reference code, a prompt is converted to lower case and truncated to 256 tokens. The caption
embeddings are the hidden states that enter Gemma's last layer.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.model_management as model_management
import comfy.sd
import torch
from comfy.sd1_clip import ClipTokenWeightEncoder, SD1Tokenizer, SDTokenizer
from comfy.supported_models_base import ClipTarget
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..ras_core.errors import RASError
from .files import Header

logger = logging.getLogger(__name__)

NAME = "gemma_2b"
TOKENIZER = "gemma_2b_tokenizer"
HEAD_DIM = 256  # every Gemma of the first generation has heads of this size
MAX_TOKENS = 256
LAYER = -2
PAD, BOS = 0, "<bos>"
PROBE = "a red fox, 3 €"  # a tokenizer that cannot encode this is refused before the weights are loaded


def load_clip(header: Header, tokenizer: Path, caption_width: int) -> comfy.sd.CLIP:
    """Load CLIP from the weight files and the tokenizer of Gemma.

    Args:
        header: header of the text encoder's files.
        tokenizer: path of Gemma's tokenizer.json.
        caption_width: width of the caption embeddings that the transformer takes.

    Raises:
        RASError: the file is not Gemma, its width does not match, or the tokenizer is of another model.
    """
    sizes = gemma_sizes(header, caption_width)
    vocabulary = Vocabulary.from_pretrained(tokenizer)
    count = max(vocabulary.get_vocab().values()) + 1
    if count > sizes["vocab_size"]:
        raise header.part.refuse(
            f"{header.name} has embeddings for {sizes['vocab_size']:,} tokens, but its tokenizer "
            f"{tokenizer.name} has {count:,} tokens."
        )
    state = {_bare(name): tensor for name, tensor in header.load().items() if name != "lm_head.weight"}
    target = ClipTarget(GemmaTokenizer, GemmaEncoder)
    target.params = {"sizes": sizes, "state": state}
    return comfy.sd.CLIP(
        target,
        tokenizer_data={TOKENIZER: tokenizer},
        parameters=sum(tensor.numel() for tensor in state.values()),
        model_options={"dtype": _dtype(header)},
    )


def gemma_sizes(header: Header, caption_width: int) -> dict[str, int]:
    """The arguments of transformers' GemmaConfig, derived from the shapes of the weights.

    Raises:
        RASError: the file is not a Gemma of the first generation, or its width is not `caption_width`.
    """
    header.check_floats()
    shapes = {_bare(name): shape for name, shape in header.shapes.items() if name != "lm_head.weight"}
    bare = Header(header.part, header.paths, shapes, header.dtypes)
    layers = bare.count_layers()
    try:
        vocabulary, width = shapes["embed_tokens.weight"]
        sizes = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
            "num_hidden_layers": layers,
            "num_attention_heads": shapes["layers.0.self_attn.q_proj.weight"][0] // HEAD_DIM,
            "num_key_value_heads": shapes["layers.0.self_attn.k_proj.weight"][0] // HEAD_DIM,
            "head_dim": HEAD_DIM,
        }
    except (KeyError, IndexError, ValueError):
        raise header.wrong_kind() from None
    if "pre_feedforward_layernorm" in "".join(shapes) or not sizes["num_key_value_heads"]:
        raise header.wrong_kind()
    if width != caption_width:
        raise header.part.refuse(
            f"{header.name} is {header.kind} of width {width}; this transformer takes {caption_width}."
        )
    try:
        with torch.device("meta"):
            network = _gemma_model()(_gemma_config(sizes))
    except (RuntimeError, ValueError, TypeError, ArithmeticError, AssertionError) as error:
        raise header.part.refuse(f"{header.name} has sizes that no network has ({error}).") from None
    bare.check({name: tuple(t.shape) for name, t in network.state_dict().items()})
    return sizes


class Vocabulary:
    """Gemma's tokenizer.json, with the interface that ComfyUI's SDTokenizer expects."""

    def __init__(self, tokenizer: Tokenizer, bos: int):
        self._tokenizer = tokenizer
        self._bos = bos

    @classmethod
    def from_pretrained(cls, path: Path, **kwargs) -> Vocabulary:
        """Read a tokenizer file.

        Raises:
            RASError: the tokenizer file is missing, cannot be read, or is not Gemma's.
        """
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises no narrower class than Exception
            raise wrong_tokenizer(f"the tokenizer file {path.name} cannot be read ({error}).") from error
        bos = tokenizer.token_to_id(BOS)
        if bos is None:
            raise wrong_tokenizer(f"the tokenizer file {path.name} has no token {BOS}, so it is not Gemma's.")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        vocabulary = cls(tokenizer, bos)
        vocabulary(PROBE)
        return vocabulary

    def __call__(self, text: str) -> dict[str, list[int]]:
        text = text.encode("utf-8", "replace").decode()  # a prompt in JSON may hold halves of characters
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:
            raise wrong_tokenizer(f"the tokenizer cannot encode a prompt ({error}).") from error
        return {"input_ids": [self._bos, *ids]}

    def get_vocab(self) -> dict[str, int]:
        return self._tokenizer.get_vocab(with_added_tokens=True)


def wrong_tokenizer(what: str) -> RASError:
    """The error for a missing or wrong tokenizer; its first sentence is `what`, which names the fault."""
    return RASError(
        what,
        "tokenizer.json of Gemma-2B, beside the text encoder or in tokenizer/.",
        "download that file too, from Lumina-Next-SFT-diffusers.",
    )


class GemmaSegments(SDTokenizer):
    """Converts a prompt to Gemma's tokens, with a weight for each token.

    The weights come from ComfyUI's syntax in the prompt, such as (word:1.2).
    """

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None):
        path = (tokenizer_data or {})[TOKENIZER]
        super().__init__(
            path,
            max_length=10**8,
            pad_with_end=False,
            embedding_key=NAME,
            tokenizer_class=Vocabulary,
            has_end_token=False,
            pad_to_max_length=False,
            min_length=1,
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs) -> list[list[tuple]]:
        batches = super().tokenize_with_weights(text.lower().strip(), return_word_ids, **kwargs)
        if any(len(batch) > MAX_TOKENS for batch in batches):
            logger.warning(
                "Multirate RAS: Lumina-Next reads %d tokens of a prompt; the rest is ignored.", MAX_TOKENS
            )
        return [batch[:MAX_TOKENS] for batch in batches]


class GemmaTokenizer(SD1Tokenizer):
    """The tokenizer that ComfyUI's CLIP.tokenize calls."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None):
        super().__init__(embedding_directory, tokenizer_data or {}, name=NAME, tokenizer=GemmaSegments)


class GemmaEncoder(nn.Module, ClipTokenWeightEncoder):
    """The encoder that ComfyUI's CLIP calls: it maps tokens to caption embeddings and a mask.

    Args:
        sizes: arguments of transformers' GemmaConfig.
        state: weights, under the names that transformers gives them.
        device, dtype: device and dtype in which the weights are created.
    """

    special_tokens = {"start": 2, "pad": PAD}

    def __init__(
        self,
        sizes: dict[str, int],
        state: dict[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        model_options: dict | None = None,
    ):
        super().__init__()
        self.dtypes = {dtype}
        self.layer = LAYER
        typed = {name: tensor.to(dtype) for name, tensor in state.items()}
        gemma = _gemma_model().from_pretrained(
            None, config=_gemma_config(sizes), state_dict=typed, torch_dtype=dtype
        )
        self.gemma = gemma.eval().requires_grad_(False).to(device)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Set which layer's hidden states are returned, as the CLIPSetLastLayer node requests."""
        self.layer = options.get("layer", self.layer)

    def reset_clip_options(self) -> None:
        self.layer = LAYER

    def encode_token_weights(self, token_weight_pairs: dict[str, list]) -> tuple:
        """Encode weighted tokens: caption embeddings (1, l, d), no pooled vector, and the mask (1, l)."""
        return super().encode_token_weights(token_weight_pairs[NAME])

    def encode(self, tokens: list[list[int]]) -> tuple[Tensor, None, dict[str, Tensor]]:
        """Encode token lists of equal length to embeddings (b, l, d) and a mask (b, l), 0 for padding."""
        ids = torch.tensor(tokens, device=self.gemma.embed_tokens.weight.device)
        mask = (ids != PAD).long()
        with torch.no_grad():
            states = self.gemma(ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        return states.hidden_states[self.layer].float(), None, {"attention_mask": mask}

    def load_sd(self, state: dict[str, Tensor]) -> Any:
        return self.gemma.load_state_dict(state, strict=False)


def _bare(name: str) -> str:
    """A tensor's name without `model.`, a prefix of files that contain Gemma with its language-model head."""
    return name.removeprefix("model.")


def _dtype(header: Header) -> torch.dtype:
    """The dtype of the text encoder. It is never float16, because Gemma overflows in float16.

    On the CPU: float32 if all weights are float32, else bfloat16. On other devices: bfloat16 if they support
    it, else float32.
    """
    device = model_management.text_encoder_device()
    if model_management.is_device_cpu(device):
        return torch.float32 if header.dtypes == {"F32"} else torch.bfloat16
    return torch.bfloat16 if model_management.should_use_bf16(device) else torch.float32


def _gemma_model() -> Any:
    from transformers import GemmaModel  # imported only when needed, because the import takes a second

    return GemmaModel


def _gemma_config(sizes: dict[str, int]) -> Any:
    from transformers import GemmaConfig

    return GemmaConfig(**sizes)
