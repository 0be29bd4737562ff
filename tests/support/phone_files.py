"""Recordings and films as telephones and browsers write them, by PyAV."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import soxr


def film_or_recording(
    samples: np.ndarray,
    sampling_rate: int,
    container: str,
    codec: str,
    rate: int,
    picture: bool = False,
    **options: str,
) -> bytes:
    """Return samples `(channels, frames)` in a container, as telephones and browsers write it."""
    av = pytest.importorskip("av", reason="the extra formats is not installed")
    file = tempfile.NamedTemporaryFile()
    with file, av.open(file.name, "w", format=container, options=options) as out:
        film = out.add_stream("mpeg4", rate=25) if picture else None
        track = out.add_stream(codec, rate=rate, layout="stereo")
        if film is not None:
            film.width = film.height = 64
            for number in range(50):
                image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), format="rgb24")
                out.mux(film.encode(image))
            out.mux(film.encode(None))
        samples = np.broadcast_to(samples, (2, samples.shape[-1]))
        samples = np.ascontiguousarray(soxr.resample(samples.T, sampling_rate, rate).T.astype(np.float32))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.rate, frame.pts = rate, 0
        fitting = av.AudioResampler(track.codec_context.format, "stereo", rate, FRAMES_AT_ONCE[codec])
        for piece in fitting.resample(frame) + fitting.resample(None):
            out.mux(track.encode(piece))
        out.mux(track.encode(None))
        out.close()
        return Path(file.name).read_bytes()


FRAMES_AT_ONCE = {"aac": 1024, "libopus": 960, "flac": 4608}
"""What each encoder takes."""
FILES = {
    "m4a": ("ipod", "aac", 44_100),
    "mp4 to be read at once": ("mp4", "aac", 48_000, False),
    "aac": ("adts", "aac", 44_100),
    "webm": ("webm", "libopus", 48_000),
    "mkv": ("matroska", "flac", 48_000),
    "film": ("mp4", "aac", 44_100, True),
    "ts": ("mpegts", "aac", 48_000, True),
}
