"""Ends a worker process with the process that started it, even if that one was killed.

A killed process cannot stop its workers. They would wait forever on a pipe whose other end they hold open themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Start a thread that ends this process, which `multiprocessing` started, when its parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is no process of multiprocessing"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
