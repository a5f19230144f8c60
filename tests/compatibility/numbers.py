"""Number formats of weights and of the computation, and devices."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import torch
from support.families import Family, draw_weights

from .guidance import EVERY
from .rows import Group, Row, Run, fewer_blocks, node, small

GPU = "tests/gpu/test_gpu_graphs.py"


def of_dtype(dtype: torch.dtype) -> Any:
    return lambda family: small(family, dtype=dtype)


def float8(family: Family) -> Any:
    """A model whose weights are fp8 and are cast at each use, as ComfyUI loads with `fp8_e4m3fn`."""
    cpu, config = torch.device("cpu"), family.config_class({**family.unet_config(), **fewer_blocks(family)})
    config.set_inference_dtype(torch.float8_e4m3fn, torch.float32)
    model = config.get_model({}, prefix="", device=cpu)
    draw_weights(model.diffusion_model, 0)
    assert any(each.dtype is torch.float8_e4m3fn for each in model.diffusion_model.parameters())
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


COMPUTE = node("comfy_extras.nodes_model_advanced", "ModelComputeDtype", "bf16")

GROUP = Group(
    "Number formats and devices",
    (
        Row("weights in bf16", families=("sd3", "flux"), run=Run(build=of_dtype(torch.bfloat16))),
        Row("weights in fp16", families=("lumina2", "sd35_large"), run=Run(build=of_dtype(torch.float16))),
        Row("weights in fp8", families=("sd3", "lumina2", "flux"), run=Run(build=float8)),
        Row("ModelComputeDtype bf16", run=Run(COMPUTE), orders=("before", "after")),
        Row(
            "GGUF, and other layers that unpack weights at each use",
            note="No CUDA graphs are captured.",
            test="tests/host/test_foreign_code.py::TestReplacedModules::test_a_layer_that_computes_each_row_alone",
        ),
        Row(
            "NVIDIA GPU: regional steps as CUDA graphs",
            families=EVERY,
            note="Tested on a GPU.",
            test=f"{GPU}::test_on_cuda_graphs",
        ),
        Row(
            "any other device: regional steps without CUDA graphs",
            families=EVERY,
            note="All other rows of this page were tested like this, on a CPU.",
            test="tests/models/test_proofs.py::TestEffect::test_rows_that_enter_every_block_and_every_cache",
        ),
    ),
)
