"""Adds a room's echo and noise to a clean signal, as in a real recording.

Takes float32 mono samples and an `Acoustics`, gives float32 mono samples of the same length. The same numbers give the
same samples; nothing depends on what was done before.
"""

from __future__ import annotations

import numpy as np
import soxr

from llaso_common.audio import SAMPLE_RATE

from . import draw
from .sources.base import Acoustics

CEILING = 0.99
"""Full scale that a sound may reach; louder ones are turned down as a whole rather than clipped."""
TELEPHONE_RATE = 8_000
"""Hz; a telephone's sampling rate."""
GAP_S = 0.003
"""Seconds between the direct sound and the first echo."""


def apply(samples: np.ndarray, acoustics: Acoustics) -> np.ndarray:
    """Place a sound in a room, add noise, narrow its band, change its level: in this order.

    Args:
        samples: float32 mono at 16 kHz, shape (n,).
        acoustics: what to apply.

    Returns:
        float32 samples, shape (n,), never above full scale.
    """
    random = np.random.default_rng(acoustics.seed)
    heard = samples.astype(np.float32)
    if acoustics.reverb_s > 0 and heard.size:
        heard = _convolve(heard, _room(random, acoustics.reverb_s))
    if acoustics.snr_db is not None and heard.size:
        heard = heard + _noise(random, heard, acoustics.snr_db)
    if acoustics.telephone:
        narrow = soxr.resample(heard, SAMPLE_RATE, TELEPHONE_RATE, quality="HQ")
        heard = np.resize(soxr.resample(narrow, TELEPHONE_RATE, SAMPLE_RATE, quality="HQ"), heard.size)
    heard = heard * np.float32(10 ** (acoustics.gain_db / 20))
    return limit(heard)


def limit(samples: np.ndarray) -> np.ndarray:
    """Turn a sound down if it would pass full scale."""
    peak = float(np.max(np.abs(samples), initial=0.0))
    return samples * np.float32(CEILING / peak) if peak > CEILING else samples


def drawn(
    seed: int,
    id: str,
    *,
    snr_db: tuple[float, float] = (12.0, 40.0),
    reverb_s: tuple[float, float] = (0.1, 0.5),
    gain_db: tuple[float, float] = (-12.0, 0.0),
    dry: float = 0.3,
    telephone: float = 0.0,
) -> Acoustics:
    """Draw acoustics for one item by hash.

    Args:
        seed, id: what the draw hangs on.
        snr_db, reverb_s, gain_db: lowest and highest value of each.
        dry: the part of the items left without an echo.
        telephone: the part of the items narrowed to a telephone's band.
    """
    echo = 0.0 if draw.unit(seed, id, "dry") < dry else draw.between(seed, id, "reverb", *reverb_s)
    return Acoustics(
        seed=draw.integer(seed, id, "noise"),
        snr_db=round(draw.between(seed, id, "snr", *snr_db), 2),
        reverb_s=round(echo, 3),
        gain_db=round(draw.between(seed, id, "gain", *gain_db), 2),
        telephone=draw.unit(seed, id, "telephone") < telephone,
    )


def _room(random: np.random.Generator, seconds: float) -> np.ndarray:
    """Return an impulse response: the direct sound, then noise that falls by 60 dB in `seconds` (Polack's model)."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = random.standard_normal(time.size) * 10 ** (-3 * time / seconds)
    tail[: int(GAP_S * SAMPLE_RATE)] = 0
    tail *= 0.5 / max(float(np.sqrt(np.sum(tail**2))), 1e-9)
    return np.concatenate([[1.0], tail[1:]]).astype(np.float32)


def _convolve(signal: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Convolve a signal with a room's response, cut to the signal's length."""
    size = _fast_size(signal.size + answer.size - 1)
    product = np.fft.rfft(signal, size) * np.fft.rfft(answer, size)
    return np.fft.irfft(product, size)[: signal.size].astype(np.float32)


def _fast_size(size: int) -> int:
    """Return the next power of two: a Fourier transform of another length can take many times longer."""
    return 1 << (size - 1).bit_length()


def _noise(random: np.random.Generator, signal: np.ndarray, snr_db: float) -> np.ndarray:
    """Return noise `snr_db` below the signal's power, with a spectrum drawn between white and pink (1/f)."""
    size = _fast_size(signal.size)
    spectrum = np.fft.rfft(random.standard_normal(size, dtype=np.float32))
    slope = random.uniform(0.0, 0.5)
    spectrum[1:] /= np.arange(1, spectrum.size, dtype=np.float32) ** np.float32(slope)
    noise = np.fft.irfft(spectrum, n=size)[: signal.size]
    power = float(np.mean(np.square(noise))) or 1.0
    wanted = float(np.mean(np.square(signal))) / 10 ** (snr_db / 10)
    return (noise * np.sqrt(wanted / power)).astype(np.float32)
