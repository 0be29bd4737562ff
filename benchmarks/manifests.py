"""Reads manifests of speech: JSON lines with `audio` and `text`, and perhaps `source` and `speaker`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_manifest(manifest: Path) -> dict[str, list[dict[str, Any]]]:
    """Read a manifest: its rows by source.

    Raises:
        ValueError: a row is no JSON object, or lacks audio or spoken words; or there is none.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{manifest}:{number}: not JSON ({error})") from None
        if not isinstance(row, dict) or not row.get("audio") or not any(map(str.isalnum, str(row.get("text") or ""))):
            raise ValueError(f"{manifest}:{number}: a row is an object with `audio` and the words of `text`")
        rows.setdefault(row.get("source") or "speech", []).append(row)
    if not rows:
        raise ValueError(f"{manifest}: there are no rows")
    return rows


def evenly(rows: Sequence[Any], most: int) -> list[Any]:
    """Return so many rows at most, taken at equal distances."""
    most = min(most, len(rows))
    return [rows[n * len(rows) // most] for n in range(most)]
