"""Write tensors from a device straight into a safetensors file, without a copy of the file in main memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> int:
    """Write a safetensors file; tensors may be on any device. Returns the file's size in bytes."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        offsets[name] = (start, end)
        header[name] = {
            "dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    base = 8 + len(text)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(base + end)
    whole = torch.from_file(str(path), shared=True, size=base + end, dtype=torch.uint8)
    for name, tensor in tensors.items():
        start, stop = offsets[name]
        whole[base + start : base + stop].copy_(tensor.contiguous().flatten().view(torch.uint8))
    return base + end
