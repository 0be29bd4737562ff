"""Measures how the seconds of a training step are spent, without making the GPU wait."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

READING, ENCODER, LLM, BACKWARD, OPTIMIZER = "reading", "encoder", "llm", "backward", "optimizer"
SAVING, EVALUATING, TOTAL = "saving", "evaluating", "total"

Mark = float | torch.cuda.Event


def stepping(seconds: Mapping[str, float]) -> float:
    """Return the seconds of a record without those in which the training stood still to save or to evaluate."""
    return seconds.get(TOTAL, 0.0) - seconds.get(SAVING, 0.0) - seconds.get(EVALUATING, 0.0)


class StepTimer:
    """Sums seconds by purpose between two calls of `take`.

    On a GPU the marks are CUDA events: `reading` is then the time that the GPU waited for a batch, not the time that
    the processor spent on it.

    Args:
        cuda: whether the arithmetic runs on a CUDA device.
    """

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.spans: list[tuple[str, Mark, Mark]] = []
        self.taken = time.perf_counter()
        self._hooks: list[RemovableHandle] = []

    def mark(self) -> Mark:
        """Return this moment, on the device's clock."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def measure(self, purpose: str) -> Iterator[None]:
        """Count the time inside for `purpose`."""
        start = self.mark()
        yield
        self.spans.append((purpose, start, self.mark()))

    def watch(self, module: nn.Module, purpose: str) -> None:
        """Count the forward passes of a module for `purpose`."""
        starts: list[Mark] = []
        self._hooks.append(module.register_forward_pre_hook(lambda *_: starts.append(self.mark())))
        self._hooks.append(
            module.register_forward_hook(lambda *_: self.spans.append((purpose, starts.pop(), self.mark())))
        )

    def unwatch(self) -> None:
        """Count no module any longer."""
        while self._hooks:
            self._hooks.pop().remove()

    def take(self) -> dict[str, float]:
        """Return the seconds by purpose since the last call, with their total."""
        seconds: dict[str, float] = defaultdict(float)
        for purpose, start, end in self.spans:
            if isinstance(start, float) and isinstance(end, float):
                seconds[purpose] += end - start
            elif isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
                end.synchronize()
                seconds[purpose] += start.elapsed_time(end) / 1000
        self.spans.clear()
        now = time.perf_counter()
        seconds[TOTAL], self.taken = now - self.taken, now
        return {purpose: round(value, 4) for purpose, value in seconds.items()}
