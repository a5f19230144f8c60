#!/usr/bin/env python3
"""Do CUDA graphs under dynamic VRAM give the same images as eager runs, whatever happens to the weights?

    python bench/residency_check.py --out bench/output/residency.json
    python bench/residency_check.py --tiny      # the program itself, on a CPU

Needs an NVIDIA GPU and takes about five minutes. Prints a line per check, `ok`, `FAIL` or `skip`; exits
with status 1 if any failed. Run it with the Python of a ComfyUI, and name that ComfyUI in COMFYUI_PATH.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quality import bootstrap

if __name__ == "__main__":
    sys.exit(bootstrap("ras_pack.bench.residency_cli").main())
