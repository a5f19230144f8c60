"""Load the bundled demo models as MODEL and VAE for ComfyUI's own nodes.

The transformers are small instances of ComfyUI's own network classes: MMDiT for SD3, NextDiT for Lumina 2,
and Flux. Their large weight matrices are stored as int8 with one fp16 scale per row, and dequantised here.
Nothing is registered in the user's model folders, and nothing global in ComfyUI is changed: preview colours
and sampling settings are set on the config object of the loaded model only.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management as model_management
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.lumina.model import NextDiT
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..ras_core.errors import RASError, path_end, quoted

logger = logging.getLogger(__name__)

WEIGHTS_DIR = Path(__file__).parent / "weights"
AUTOENCODER_FILE = "autoencoder.safetensors"
WEIGHTS_URL = "https://github.com/multirate-ras/multirate-ras/raw/main/demo/weights"
SCALE_SUFFIX = ".scale"

POSITION_GRID = 64
SD3_WIDTH = 256

SD3_CONFIG: dict[str, Any] = {
    "in_channels": 16,
    "patch_size": 2,
    "input_size": None,
    "depth": SD3_WIDTH // 64,
    "num_blocks": 7,
    "adm_in_channels": 64,
    "context_size": 64,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 64, "out_features": SD3_WIDTH},
    },
    "num_patches": POSITION_GRID**2,
    "pos_embed_max_size": POSITION_GRID,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
}

LUMINA2_CONFIG: dict[str, Any] = {
    "image_model": "lumina2",
    "in_channels": 16,
    "patch_size": 2,
    "dim": 256,
    "n_layers": 8,
    "n_refiner_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 64,
    "ffn_dim_multiplier": 3.0,
    "qk_norm": True,
    "cap_feat_dim": 64,
    "axes_dims": [16, 24, 24],
    "axes_lens": [64, 256, 256],
}

FLUX_CONFIG: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 5,
    "axes_dim": [8, 28, 28],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
}


@dataclass(frozen=True)
class DemoFamily:
    """One bundled transformer.

    `config_class` is the name of a model config class in `comfy.supported_models`. `unet_config` holds the
    arguments of the network; `sampling_settings` overrides entries of the class's sampling settings.
    """

    config_class: str
    weights: str
    unet_config: dict[str, Any]
    sampling_settings: dict[str, float] = field(default_factory=dict)


FAMILIES: dict[str, DemoFamily] = {
    "sd3": DemoFamily("SD3", "sd3.safetensors", SD3_CONFIG),
    "lumina2": DemoFamily("Lumina2", "lumina2.safetensors", LUMINA2_CONFIG),
    # For a Flux network without guidance embedding, ComfyUI has only the config class of Flux Schnell. The
    # shift of that class is meant for sampling in few steps, so it is overridden.
    "flux": DemoFamily("FluxSchnell", "flux.safetensors", FLUX_CONFIG, {"shift": 3.0}),
}


def load_demo_model(family: str) -> tuple[ModelPatcher, comfy.sd.VAE]:
    """MODEL and VAE of one of `FAMILIES`, in the dtype that ComfyUI selects for the device.

    Raises:
        RASError: the family is unknown, or one of its files is missing or damaged.
    """
    return load_family(_family_spec(family))


def load_family(spec: DemoFamily) -> tuple[ModelPatcher, comfy.sd.VAE]:
    """MODEL and VAE of a family, in the dtype that ComfyUI selects for the device.

    Raises:
        RASError: one of its files is missing or damaged.
    """
    _require_files(spec)
    model_config = build_config(spec)
    autoencoder = read_weights(AUTOENCODER_FILE)
    _set_preview_factors(model_config.latent_format, autoencoder)
    state = read_weights(spec.weights)
    if spec.unet_config.get("num_patches"):
        state["pos_embed"] = sincos_table(SD3_WIDTH, POSITION_GRID)
    return _load_patcher(model_config, state), _load_vae(model_config.latent_format, autoencoder)


def require_weights(family: str) -> None:
    """Check that the files of a family exist, without reading them.

    Raises:
        RASError: the family is unknown, or a file is missing.
    """
    _require_files(_family_spec(family))


def _require_files(spec: DemoFamily) -> None:
    for name in (AUTOENCODER_FILE, spec.weights):
        if not (WEIGHTS_DIR / name).is_file():
            raise _missing(name)


def build_config(spec: DemoFamily) -> Any:
    """ComfyUI's model config object of a family, with its network's arguments and sampling settings."""
    model_config = getattr(comfy.supported_models, spec.config_class)(network_config(spec))
    # A new dict, because the dict of the class is shared by every loaded model of the family.
    model_config.sampling_settings = {**model_config.sampling_settings, **spec.sampling_settings}
    return model_config


def network_config(spec: DemoFamily) -> dict[str, Any]:
    """A family's network arguments, converted to what the installed version of ComfyUI expects."""
    config = dict(spec.unet_config)
    if "ffn_dim_multiplier" in config:
        config["ffn_dim_multiplier"] /= _feed_forward_base()
    if "txt_ids_dims" in config and "txt_ids_dims" not in FluxParams.__dataclass_fields__:
        del config["txt_ids_dims"]  # in ComfyUI 0.3.75, text tokens never have positions
    return config


def _feed_forward_base() -> int:
    """The factor by which NextDiT multiplies the feed-forward width, in addition to `ffn_dim_multiplier`.

    The factor is 1 in current ComfyUI versions and 4 in older ones (0.3.64).
    """
    default = inspect.signature(NextDiT.__init__).parameters["ffn_dim_multiplier"].default
    return 4 if default is None else 1


