#!/usr/bin/env python3
"""Do the forms of the K/V cache agree on a GPU, and what do they cost in time and memory?

    python bench/kv_check.py --out bench/results/kv_check_h100.json

Needs an NVIDIA GPU; with --tiny it also runs on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quality import bootstrap

if __name__ == "__main__":
    sys.exit(bootstrap("ras_pack.bench.kv_cli").main())
