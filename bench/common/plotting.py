"""Import matplotlib, which is optional."""

from __future__ import annotations

from typing import Any

from ...ras_core.errors import RASError


def pyplot() -> Any:
    """matplotlib without a display.

    Raises:
        RASError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RASError(
            f"plots need matplotlib, which cannot be imported ({error}).",
            "matplotlib 3.8 or newer in the Python that runs this.",
            "pip install -r bench/requirements.txt; the tables are written without it.",
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
