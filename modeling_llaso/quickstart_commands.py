"""Commands of this room, as `llaso` shows them."""

from __future__ import annotations


def add_parser(commands) -> None:
    """Add this room's commands to the `llaso` parser."""
