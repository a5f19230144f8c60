"""`python -m bench PROGRAM ...`, from the repository's root; see `commands` for the programs.

From any other directory, run the folder instead: `python path/to/bench PROGRAM ...`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dev.pack import import_from_pack, register_pack

register_pack()

if __name__ == "__main__":
    sys.exit(import_from_pack("bench.commands").main(sys.argv[1:]))
