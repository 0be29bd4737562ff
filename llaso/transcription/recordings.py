"""Decoding a recording of any length in bounded memory: samples go to a temporary file that is mapped, not loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from llaso_common.audio import audio_blocks


@contextmanager
def decoded(source: str | Path | bytes, rate: int, name: str | None = None) -> Iterator[np.ndarray]:
    """Decode a recording to mono samples in a temporary file.

    Args:
        source: a path, or the bytes of a file.
        rate: rate of the samples, Hz.
        name: name of the recording in errors; the path by default.

    Yields:
        A read-only memory-mapped float32 array, valid within the block.

    Raises:
        ValueError: the recording cannot be read, is cut off, or is silent; the message names it.
    """
    with tempfile.TemporaryFile(prefix="llaso-recording-") as kept:
        for block in audio_blocks(source, rate, name=name):
            kept.write(block.tobytes())
        kept.flush()
        yield np.memmap(kept, dtype=np.float32, mode="r")
