"""Parses the JSON text of plans, and checks its version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import RASError, quoted

VERSION = 2


def read_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        RASError: the text is not valid JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RASError(
            f"plans that are not JSON: {error}.", "JSON as RAS Calibrate writes it.", "calibrate again."
        ) from error


def checked_version(what: str, values: Any) -> dict[str, Any]:
    """Check the field "version" of the dict `values`, which was read from JSON, and return the other fields.

    Args:
        what: name of what the JSON describes, for the error message.
        values: the parsed JSON.

    Raises:
        RASError: the field "version" is not VERSION, or `values` is not a dict.
    """
    version = values.get("version") if isinstance(values, Mapping) else None
    if version != VERSION:
        raise RASError(
            f"a {what} of version {quoted(version)}.",
            f"version {VERSION}.",
            "calibrate again with this version of the pack, or update the pack.",
        )
    return {name: value for name, value in values.items() if name != "version"}
