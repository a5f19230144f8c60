#!/usr/bin/env python3
"""Started by bench/speed.py with a job on standard input, in a process of its own; not by people."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quality import bootstrap

if __name__ == "__main__":
    sys.exit(bootstrap("ras_pack.bench.worker_cli").main())
