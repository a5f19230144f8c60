"""Reads the JSON of plans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import RASError, quoted

VERSION = 1


def read_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        RASError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RASError(
            f"plans that are not JSON: {error}.", "JSON as RAS Calibrate writes it.", "calibrate again."
        ) from error


def checked_version(what: str, values: Any) -> dict[str, Any]:
    """The dict `values`, read from JSON, without its field "version", which must be VERSION.

    Raises:
        RASError: the version is another one, or `values` is no dict.
    """
    version = values.get("version") if isinstance(values, Mapping) else None
    if version != VERSION:
        raise RASError(
            f"a {what} of version {quoted(version)}.",
            f"version {VERSION}.",
            "calibrate again with this version of the pack, or update the pack.",
        )
    return {name: value for name, value in values.items() if name != "version"}
