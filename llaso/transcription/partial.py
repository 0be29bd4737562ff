"""Segments that are done, kept beside the output so that an interrupted transcription goes on where it stopped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .transcript_formats import Segment


class PartialTranscript:
    """A file of JSON lines: a header with what the segments depend on, then the segments.

    Args:
        path: the file; segments of a file with the same header are read, other content is replaced.
        header: whatever the segments depend on: recording, model, settings.
    """

    def __init__(self, path: Path, header: dict[str, Any]):
        self._path = path
        self.segments: list[Segment] = []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]
        if whole and json.loads(whole[0]) == header:
            self.segments = [Segment(**json.loads(line)) for line in whole[1:]]
        path.write_text(
            "".join(json.dumps(record) + "\n" for record in [header, *map(asdict, self.segments)]), encoding="utf-8"
        )

    def add(self, segments: list[Segment]) -> None:
        """Append segments and flush them to the disk."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(segment)) + "\n" for segment in segments)
            file.flush()
            os.fsync(file.fileno())
        self.segments += segments

    def remove(self) -> None:
        """Delete the file, after the transcript was written."""
        self._path.unlink()
