"""Writes docs/compatibility.md: `python -m dev compatibility`."""

import sys

from support import comfy


def main() -> int:
    comfy.setup(threads=1)
    from .page import PATH, page

    PATH.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PATH.relative_to(comfy.ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
