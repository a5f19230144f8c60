"""Collect the pack's log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

PREFIX = "Multirate RAS: "
PACK = __package__.rsplit(".", 2)[0]
"""The pack's package, whose loggers are children of its own; this module is two packages below it."""


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the pack's messages in the body, without duplicates and without their prefix."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text.startswith(PREFIX) and text.removeprefix(PREFIX) not in lines:
                lines.append(text.removeprefix(PREFIX))

    logger = logging.getLogger(PACK)
    handler, level = Handler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
