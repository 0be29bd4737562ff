"""Exchanges values with the other processes of a run, and turns their failures into plain errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

GO_ON = "earlier checkpoints are kept. Run the same command again"
PEER_MARKS = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "remote process exited")
"""Words in the messages of torch's backends by which a lost process is recognized."""
PATIENCE = timedelta(days=7)


class PeerLost(OSError):
    """Another training process, or its machine, is gone."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn failures of other processes into errors with a plain message, without the traceback that leads here.

    Raises:
        ValueError: a data loader's worker raised it.
        OSError: a data loader's worker has ended.
        PeerLost: another training process has ended.
    """
    try:
        yield
    except ValueError as error:
        if "DataLoader worker process" not in str(error):
            raise
        raise ValueError(str(error).strip().rpartition("\n")[2].removeprefix("ValueError: ")) from error
    except (RuntimeError, ConnectionError, EOFError) as error:
        if is_peer_lost(error):
            raise PeerLost(
                f"a process that trains along is gone ({str(error).strip().splitlines()[0]}); {GO_ON} on all machines"
            ) from error
        # A process that dies while it hands something over shows as a broken connection.
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
            raise
        raise OSError(
            f"a reading process died, most often for want of memory; {GO_ON}, with a smaller compute.workers or "
            "batch.per_device if it happens again"
        ) from error


def gathered(thing: Any) -> list[Any]:
    """Gather one object of every process, in the order of their ranks. A collective: every process must call it."""
    if not torch.distributed.is_initialized():
        return [thing]
    things: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(things, thing)
    return things


def check_same_start(start_step: int, out: Path) -> None:
    """Check that every process resumes from the same checkpoint.

    Raises:
        ValueError: they see different ones, so `out` is not a folder that all machines share.
    """
    steps = gathered(start_step)
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes of this run see checkpoints of steps {', '.join(map(str, steps))} in {out}; name a folder "
            "that all machines share with --set out=…"
        )


@contextmanager
def long_barrier() -> Iterator[Callable[[], None]]:
    """Provide a barrier for work that takes one process longer than a training backend waits before it gives up.

    Yields:
        A function that waits for all processes; it does nothing in a run of one process.
    """
    if not torch.distributed.is_initialized():
        yield lambda: None
        return
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield lambda: torch.distributed.barrier(group=group)
    finally:
        torch.distributed.destroy_process_group(group)


def is_peer_lost(error: BaseException) -> bool:
    """Return whether an error means that another process of the group has gone, rather than a failure here."""
    if isinstance(error, torch.distributed.DistError):
        return True
    together = torch.distributed.is_initialized()
    return together and isinstance(error, RuntimeError) and any(mark in str(error) for mark in PEER_MARKS)
