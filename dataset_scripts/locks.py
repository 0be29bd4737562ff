"""One command a folder: a lock that the kernel frees when its holder ends, however it ends.

The command that plans, builds, imports, validates or publishes holds it to its end; its workers, Slurm's jobs and
Ray's actors take none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that want to change it, or need it unchanged.

    A record lock, which forked helpers do not inherit: one that outlives a killed build does not block the next.

    Raises:
        ValueError: another process holds the folder; the message says which.
    """
    file = folder / ".build" / "lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            raise ValueError(
                f"{folder} is in use, by {lock.read().strip() or 'another process'}: wait until it is done, or "
                "choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s: this file system knows no locks; start no second command on this folder", folder)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        yield
