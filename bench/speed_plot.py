#!/usr/bin/env python3
"""Plots of the speed program's results.

python bench/speed_plot.py bench/results/speed_h100.json --out bench/results/speed
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quality import bootstrap

if __name__ == "__main__":
    sys.exit(bootstrap("ras_pack.bench.speed_plots").main())
