"""Writes checkpoints in a thread, beside the training: the files of one checkpoint at a time.

On the CPU the files are written from the live tensors, which the forward and the backward pass only read: it takes no
memory, and the next update waits until the files are there. From any other device the tensors are copied to the host
first, so that the next update need not wait for the disk; that takes as much host memory as the files are large.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from transformers import TrainerCallback

from .step_timer import SAVING, StepTimer

logger = logging.getLogger(__name__)


class BackgroundSave:
    """Runs one job at a time in a thread; an error in it is raised in the training, at the next `wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Run a job, after the one before it has ended."""
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as error:  # raised in the training instead
                self._error = error

        self._thread = threading.Thread(target=run, name="save-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            BaseException: what the job raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    @property
    def started(self) -> bool:
        """Whether a job was started and not waited for yet."""
        return self._thread is not None

    def check(self) -> None:
        """Raise what a job that has ended raised, without waiting for one that has not."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def close(self) -> None:
        """Wait at the end of a run, whatever ends it; an error that comes only now is logged."""
        try:
            self.wait()
        except OSError as error:
            logger.error("%s", error)


class WaitForSave(TrainerCallback):
    """Holds an update back while the tensors that it would change are written, and the end of the run in any case.

    Args:
        writer: writes them.
        copies: whether it writes copies, so that an update need not wait.
        timer: counts the time of waiting as saving.
    """

    def __init__(self, writer: BackgroundSave, copies: bool, timer: StepTimer) -> None:
        self.writer, self.copies, self.timer = writer, copies, timer

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if self.copies:
            self.writer.check()
        elif self.writer.started:
            with self.timer.measure(SAVING):
                self.writer.wait()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.writer.wait()


def on_host(tree: Any, copies: bool) -> Any:
    """Return nested containers with their tensors on the CPU, where a thread can write them.

    Args:
        tree: the containers.
        copies: copy tensors that are on the CPU already, too: training goes on while they are written.
    """
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=copies).contiguous(), tree)
