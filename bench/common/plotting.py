"""Import matplotlib, which is optional."""

from __future__ import annotations

from typing import Any

from ...ras_core.errors import RASError


def pyplot() -> Any:
    """matplotlib.pyplot, with a backend that needs no display.

    Raises:
        RASError: matplotlib cannot be imported.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RASError(
            f"plots need matplotlib, which cannot be imported ({error}).",
            "matplotlib 3.8 or newer in the Python that runs this program.",
            "pip install -r bench/requirements.txt; without matplotlib, only the tables are written.",
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
