"""Reads manifests of speech: JSON lines with `audio` and `text`, and perhaps `source` and `speaker`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_scripts.files import json_lines
from dataset_scripts.sources.base import Reject


def read_manifest(manifest: Path) -> dict[str, list[dict[str, Any]]]:
    """Read a manifest: its rows by source.

    Raises:
        ValueError: there is no such file, or it has no rows; or a row is no JSON object, lacks audio or spoken words,
            names a recording that is not there, or has a source or speaker that is no name. The message says which
            line.
    """
    if not manifest.is_file():
        raise ValueError(f"{manifest}: no such file; name a manifest of JSON lines")
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, row in json_lines(manifest):
        if isinstance(row, Reject):
            raise ValueError(f"{row.where}: {row.reason}; mend or remove the line")
        where = f"{manifest}:{number}"
        audio, text = row.get("audio"), row.get("text")
        if not (isinstance(audio, str) and audio and isinstance(text, str) and any(map(str.isalnum, text))):
            raise ValueError(f"{where}: a row is an object with `audio`, a path, and the words of `text`")
        if not (manifest.parent / audio).is_file():
            raise ValueError(f"{where}: no such file: {manifest.parent / audio}; mend the path or remove the line")
        for name in ("source", "speaker"):
            if not isinstance(row.get(name), str | int | None):
                raise ValueError(f"{where}: `{name}` is {row[name]!r}, and a name is expected")
        rows.setdefault(str(row.get("source") or "speech"), []).append(row)
    if not rows:
        raise ValueError(f"{manifest}: there are no rows")
    return rows


def evenly(rows: Sequence[Any], most: int) -> list[Any]:
    """Return so many rows at most, taken at equal distances."""
    most = min(most, len(rows))
    return [rows[n * len(rows) // most] for n in range(most)]
