"""Folders and files that commands write: work that is there is kept unless the user asks to overwrite it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMED = 5
"""Number of files that an error names."""


def refuse_existing(path: str | Path, overwrite: bool = False) -> None:
    """Refuse to write to a path that exists, except an empty folder.

    Args:
        path: the folder that a command is to write.
        overwrite: whether the user asked to overwrite it with `--overwrite`.

    Raises:
        ValueError: a file is there, or a folder that is not empty and is not to be overwritten; the message names
            what is there, and the remedy.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise ValueError(f"{path} exists and is not a folder; choose another path")
    names = sorted(entry.name for entry in path.iterdir())
    if names and not overwrite:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise ValueError(
            f"{path} is not empty: it holds {', '.join(names[:NAMED])}{more}. Choose another folder, or "
            "replace it with --overwrite"
        )


def refuse_existing_file(path: str | Path | None, overwrite: bool = False) -> None:
    """Refuse to write a file to a path that exists.

    Args:
        path: the file that a command is to write; None if it writes none.
        overwrite: whether the user asked to replace it with `--overwrite`. Only a regular file is replaced.

    Raises:
        ValueError: the path exists and is not a file to be overwritten; the message names it, and the remedy.
    """
    if path is None or not os.path.lexists(path):
        return
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} exists and is not a regular file; choose another path")
    if not overwrite:
        raise ValueError(f"{path} exists. Choose another file, or replace it with --overwrite")


@contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` once the block has succeeded; on an error `path` is unchanged."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
        if old.exists():
            shutil.rmtree(old)
