"""Talks to the other processes of a run, and turns their failures into plain errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

GO_ON = "earlier checkpoints are kept. Run the same command again"
PEER_MARKS = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "remote process exited")
"""Words of the messages in which torch's backends say that a process of the group has gone."""
PATIENCE = timedelta(days=7)


class PeerLost(OSError):
    """Another training process, or its machine, is gone."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Give what goes wrong in another process its own words, without the trace of how it got here.

    Raises:
        ValueError: what a reading process raised.
        OSError: a reading process is gone.
        PeerLost: a process that trains along is gone.
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
    """What every process of the run has to say, in the order of their ranks; a collective."""
    if not torch.distributed.is_initialized():
        return [thing]
    things: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(things, thing)
    return things


def check_same_start(start_step: int, out: Path) -> None:
    """Make sure that every process goes on from the same checkpoint.

    Raises:
        ValueError: some see others, so that the folder is not one that all machines share.
    """
    steps = gathered(start_step)
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes of this run see checkpoints of steps {', '.join(map(str, steps))} in {out}; name a folder "
            "that all machines share with --set out=…"
        )


@contextmanager
def long_barrier() -> Iterator[Callable[[], None]]:
    """A barrier for work that takes hours on one process, longer than a training backend waits before it gives up.

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
    """Whether an error says that a process of the group has gone, rather than that something failed here."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in PEER_MARKS)
