"""Segments that are done, kept beside the output so that an interrupted transcription goes on where it stopped."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llaso_common.atomic_write import write_atomically

from .transcript_formats import Segment

logger = logging.getLogger(__name__)

KIND = "llaso partial transcript"


class PartialTranscript:
    """A file of JSON lines: a header with what the segments depend on, then the segments.

    It is continued if the header is the same: then segments are read as far as they are whole and lie where the
    recording's pieces lie. Otherwise it is begun anew, and a warning says so.

    Args:
        path: the file.
        header: all that the segments depend on: recording, model, settings.
        spans: start and end of each piece of the recording, in seconds.

    Attributes:
        segments: those that are done.

    Raises:
        ValueError: the file is not a partial transcript.
    """

    def __init__(self, path: Path, header: dict[str, Any], spans: Sequence[tuple[float, float]]):
        self._path = path
        self.segments: list[Segment] = []
        header = {"kind": KIND, **header}
        if path.exists() and path.stat().st_size:
            records = _records(path)
            if not records or records[0].get("kind") != KIND:
                raise ValueError(f"{path}: not a partial transcript; delete it, or choose another --out")
            if records[0] == header:
                self.segments = _segments(records[1:], spans)
            else:
                changed = ", ".join(name for name in header if records[0].get(name) != header[name])
                logger.warning("%s: begun anew, because of another %s", path, changed)
        records = [header, *map(asdict, self.segments)]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in records), durable=True)

    def add(self, segments: list[Segment]) -> None:
        """Append segments and flush them to the disk."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(segment)) + "\n" for segment in segments)
            file.flush()
            os.fsync(file.fileno())
        self.segments += segments


def _records(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a file up to the first that is not a whole JSON object, as after a crash."""
    records = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def _segments(records: Sequence[dict[str, Any]], spans: Sequence[tuple[float, float]]) -> list[Segment]:
    """Return the segments of records, up to the first that is not the one of its piece."""
    segments = []
    for record, span in zip(records, spans, strict=False):
        if record.keys() != Segment.__dataclass_fields__.keys() or (record["start"], record["end"]) != span:
            break
        segments.append(Segment(**record))
    return segments
