"""Marks checkpoints as complete, finds complete ones, and removes old and broken ones.

A checkpoint is complete when its marker, written last, is there and its files have the sizes that the marker states.
Older ones are deleted only after that. So a run killed at any moment finds its newest complete checkpoint, a full disk
costs at most the checkpoint being written, and one that lost part of a file is passed over for the one before.

A checkpoint holds the trainable weights (`trainable_weights.py`), the optimizer, the schedule and the random states.
With `watch.save_whole`, and in sharded runs, it holds the whole model, which `from_pretrained` then loads like any
other.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

from llaso_common.atomic_write import write_atomically

logger = logging.getLogger(__name__)

MARKER = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")


def whole_checkpoints(out: Path) -> list[tuple[int, Path]]:
    """Return step and folder of every complete checkpoint, oldest first."""
    return sorted((step, folder) for step, folder in _all_checkpoints(out) if not what_lacks(folder))


def what_lacks(folder: Path) -> str:
    """Say what a checkpoint lacks; empty if it is complete."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["bytes"]
    except FileNotFoundError:
        return "it was not written to its end"
    except (ValueError, LookupError, TypeError):
        return f"its {MARKER} is damaged"
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != size:
            return f"{name} has {found:,} of {size:,} bytes"
    return ""


def remove_broken_checkpoints(out: Path) -> None:
    """Delete checkpoints that a kill left half-written; rename damaged ones, so that they can be looked at."""
    for _, folder in _all_checkpoints(out):
        lacks = what_lacks(folder)
        if lacks and (folder / MARKER).exists():
            aside = folder.with_name(f"damaged-{folder.name}")
            logger.warning("%s is left out, as %s; it is %s now", folder, lacks, aside.name)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        elif lacks:
            logger.warning("removing %s: %s", folder, lacks)
            shutil.rmtree(folder)


def mark_whole(folder: Path, step: int, keep: int) -> None:
    """Mark a checkpoint as complete once the disk itself holds it, then delete all but the newest `keep`.

    A folder about to be deleted loses its marker first, so that a kill in between leaves no false checkpoint.
    """
    sizes = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            sizes[str(file.relative_to(folder))] = os.fstat(opened.fileno()).st_size
    write_atomically(folder / MARKER, json.dumps({"step": step, "bytes": sizes}) + "\n", durable=True)
    for _, old in whole_checkpoints(folder.parent)[:-keep]:
        (old / MARKER).unlink()
        shutil.rmtree(old)


def discard_all(out: Path) -> None:
    """Delete the checkpoints of a run whose finished model has been written."""
    for _, folder in whole_checkpoints(out):
        (folder / MARKER).unlink()
        shutil.rmtree(folder)


def _all_checkpoints(out: Path) -> list[tuple[int, Path]]:
    return [(int(match[1]), path) for path in out.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))]
