"""Audio files to what the model hears: mono float32 samples at one rate.

WAV, FLAC, OGG, MP3 and AIFF, any rate, any number of channels: decoded by libsndfile, averaged over channels and
resampled by soxr at its high quality, as librosa does by default and the released code with it.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
SILENCE = 1e-4
"""Peak amplitude below which a recording counts as silent: -80 dB of full scale."""


def read_audio(
    source: str | Path | bytes,
    sampling_rate: int = SAMPLE_RATE,
    *,
    name: str | None = None,
    max_seconds: float | None = None,
) -> np.ndarray:
    """Samples of an audio file.

    Args:
        source: a path, or the bytes of a file.
        sampling_rate: Hz of the samples to return.
        name: what to call it in errors; the path by default.
        max_seconds: longer recordings are an error, and are not decoded further than this.

    Returns:
        Mono float32 samples, `(num_samples,)`.

    Raises:
        ValueError: the file is missing, empty, no audio that libsndfile reads, too long or silent; the message names
            it.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "the audio")
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"{name}: there is no such file")
        source = path.read_bytes()
    if not source:
        raise ValueError(f"{name}: the file is empty")
    try:
        with soundfile.SoundFile(io.BytesIO(source)) as file:
            rate = file.samplerate
            frames = -1 if max_seconds is None else int(max_seconds * rate) + 1
            samples = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name}: not readable as audio ({error.error_string})") from None
    if max_seconds is not None and len(samples) > max_seconds * rate:
        raise ValueError(f"{name}: the recording is longer than {max_seconds:g} s")
    if not len(samples):
        raise ValueError(f"{name}: the recording holds no samples")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise ValueError(f"{name}: the recording holds NaN or infinite samples")
    if np.abs(mono).max() < SILENCE:
        raise ValueError(f"{name}: the recording is silent")
    return mono if rate == sampling_rate else soxr.resample(mono, rate, sampling_rate, quality="HQ")
