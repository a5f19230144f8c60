"""The command line of the training, from the repository's root: `python -m training COMMAND`.

First run the commands `collect` and `clipart`, which write the archives of images. Then run `train`. The
folder can also be run from any directory: `python path/to/training train`.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dev.pack import import_from_pack, register_pack

COMMANDS = ("collect", "clipart", "train")

register_pack()  # not only below: processes that render images also import this file

if __name__ == "__main__":
    if sys.argv[1:2] not in [[name] for name in COMMANDS]:
        sys.exit(f"usage: python -m training {{{','.join(COMMANDS)}}} ...")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    import_from_pack(f"training.{sys.argv.pop(1)}").main()
