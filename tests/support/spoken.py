"""Recordings with known speech: voices and pauses in turn, and one without any speech."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from support.tiny_llaso import RATE


def voice(seconds: float, level: float = 0.2, seed: int = 0) -> np.ndarray:
    """Return sound that swells four times a second as syllables do."""
    times = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(0, 1, len(times))
    return (level * (0.55 - 0.45 * np.cos(2 * np.pi * 4 * times)) * noise).astype(np.float32)


def recording(
    stretches: Sequence[tuple[float, float]], noise: float = 1e-4, level: float = 0.2
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return pauses and voices in turn, then a second's pause, all over noise; and where the voices are.

    Args:
        stretches: seconds of each pause and of the voice behind it.
        noise: its standard deviation.
        level: of the voices.
    """
    parts: list[np.ndarray] = []
    spoken, length = [], 0
    for number, (pause, seconds) in enumerate([*stretches, (1.0, 0.0)]):
        parts += [np.zeros(round(pause * RATE), np.float32), voice(seconds, level, number)]
        length += len(parts[-2]) + len(parts[-1])
        spoken.append((length - len(parts[-1]), length))
    samples = np.concatenate(parts)
    return samples + np.random.default_rng(9).normal(0, noise, len(samples)).astype(np.float32), spoken[:-1]


def without_speech(seconds: float) -> np.ndarray:
    """Return silence with a click in its middle, which is too short to be speech."""
    samples = np.zeros(round(seconds * RATE), np.float32)
    samples[len(samples) // 2 :][:160] = 0.5
    return samples
