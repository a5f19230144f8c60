"""With the reference formula, every step selects the same tokens as the paper's own code
(tests/data/README.md).
"""

import comfy.sample
import comfy.samplers
import numpy as np
import pytest
import torch
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.host.patch import last_trace, patch_model
from support.tiny_sd3 import (
    build_tiny_sd3,
    conformity_inputs,
    fingerprint,
    reference_fingerprints,
    reference_runs,
    tiny_sd3_state_dict,
)


def _sample(model, run, inputs):
    positive = [[inputs["cond_context"], {"pooled_output": inputs["cond_pooled"]}]]
    negative = [[inputs["uncond_context"], {"pooled_output": inputs["uncond_pooled"]}]]
    return comfy.sample.sample_custom(
        model, inputs["noise"], run.guidance, comfy.samplers.sampler_object("euler"),
        torch.as_tensor(np.asarray(run.sigmas), dtype=torch.float32), positive, negative,
        torch.zeros_like(inputs["noise"]), disable_pbar=True, seed=0,
    )  # fmt: skip


def test_weights_and_inputs_are_those_the_reference_saw():
    expected = reference_fingerprints()
    assert fingerprint(tiny_sd3_state_dict()) == pytest.approx(expected["weights"], rel=1e-6)
    assert fingerprint(conformity_inputs()) == pytest.approx(expected["inputs"], rel=1e-6)


@pytest.mark.parametrize("name", ["half", "quarter", "half_both_ends"])
def test_active_sets_and_final_latent_equal_the_reference(name):
    run = reference_runs()[name]
    paper = PaperSettings(
        high_ratio=run.high_ratio, starvation_scale=run.starvation_scale,
        error_reset_steps=run.error_reset_steps, starvation="reference",
    )  # fmt: skip
    config = RASConfig(sample_ratio=run.sample_ratio, start_step=run.start_step, paper=paper)
    model = patch_model(build_tiny_sd3(), config)
    latent = model.model.process_latent_in(_sample(model, run, conformity_inputs()))

    trace = last_trace(model)
    active = np.stack([evaluation.active.reshape(-1) for evaluation in trace.evaluations])
    # 14 steps: 0-3 and 9 dense, nine regional ones
    assert active.sum(axis=1).tolist() == [
        256 if step in (0, 1, 2, 3, 9) else int(256 * run.sample_ratio) for step in range(14)
    ]
    np.testing.assert_array_equal(active, np.asarray(run.active))
    reference = torch.as_tensor(run.final_latent)
    assert float((latent - reference).norm() / reference.norm()) < 1e-5
