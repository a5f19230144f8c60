#!/usr/bin/env python3
"""Do recorded (CUDA graph) and plain regional steps agree, and do recordings live as long as they should?

    python bench/graph_check.py --out bench/results/graph_check_h100.json

Needs an NVIDIA GPU. Networks have few blocks of true width, so it takes about a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quality import bootstrap

if __name__ == "__main__":
    sys.exit(bootstrap("ras_pack.bench.graph_cli").main())
