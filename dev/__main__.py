"""`python3 -m dev COMMAND [ARGUMENTS]`."""

import sys

from .commands import main

sys.exit(main())
