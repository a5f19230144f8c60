#!/usr/bin/env python3
"""What regional steps cost beyond the host's own work where nothing is recorded: operations, allocations,
Python calls and seconds of one core.

    python bench/eager_cost.py
    python bench/eager_cost.py --families sd3_medium --kv-cache gpu,fp8 --seconds 5

Networks have their full depth and very few, narrow rows, so that arithmetic takes no time and what remains is
what limits eager steps on a GPU. No GPU is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quality import bootstrap

if __name__ == "__main__":
    sys.exit(bootstrap("ras_pack.bench.eager_cli").main())
