"""Collect the pack's log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

PREFIX = "Multirate RAS: "
PACK = __package__.rsplit(".", 2)[0]
"""Name of the pack's package and of its logger, which is the parent of all loggers of the pack's modules.
`__package__` is PACK.bench.common, so its last two parts are removed."""


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the messages that the pack logs inside the with statement, without duplicates and without
    PREFIX.
    """
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
