#!/usr/bin/env python3
"""A process of bench/speed.py, which sends it a job on standard input. Not to be started by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quality import bootstrap

if __name__ == "__main__":
    sys.exit(bootstrap("ras_pack.bench.worker_cli").main())
