"""Latents with a time axis of length 1, (b, c, 1, H, W), are images in every part of the pack. Longer ones
are videos, whose runs are dense.
"""

import base64

import numpy as np
import pytest
import torch
from ras_pack.nodes.checks import image_size
from ras_pack.nodes.live import LiveView
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.host.calibration import calibrate, step_cost
from ras_pack.ras_core.host.measured_runs import Task
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.render.frames import mask_frames
from ras_pack.ras_core.render.masks import summary_image
from support.families import Family
from support.other_families import OTHERS
from support.sampling import FAST, sample, sample_ras

EAGER = RASConfig(**{**vars(FAST), "cuda_graphs": "off"})


@pytest.fixture
def qwen() -> Family:
    return OTHERS["qwen_image"]


def test_a_priority_for_each_image(qwen):
    """ComfyUI takes a stack of masks for a latent over time as the masks of its frames."""
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    masks = torch.cat([left, 1 - left])
    config = RASConfig(start_step=2, sample_ratio=0.5, cuda_graphs="off")
    patched = patch_model(qwen.build(), config, priority=masks)
    noise = qwen.noise(batch=2)
    sample(patched, qwen, noise)
    trace = last_trace(patched)
    assert trace.regional_steps > 0 and not trace.notes
    active = np.mean([step.active for step in trace.steps if step.active_share < 1], axis=0)
    assert active.shape == (2, 1, 8, 8)
    assert active[0, ..., :4].mean() > active[0, ..., 4:].mean()
    assert active[1, ..., :4].mean() < active[1, ..., 4:].mean()


def test_images_of_a_run(qwen):
    _, trace = sample_ras(qwen.build(), qwen, qwen.noise(batch=2), EAGER)
    image = np.zeros((2, 128, 128, 3), dtype=np.float32)
    assert summary_image(trace, image).shape == (1, 720, 1080, 3)
    frames = mask_frames(trace, image)
    assert frames.shape[0] == len(trace.steps) and frames.shape[2] == 2 * 8 * 16


def test_the_live_view(qwen):
    sent, seconds = [], iter(range(99))
    patched = patch_model(
        qwen.build(), EAGER, view_factory=lambda *_: LiveView({}, sent.append, clock=seconds.__next__)
    )
    sample(patched, qwen, qwen.noise())
    masks = [message["mask"] for message in sent if message.get("kind") == "regional"]
    assert len(masks) == 7 and all(len(base64.b64decode(mask)) == 8 for mask in masks)  # a bit for each token


def test_inpainting_runs_dense(qwen):
    noise, mask = qwen.noise(), torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    model = qwen.build()
    latent, trace = sample_ras(model, qwen, noise, EAGER, noise_mask=mask)
    assert torch.equal(latent, sample(model, qwen, noise, noise_mask=mask))
    assert trace.regional_steps == 0 and "inpainting" in trace.notes[0]


def test_several_frames_run_dense(qwen):
    """As those of Qwen-Image-Layered."""
    noise = qwen.noise().expand(-1, -1, 3, -1, -1).clone()
    model = qwen.build()
    try:
        expected = sample(model, qwen, noise)
    except RuntimeError:
        pytest.skip("this ComfyUI's Qwen-Image takes latents of one frame only")
    latent, trace = sample_ras(model, qwen, noise, EAGER)
    assert torch.equal(latent, expected)
    assert trace.notes == ("not an image latent",)


def test_calibration(qwen):
    prompts = qwen.conditioning(1), qwen.conditioning(2)
    model = qwen.build()
    for shape in ((1, 16, 16, 16), (1, 16, 1, 16, 16)):
        task = Task.of(model, prompts, torch.zeros(shape), 4.0, 2)
        assert task.noise.shape == (2, 16, 1, 16, 16) and 0.5 < step_cost(task)(0.5) < 1
        assert image_size({"samples": torch.zeros(shape)}) == (16, 16)
    video = torch.zeros(1, 16, 2, 16, 16)
    with pytest.raises(RASError, match="the latent of an image"):
        image_size({"samples": video})
    with pytest.raises(RASError, match="the latent of an image"):
        calibrate(model, prompts, video, 4.0)
