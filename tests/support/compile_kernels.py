"""Compiles Triton kernels of the K/V cache for GPUs that this machine lacks (`interpreter.compiled`).

    python -m support.compile_kernels TYPE UNIT WIDTH KERNEL...

TYPE and UNIT are as in ras_core/kv/triton_kernels.py. Rows have three quarters of WIDTH numbers. KERNEL is
the name of a kernel, and may be followed by further constants: `compare,EVALUATIONS=3,WARPS=2`. For each
kernel and each generation of GPUs, this prints the kernel's name and the numbers of its instructions that
load 16 bytes and 2 bytes.
"""

import importlib
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .comfy import register_pack

CAPABILITIES = (75, 80, 90)
NUMBERS = {
    "kept", "stride", "samples", "rows", "images", "prefix", "n", "line", "active", "rows_in_part", "total",
    "parts",
}  # fmt: skip


def main(dtype: str, unit: str, width: str, *kernels: str) -> None:
    register_pack()
    module = importlib.import_module("ras_pack.ras_core.kv.triton_kernels")
    constants = {
        "TYPE": getattr(module.tl, dtype), "UNIT": int(unit), "HEAD": 64,
        "DIM": int(width) * 3 // 4, "WIDTH": int(width),
        "SAMPLES": 256, "BLOCK": 1024, "RIDGE": 1e-3, "ROWS": 64, "COLS": 64, "PARTS": 32,
    }  # fmt: skip
    for each in kernels:
        name, *more = each.split(",")
        further = {key: int(value) for key, value in (pair.split("=") for pair in more)}
        options = {"num_warps": further.pop("WARPS", 4)}
        for capability in CAPABILITIES:
            counts = compiled(getattr(module, name), constants | further, capability, options)
            sys.stdout.write(f"{name} {counts[0]} {counts[1]}\n")


def compiled(kernel, constants, capability, options) -> tuple[int, int]:
    """Compile one kernel. Returns the numbers of instructions that load 16 bytes and 2 bytes."""
    types = {name: "i32" for name in NUMBERS} | {name: "constexpr" for name in constants}
    signature = {each: types.get(each, "i64") for each in kernel.arg_names}
    used = {(i,): constants[each] for i, each in enumerate(kernel.arg_names) if each in constants}
    target = GPUTarget("cuda", capability, 32)
    result = triton.compile(ASTSource(kernel, signature, used), target=target, options=options)
    assert result.asm["cubin"]
    return result.asm["ptx"].count("ld.global.v4"), result.asm["ptx"].count("ld.global.b16")


if __name__ == "__main__":
    main(*sys.argv[1:])
