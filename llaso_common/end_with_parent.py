"""Ends a worker process with the process that started it, even if that one was killed.

A killed process cannot tell its workers to end. They would wait for work without end, at a pipe that they hold open
themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Watch the parent of this process, which `multiprocessing` started, in a thread; end this process after it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is no process of multiprocessing"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
