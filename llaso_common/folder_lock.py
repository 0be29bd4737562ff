"""Lets one process at a time work in a folder, by a lock that the system drops when its holder ends.

The lock is `flock` on the folder's `.lock`, which names its holder and is deleted on release. A process that is
killed leaves the file but not the lock. Children do not inherit the lock unless they are handed its descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shlex
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Error numbers of file systems that are mounted without locks, as on some clusters."""

_held: set[int] = set()
"""Descriptors of this process's locks; a fork closes its copies, or it would hold them beyond its parent's end."""


class FolderBusy(OSError):
    """Another process works in this folder."""

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder} is in use by {holder}; wait for it, stop it, or name another folder")
        self.folder, self.holder = folder, holder


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Hold a folder, created if absent, as the only process that works in it.

    Yields:
        The lock's descriptor; a child process that is handed it (`pass_fds`) keeps the lock as long as it lives.

    Raises:
        FolderBusy: another process does; the message says which.
        OSError: the lock cannot be written.
    """
    with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as descriptor:
        yield descriptor


@contextlib.contextmanager
def one_at_a_time(folder: Path, report: Callable[[str], None]) -> Iterator[int]:
    """Hold a folder as `alone_in` does, after waiting for its holder; `report` takes a line about the wait.

    Raises:
        OSError: the lock cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(alone_in(folder))
        except FolderBusy as busy:
            report(f"waiting for {busy.holder}, which works in {folder}")
            descriptor = stack.enter_context(_locked(folder, fcntl.LOCK_EX))
        yield descriptor


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[int]:
    path, made = folder / LOCK, not folder.exists()
    descriptor = _take(path, how)
    while not _is_there(path, descriptor):  # the previous holder has deleted the file
        os.close(descriptor)
        descriptor = _take(path, how)
    _held.add(descriptor)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds, unnamed
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _this_process().encode(), 0)
        yield descriptor
    finally:
        path.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing was written into it
        _held.discard(descriptor)
        os.close(descriptor)


def _take(path: Path, how: int) -> int:
    descriptor = None
    while descriptor is None:
        _make(path.parent)
        with contextlib.suppress(FileNotFoundError):  # the process that had created the folder removed it just now
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
        os.close(descriptor)
        raise FolderBusy(path.parent, holder) from None
    except BaseException as error:
        if not isinstance(error, OSError) or error.errno not in NO_LOCKS:
            os.close(descriptor)
            raise
        logger.warning("%s has no locks: see to it that no other process works there", path.parent)
    return descriptor


def _make(folder: Path) -> None:
    """Make a folder that is not there; `mkdir` fails if another process removes it in between."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} ({shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])})"


def _let_go_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
