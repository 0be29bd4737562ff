"""Pictures of a recording: its waveform, and the log-mel spectrogram that the encoder receives."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

COLUMNS = 1200
"""Number of points drawn; of longer recordings the extremes of each interval are drawn."""
INK, WAVE = "#74809a", "#5b6ee1"
"""Colours of the text and of the waveform; both are readable on a light and on a dark page."""
MEL_COLOURS = LinearSegmentedColormap.from_list("llaso", ("#14173a", "#3a3f9e", "#7c83f0", "#f3b8a0", "#fff3dc"))


def picture(clip: np.ndarray, processor: Any) -> bytes:
    """Draw a waveform above a log-mel spectrogram, with a common time axis.

    Args:
        clip: mono float32 samples at the encoder's rate.
        processor: computes the spectrogram; padding is not drawn.

    Returns:
        A PNG with a transparent background.
    """
    rate = processor.feature_extractor.sampling_rate
    seconds = len(clip) / rate
    figure = Figure(figsize=(5.6, 3.3), layout="constrained")
    wave, spectrum = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))

    low, high = envelope(clip)
    wave.fill_between(np.linspace(0, seconds, len(low)), low, high, color=WAVE, linewidth=0.6)
    loudest = float(np.abs(clip).max())
    wave.set(ylim=(-1.1 * loudest, 1.1 * loudest), yticks=[])
    wave.spines[:].set_visible(False)
    wave.tick_params(bottom=False)

    mel = max_pooled(log_mel(clip, processor))
    spectrum.imshow(mel, origin="lower", aspect="auto", cmap=MEL_COLOURS, extent=(0, seconds, 0, len(mel)))
    spectrum.set(xlabel="seconds", ylabel="mel band", xlim=(0, seconds), yticks=(len(mel) // 2, len(mel)))
    spectrum.spines[:].set_visible(False)
    for axes in (wave, spectrum):
        axes.patch.set_visible(False)
        axes.tick_params(colors=INK, labelsize=11, length=0)
        axes.xaxis.label.set(color=INK, size=11)
        axes.yaxis.label.set(color=INK, size=11)

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=200, transparent=True)
    return png.getvalue()


def log_mel(clip: np.ndarray, processor: Any) -> np.ndarray:
    """Return the features of a clip, its windows joined without padding, `(num_mel_bins, frames)`."""
    windows = [clip[start:stop] for start, stop in processor.audio_windows(len(clip))]  # without the tail of silence
    hop = processor.feature_extractor.hop_length
    mels = zip(processor.log_mel(windows), windows, strict=True)
    return torch.cat([mel[:, : -(-len(window) // hop)] for mel, window in mels], dim=1).numpy()


def envelope(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest sample of each of at most COLUMNS intervals."""
    starts = np.unique(np.linspace(0, len(clip), COLUMNS, endpoint=False, dtype=int))
    return np.minimum.reduceat(clip, starts), np.maximum.reduceat(clip, starts)


def max_pooled(mel: np.ndarray) -> np.ndarray:
    """Return the highest value of each of at most COLUMNS intervals of frames."""
    starts = np.unique(np.linspace(0, mel.shape[1], COLUMNS, endpoint=False, dtype=int))
    return np.maximum.reduceat(mel, starts, axis=1)
