"""How repeated measurements are written in tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float], form: str) -> str:
    """Return the median of values, and the least and greatest in brackets, each in a format such as ".1f"."""
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"
