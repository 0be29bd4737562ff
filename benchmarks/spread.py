"""Writes repeated measurements as they stand in tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float], form: str) -> str:
    """Write the median, the least and the most of values in a format such as ".1f"."""
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"
