"""Checkpoints that are whole or absent.

A checkpoint counts once its marker is written, which happens last; older ones go only after that. So a run killed at
any moment finds its newest whole checkpoint, and a full disk costs at most the checkpoint being written.

A checkpoint holds the whole model, frozen parts too, so that `from_pretrained` loads it like any other and a resumed
run depends on no folder that may have changed since. At full size, in float32, the price is 15 GB in Stage 1, where
0.2 GB would do, and 2.5 of 41 GB in Stage 2.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

MARKER = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")


def whole_checkpoints(out: Path) -> list[tuple[int, Path]]:
    """Step and folder of every whole checkpoint, oldest first."""
    found = []
    for folder in out.glob("checkpoint-*"):
        match = NAME.fullmatch(folder.name)
        if match and (folder / MARKER).is_file():
            found.append((int(match[1]), folder))
    return sorted(found)


def remove_partial(out: Path) -> None:
    """Delete what a kill left half-written."""
    for folder in out.glob("checkpoint-*"):
        if NAME.fullmatch(folder.name) and not (folder / MARKER).is_file():
            logger.warning("removing %s: it was not written to its end", folder)
            shutil.rmtree(folder)


def mark_whole(folder: Path, step: int, keep: int) -> None:
    """Declare a checkpoint whole, then delete all but the newest `keep`.

    A folder about to be deleted loses its marker first, so that a kill in between leaves no false checkpoint.
    """
    (folder / MARKER).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
    for _, old in whole_checkpoints(folder.parent)[:-keep]:
        (old / MARKER).unlink()
        shutil.rmtree(old)


def discard_all(out: Path) -> None:
    """Delete the checkpoints of a run whose finished model has been written."""
    for _, folder in whole_checkpoints(out):
        (folder / MARKER).unlink()
        shutil.rmtree(folder)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that others find whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
