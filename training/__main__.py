"""`python -m training collect` or `clipart`, then `python -m training train`, from the repository's root.

Running the folder works too, from any directory: `python path/to/training train`.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dev.pack import import_from_pack, register_pack

COMMANDS = ("collect", "clipart", "train")

register_pack()  # also needed in the processes that render images, which import this file again

if __name__ == "__main__":
    if sys.argv[1:2] not in [[name] for name in COMMANDS]:
        sys.exit(f"usage: python -m training {{{','.join(COMMANDS)}}} ...")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    import_from_pack(f"training.{sys.argv.pop(1)}").main()
