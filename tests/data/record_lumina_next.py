"""Write reference data: diffusers' Lumina-Next on the tiny model of tests/support/tiny_lumina_next.py.

    pip install diffusers==0.42.1     # in a separate environment; the tests do not need it
    PYTHONPATH=tests python tests/data/record_lumina_next.py

writes tests/data/lumina_next.npz. See tests/data/README.md.
"""

from __future__ import annotations

import math

import diffusers
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from support import tiny_lumina_next as tiny


def build() -> LuminaNextDiT2DModel:
    config = {k: v for k, v in tiny.NETWORK_CONFIG.items() if k != "ffn_size"}
    model = LuminaNextDiT2DModel(**config, multiple_of=32).eval()
    model.load_state_dict(tiny.random_weights({k: v.shape for k, v in model.state_dict().items()}))
    return model


def velocity(model: LuminaNextDiT2DModel, case: tiny.Case, seed: int) -> torch.Tensor:
    """The velocity: the first half of the output channels. The positions and the attention scale are those
    that diffusers' pipeline would pass.
    """
    latent, caption, mask = case.inputs(seed)
    scale = math.sqrt(case.size[0] * case.size[1]) / tiny.SAMPLE_SIZE
    linear, ntk = (scale, 1.0) if case.time < case.watershed else (1.0, scale)
    rotary = get_2d_rotary_pos_embed_lumina(model.head_dim, 64, 64, linear_factor=linear, ntk_factor=ntk)
    out = model(
        hidden_states=latent,
        timestep=torch.full((latent.shape[0],), case.time),
        encoder_hidden_states=caption,
        encoder_mask=mask,
        image_rotary_emb=rotary,
        cross_attention_kwargs={"base_sequence_length": (tiny.SAMPLE_SIZE // 2) ** 2},
    ).sample
    return out.chunk(2, dim=1)[0]


def whole_run(model: LuminaNextDiT2DModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigmas and the final latent of diffusers' own pipeline."""
    inputs = tiny.run_inputs()
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = LuminaPipeline(model, scheduler, vae=None, text_encoder=None, tokenizer=None)
    pipeline.set_progress_bar_config(disable=True)
    latent = pipeline(
        num_inference_steps=tiny.RUN_STEPS,
        guidance_scale=tiny.RUN_GUIDANCE,
        height=8 * tiny.RUN_SIZE[0],
        width=8 * tiny.RUN_SIZE[1],
        latents=inputs["noise"],
        prompt_embeds=inputs["caption"],
        prompt_attention_mask=inputs["mask"],
        negative_prompt_embeds=inputs["negative"],
        negative_prompt_attention_mask=inputs["negative_mask"],
        output_type="latent",
        scaling_watershed=tiny.RUN_WATERSHED,
    ).images
    return scheduler.sigmas, latent


@torch.no_grad()
def main() -> None:
    model = build()
    recorded = {name: velocity(model, case, seed) for seed, (name, case) in enumerate(tiny.CASES.items())}
    recorded["run/sigmas"], recorded["run/latent"] = whole_run(model)
    weights = sum(t.double().abs().sum() for t in model.state_dict().values())
    np.savez_compressed(
        tiny.REFERENCE,
        diffusers=diffusers.__version__,
        weights=weights.item(),
        **{name: tensor.float().numpy() for name, tensor in recorded.items()},
    )
    print(f"{tiny.REFERENCE}: {len(recorded)} arrays of diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
