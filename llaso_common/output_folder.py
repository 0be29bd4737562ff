"""Folders and files that commands write: work that is there is kept unless the user asks to overwrite it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
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


def refuse_existing_file(path: str | Path | None, overwrite: bool = False, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse to write a file to a path that exists.

    Args:
        path: the file that a command is to write; None if it writes none.
        overwrite: whether the user asked to replace it with `--overwrite`. Only a regular file is replaced.
        inputs: what the command reads, which it never replaces.

    Raises:
        ValueError: the path exists and is not a file to be overwritten; the message names it, and the remedy.
    """
    if path is None or not os.path.lexists(path):
        return
    if os.path.exists(path) and any(os.path.exists(one) and os.path.samefile(one, path) for one in inputs):
        raise ValueError(f"{path} is a file that is read; choose another path")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} exists and is not a regular file; choose another path")
    if not overwrite:
        raise ValueError(f"{path} exists. Choose another file, or replace it with --overwrite")


@contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` once the block has succeeded; on an error `path` is unchanged.

    Raises:
        ValueError: the path is the current folder.
    """
    path = Path(path).resolve()
    if path == Path.cwd():
        raise ValueError(f"{path} is the current folder, which cannot be replaced; name one in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _exit_on_sigterm(), tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        yield new
        try:
            if path.exists():
                path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise SystemExit within the block, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