def read_weights(name: str) -> dict[str, Tensor]:
    """Tensors of one bundled file, with int8 matrices dequantised to float32."""
    path = WEIGHTS_DIR / name
    if not path.is_file():
        raise _missing(name)
    try:
        return unpack_int8(load_file(path))
    except (SafetensorError, ValueError, KeyError, RuntimeError, OSError) as error:
        raise _damaged(name, f"cannot be read as safetensors ({error})") from error


def _missing(name: str) -> RASError:
    return RASError(
        f"the demo weights {name} are missing.",
        f"this file in the folder {path_end(WEIGHTS_DIR)}.",
        f"download {WEIGHTS_URL}/{name} to this folder.",
    )


def _damaged(name: str, what: str) -> RASError:
    return RASError(
        f"the demo weights {name} {what}.",
        "the file that ships with this node pack, unchanged.",
        "Reinstall the pack, or copy the file back from its repository.",
    )


def unpack_int8(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multiply each int8 matrix (out, in) by its fp16 `<name>.scale` (out,); keep other tensors unchanged."""
    state = {}
    for name, tensor in packed.items():
        if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in packed:
            continue
        if tensor.dtype == torch.int8:
            tensor = tensor.float() * packed[name + SCALE_SUFFIX].float().unsqueeze(1)
        state[name] = tensor
    return state


def sincos_table(width: int, grid: int) -> Tensor:
    """SD3's fixed 2-D position table (1, grid * grid, width), computed here because it is not in the file.

    The first half of the channels encodes a token's column, the second half its row. Each half contains the
    sines, then the cosines of position * 10000^(-2k / half), where half = width / 2.
    """
    quarter = width // 4
    frequency = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency  # (grid, quarter)
    axis = torch.cat((angle.sin(), angle.cos()), dim=1)  # (grid, width / 2)
    columns = axis[None, :, :].expand(grid, -1, -1)
    rows = axis[:, None, :].expand(-1, grid, -1)
    return torch.cat((columns, rows), dim=2).reshape(1, grid * grid, width).float()


def _family_spec(family: str) -> DemoFamily:
    if family not in FAMILIES:
        known = " or ".join(repr(name) for name in FAMILIES)
        raise RASError(f"family = {quoted(family)}.", f"{known}.", "choose one of these.")
    return FAMILIES[family]


def _set_preview_factors(latent_format: Any, autoencoder: dict[str, Tensor]) -> None:
    """Set the demo autoencoder's preview colours on this latent format object only, not on its class."""
    if not {"latent_rgb_factors", "latent_rgb_factors_bias"} <= autoencoder.keys():
        raise _damaged(AUTOENCODER_FILE, "have no preview colours")
    latent_format.latent_rgb_factors = autoencoder.pop("latent_rgb_factors").float().tolist()
    latent_format.latent_rgb_factors_bias = autoencoder.pop("latent_rgb_factors_bias").float().tolist()
    latent_format.taesd_decoder_name = None


def _load_patcher(model_config: Any, state: dict[str, Tensor]) -> ModelPatcher:
    """Build the model and load its weights, as ComfyUI does for a diffusion model file of known config."""
    load_device = model_management.get_torch_device()
    offload_device = model_management.unet_offload_device()
    supported = list(model_config.supported_inference_dtypes)
    dtype = model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state), supported_dtypes=supported
    )
    manual_cast = model_management.unet_manual_cast(dtype, load_device, supported)
    model_config.set_inference_dtype(dtype, manual_cast)
    model = model_config.get_model(state, "").to(offload_device)
    model.load_model_weights(_fitting(model.diffusion_model, state), "")
    return ModelPatcher(model, load_device=load_device, offload_device=offload_device)


def _fitting(network: torch.nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Only the weights that the network has in the installed version of ComfyUI, under the names that this
    version uses.

    Two things changed from the older ComfyUI 0.3.75 to the newer 0.30.0. NextDiT lost `norm_final.weight`,
    which it had never used. In Flux, the weights of the query and key norms were renamed from `scale` to
    `weight`.

    Raises:
        RASError: a weight that the network needs is missing or has another shape.
    """
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    state = {_name_here(name, expected): tensor for name, tensor in state.items()}
    wrong = [name for name, shape in expected.items() if name not in state or state[name].shape != shape]
    if wrong:
        raise RASError(
            f"{len(wrong)} tensors of the demo weights are missing or have another shape, for example "
            f"{wrong[0]!r}.",
            f"all {len(expected)} tensors that {type(network).__name__} has in this ComfyUI.",
            "Reinstall the pack; if that does not help, it is too old for this ComfyUI.",
        )
    if unknown := sorted(state.keys() - expected.keys()):
        logger.debug(
            "demo weights: ignored tensors unknown to %s: %s", type(network).__name__, ", ".join(unknown)
        )
    return {name: state[name] for name in expected}


def _name_here(name: str, expected: Container[str]) -> str:
    older = name.removesuffix(".weight") + ".scale"
    return older if name not in expected and older in expected else name


def _load_vae(latent_format: Any, autoencoder: dict[str, Tensor]) -> comfy.sd.VAE:
    """The autoencoder that all families share, with the latent scale and shift of this family."""
    state = dict(autoencoder)
    state["vae_scale"] = torch.tensor(latent_format.scale_factor)
    state["vae_shift"] = torch.tensor(latent_format.shift_factor)
    return comfy.sd.VAE(sd=state)
