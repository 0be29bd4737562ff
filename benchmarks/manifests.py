"""Reads manifests of speech: JSON lines with `audio` and `text`, and perhaps `source` and `speaker`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_manifest(manifest: Path) -> dict[str, list[dict[str, Any]]]:
    """Read a manifest: its rows by source.

    Raises:
        ValueError: a row lacks audio or text.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        if not row.get("audio") or not row.get("text"):
            raise ValueError(f"{manifest}:{number}: a row needs `audio` and `text`")
        rows.setdefault(row.get("source") or "speech", []).append(row)
    return rows


def evenly(rows: Sequence[Any], most: int) -> list[Any]:
    """Return so many rows at most, taken at equal distances."""
    most = min(most, len(rows))
    return [rows[n * len(rows) // most] for n in range(most)]
