"""Decoding a recording of any length in bounded memory: samples go to a temporary file that is mapped, not loaded."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

from llaso_common.audio import SILENCE, read_audio

BLOCK_SECONDS = 30


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
    name = name or (str(source) if isinstance(source, str | Path) else "the audio")
    with tempfile.TemporaryFile(prefix="llaso-recording-") as kept:
        peak, count = 0.0, 0
        for block in _blocks(source, rate, name):
            if not np.isfinite(block).all():
                raise ValueError(f"{name}: the recording holds NaN or infinite samples")
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            count += len(block)
            kept.write(block.astype(np.float32).tobytes())
        if not count:
            raise ValueError(f"{name}: the recording holds no samples")
        if peak < SILENCE:
            raise ValueError(f"{name}: the recording is silent")
        kept.flush()
        yield np.memmap(kept, dtype=np.float32, mode="r")


def _blocks(source: str | Path | bytes, rate: int, name: str) -> Iterator[np.ndarray]:
    """Yield mono samples at `rate`, block by block; formats that libsndfile cannot read are decoded at once."""
    try:
        file = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (soundfile.LibsndfileError, OSError):
        yield read_audio(source, rate, name=name)  # reads other formats, or tells what is wrong
        return
    with file:
        stream = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32", quality="HQ")
        read = 0
        while True:
            try:
                block = file.read(BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise ValueError(f"{name}: not readable as audio ({error.error_string})") from None
            read += len(block)
            last = len(block) < BLOCK_SECONDS * file.samplerate
            mono = block.mean(axis=1)
            yield mono if file.samplerate == rate else stream.resample_chunk(mono, last=last)
            if last:
                break
        if read < file.frames:
            missing = (file.frames - read) / file.samplerate
            raise ValueError(
                f"{name}: the file is cut off: {missing:.1f} s of {file.frames / file.samplerate:.1f} s lack"
            )
