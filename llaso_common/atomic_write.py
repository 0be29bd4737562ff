"""Writes files in one step, so that readers never see half of one: written beside its place, then renamed."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, data: bytes | str, *, durable: bool = False) -> None:
    """Write a file in one step: a reader sees the old content or the new, never half of it.

    Args:
        path: its place; the folder is made if it is absent. The file's mode follows the umask.
        data: its content; text is written as UTF-8, with line ends as they are.
        durable: wait until the disk itself holds the data, so that the file also survives a power cut.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old content is kept and nothing else is left.
    """
    with atomic_path(path, durable=durable) as part:
        part.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path to write a file's new content to; it takes the file's place when the block ends.

    Args:
        path: the file's place; the folder is made if it is absent.
        durable: see `write_atomically`.

    Raises:
        OSError: the file cannot take its place. After any error the old content is kept and nothing else is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        if durable:
            with part.open("rb") as written:
                os.fsync(written.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def part_of(path: Path) -> Path:
    """Return the hidden file beside `path` that this thread writes its new content to.

    Its name ends in host and thread, so that two writers of one file never share it and those left by a killed process
    can be told apart.
    """
    return path.with_name(f".{path.name[:40]}.{this_machine()}-{threading.get_native_id()}.part")


def this_machine() -> str:
    """Return this machine's name for the names of half-written files: without dots, which separate their parts."""
    return socket.gethostname().replace(".", "_")[:40]
