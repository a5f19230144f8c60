#!/usr/bin/env python3
"""What eager regional steps cost beyond ComfyUI's own work: operations, allocations, Python calls and
seconds of one core.

    python bench/eager_cost.py
    python bench/eager_cost.py --families sd3_medium --kv-cache gpu,fp8 --seconds 5

Networks have their full depth but very few, narrow rows. Arithmetic then takes almost no time, and what
remains is the CPU overhead that limits eager steps on a GPU. No GPU is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quality import bootstrap

if __name__ == "__main__":
    sys.exit(bootstrap("ras_pack.bench.eager_cli").main())
