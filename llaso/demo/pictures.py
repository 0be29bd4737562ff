"""What the encoder sees of a recording: its waveform, and the log-mel spectrogram the processor makes of it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

COLUMNS = 1200
"""Points in time that a picture resolves; longer recordings are drawn by their loudest moments."""
INK, WAVE = "#74809a", "#5b6ee1"
"""Of the lettering and of the waveform: readable on a light page and on a dark one."""
MEL_COLOURS = LinearSegmentedColormap.from_list("llaso", ("#14173a", "#3a3f9e", "#7c83f0", "#f3b8a0", "#fff3dc"))


def picture(clip: np.ndarray, processor: Any) -> bytes:
    """A waveform above a log-mel spectrogram, on one axis of time.

    Args:
        clip: mono float32 samples at the encoder's rate.
        processor: whose `log_mel` is drawn. Padding with silence is not.

    Returns:
        A PNG without background.
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

    mel = shrunk(log_mel(clip, processor))
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
    """The features of a clip, window after window and without padding, `(num_mel_bins, frames)`."""
    windows = [clip[start:stop] for start, stop in processor.audio_windows(len(clip))]
    hop = processor.feature_extractor.hop_length
    mels = zip(processor.log_mel(windows), windows, strict=True)
    return torch.cat([mel[:, : -(-len(window) // hop)] for mel, window in mels], dim=1).numpy()


def envelope(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest sample of each of at most COLUMNS stretches."""
    starts = np.unique(np.linspace(0, len(clip), COLUMNS, endpoint=False, dtype=int))
    return np.minimum.reduceat(clip, starts), np.maximum.reduceat(clip, starts)


def shrunk(mel: np.ndarray) -> np.ndarray:
    """The highest value of each of at most COLUMNS stretches of frames."""
    starts = np.unique(np.linspace(0, mel.shape[1], COLUMNS, endpoint=False, dtype=int))
    return np.maximum.reduceat(mel, starts, axis=1)
