"""How a data loader's worker lives and ends: as the main process does, not as signals tell it."""

from __future__ import annotations

import os
import signal
import threading

from llaso_common.end_with_parent import end_with_parent


def follow_main_process(worker: int) -> None:
    """Keep a worker running when a signal reaches all processes, and end it when the main process ends or says so.

    The main process saves first; it alone ends a worker, by SIGTERM. If it is killed, it may leave half a message of
    rows in the worker's pipe, for whose rest the worker would wait forever.

    Args:
        worker: its number, which is not used.
    """
    main = os.getppid()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, where the sender is not known: any SIGTERM ends a worker
        end_with_parent()
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of threads that start from here on, too
    end_with_parent()

    def end_when_main_says() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=end_when_main_says, daemon=True).start()
