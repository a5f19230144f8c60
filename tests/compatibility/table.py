"""All groups of the table, in the order of the page."""

from . import guidance

GROUPS = (guidance.GROUP,)
