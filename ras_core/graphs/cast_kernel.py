"""The Triton kernel that casts float8 weights. Only `weight_casts` imports this: Triton may not be installed.

The kernel gets the addresses of its tensors as integers. If it got the tensors themselves, Triton would ask
the driver which device owns their memory, and that fails while a CUDA graph is captured with cudaMallocAsync.
"""

from __future__ import annotations

import triton
import triton.language as tl

NAN = tl.constexpr(0x7F)
SIGN = tl.constexpr(0x80)


@triton.jit
def cast(codes: tl.int64, numbers: tl.int64, count: tl.int64, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Cast `count` float8_e4m3fn numbers at the address `codes` to numbers of TYPE at the address `numbers`.
    Both addresses are multiples of 16 bytes. Grid: (ceil(count / BLOCK),).
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    source = tl.multiple_of(codes.to(tl.pointer_type(tl.uint8)), 16)
    target = tl.multiple_of(numbers.to(tl.pointer_type(TYPE)), 16)
    code = tl.load(source + at, mask=at < count, other=0).to(tl.int16)
    # Shifted into the bits of a float16, a float8 code gives 2 ** -8 times its number, hence the factor 256.
    # The bits are shifted as integers, because not all GPUs have instructions for float8.
    bits = ((code & SIGN) << 8) | ((code & NAN) << 7)
    half = bits.to(tl.float16, bitcast=True) * 256.0
    half = tl.where((code & NAN) == NAN, float("nan"), half)
    tl.store(target + at, half.to(TYPE), mask=at < count)
