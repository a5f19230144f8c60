#!/usr/bin/env python3
"""Speed and memory of region-adaptive sampling beside dense runs, LazyCache and the reference code.

    python bench/speed.py --seconds 420 --out bench/results/speed_h100.json
    python bench/speed.py --tiny                       # every path in seconds, on a CPU
    python bench/speed.py --list

Networks have their true shapes and random weights, so nothing is downloaded. Run it with the Python of a
ComfyUI, and name that ComfyUI in COMFYUI_PATH.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quality import bootstrap

if __name__ == "__main__":
    sys.exit(bootstrap("ras_pack.bench.speed_cli").main())
