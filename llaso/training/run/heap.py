"""Keeps the C library's heap from growing while tensors of changing shapes come and go on the CPU.

A step frees its activations, but the holes that they leave do not fit those of the next step, which is of another
length. glibc keeps them, so a run's memory grows over its first hundreds of steps to a multiple of what is alive
at once. Giving them back after every step would make the next one fault its pages in again. So they go back only
when the process has grown beyond what single steps have needed.
"""

from __future__ import annotations

import ctypes

import psutil
from transformers import TrainerCallback

GROWTH = 1.15
"""Growth beyond the largest footprint of a single step at which the heap is trimmed."""


class TrimHeap(TrainerCallback):
    """Gives free pages back to the system after a step that has left the process larger than any single step needs."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.trim = library.malloc_trim if hasattr(library, "malloc_trim") else None  # glibc has it
        self.process = psutil.Process()
        self.footprint = 0
        self.trimmed = True

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.trim is None:
            return
        now = self.process.memory_info().rss
        if self.trimmed:
            self.footprint, self.trimmed = max(self.footprint, now), False
        elif now > GROWTH * self.footprint:
            self.trim(0)
            self.trimmed = True
