"""Finding speech: which frames of a recording hold it.

`EnergyFinder` compares levels and needs nothing but NumPy; whatever is loud counts as speech. `SileroFinder` is a
small network that tells speech from music and noise (extra `vad`).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llaso_common.audio import SAMPLE_RATE, SILENT_PEAK

FRAME_SECONDS = 0.02
BLOCK_SECONDS = 30.0
FINDERS = ("energy", "silero")


class SpeechFinder(Protocol):
    """Finds speech in mono samples; safe to call from several threads.

    Attributes:
        context_seconds: sound before a place that the decision there depends on.
    """

    context_seconds: float

    def __call__(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Return whether each frame of `FRAME_SECONDS` holds speech; the last frame may be shorter."""
        ...


def speech_finder(name: str) -> SpeechFinder:
    """Return a finder by its name, one of `FINDERS`.

    Raises:
        ValueError: there is none of that name, or it needs an extra that is not installed.
    """
    if name == "energy":
        return EnergyFinder()
    if name == "silero":
        return SileroFinder()
    raise ValueError(f"there is no speech finder {name!r}; choose one of {', '.join(FINDERS)}")


def frame_levels(samples: np.ndarray, frame: int) -> np.ndarray:
    """Return the level of each frame of `frame` samples in dB of full scale; the last frame may be shorter."""
    levels = []
    block = round(BLOCK_SECONDS / FRAME_SECONDS) * frame
    for start in range(0, len(samples), block):
        energy = np.square(samples[start : start + block], dtype=np.float64)
        starts = np.arange(0, len(energy), frame)
        sizes = np.minimum(frame, len(energy) - starts)
        levels.append(10 * np.log10(np.add.reduceat(energy, starts) / sizes + 1e-12))
    return np.concatenate(levels) if levels else np.zeros(0)


# --- by level --------------------------------------------------------------------------------------------------------

NEIGHBOURHOOD_SECONDS = 60.0
"""The threshold follows the levels of this stretch, because loudness changes within a long recording."""
QUIET, LOUD = 10, 95
"""Percentiles of the frames' levels that stand for background and speech."""
MAX_RANGE_DB = 35.0
"""Frames this far below the level of speech are not speech, however quiet the background is."""
MIN_RISE_DB, MIN_DROP_DB = 6.0, 10.0
"""Speech rises so far above a steady background; and whatever is this close to the loudest level is speech."""


class EnergyFinder:
    """A frame is speech if its level exceeds a threshold between the quiet and the loud frames around it."""

    context_seconds = NEIGHBOURHOOD_SECONDS

    def __call__(self, samples: np.ndarray, rate: int) -> np.ndarray:
        levels = frame_levels(samples, round(FRAME_SECONDS * rate))
        if not len(levels):
            return np.zeros(0, bool)
        return levels > np.maximum(_threshold(levels), 20 * np.log10(SILENT_PEAK))


def _threshold(levels: np.ndarray) -> np.ndarray:
    """Return the level above which each frame is speech."""
    size = round(NEIGHBOURHOOD_SECONDS / FRAME_SECONDS)
    starts = range(0, len(levels), size // 2)
    loudest = np.percentile(levels, LOUD)
    thresholds = []
    for start in starts:
        quiet, loud = np.percentile(levels[max(0, start - size // 4) : start + 3 * size // 4], [QUIET, LOUD])
        threshold = max(quiet + max((loud - quiet) / 4, MIN_RISE_DB), loud - MAX_RANGE_DB)
        thresholds.append(min(threshold, loudest - MIN_DROP_DB))
    return np.repeat(thresholds, size // 2)[: len(levels)]


# --- by silero-vad ---------------------------------------------------------------------------------------------------

SILERO_FRAME, SILERO_CONTEXT = 512, 64
"""Samples that the network judges at once, and samples before them that it is shown again."""
SILERO_BLOCK = 512
"""Frames of a call: sixteen seconds of sound."""
SPEECH_BEGINS, SPEECH_GOES_ON = 0.5, 0.35
"""Probabilities: speech begins above the first, and ends below the second. Silero's own values."""


class SileroFinder:
    """Speech by silero-vad's network, which is in its wheel, computed by onnxruntime on one core.

    The package `silero_vad` is not imported: that would set torch's threads to one for the whole process.

    Raises:
        ValueError: the extra `vad` is not installed.
    """

    context_seconds = 2.0

    def __init__(self) -> None:
        package = importlib.util.find_spec("silero_vad")
        try:
            import onnxruntime
        except ImportError:
            onnxruntime = None
        if package is None or package.origin is None or onnxruntime is None:
            missing = "onnxruntime" if onnxruntime is None else "silero-vad"
            raise ValueError(f"{missing} is not installed; the silero speech finder needs pip install 'llaso[vad]'")
        network = Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx"
        if not network.is_file():
            raise ValueError(f"{network} is missing: this silero-vad is too old; pip install -U 'llaso[vad]'")
        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            network, sess_options=options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Return whether each frame of `FRAME_SECONDS` holds speech.

        Raises:
            ValueError: the rate is not the network's, 16 kHz.
        """
        if rate != SAMPLE_RATE:
            raise ValueError(f"the silero speech finder takes samples at {SAMPLE_RATE} Hz, not {rate} Hz")
        judged = _with_hysteresis(self.probabilities(samples))
        frame = round(FRAME_SECONDS * rate)
        middles = np.minimum(np.arange(0, len(samples), frame) + frame // 2, max(0, len(samples) - 1))
        return judged[middles // SILERO_FRAME]

    def probabilities(self, samples: np.ndarray) -> np.ndarray:
        """Return the probability of speech in each frame of 32 ms."""
        hidden = cell = np.zeros((1, 1, 128), np.float32)
        context = np.zeros((1, SILERO_CONTEXT), np.float32)
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(samples), SILERO_BLOCK * SILERO_FRAME):
            block = np.asarray(samples[start : start + SILERO_BLOCK * SILERO_FRAME], np.float32)
            frames = np.pad(block, (0, -len(block) % SILERO_FRAME)).reshape(-1, SILERO_FRAME)
            contexts = np.concatenate([context, frames[:-1, -SILERO_CONTEXT:]])
            values, hidden, cell = self._session.run(
                ["speech_probs", "hn", "cn"],
                {"input": np.concatenate([contexts, frames], axis=1), "h": hidden, "c": cell},
            )
            context = frames[-1:, -SILERO_CONTEXT:]
            found.append(values.reshape(-1))
        return np.concatenate(found)


def _with_hysteresis(probabilities: np.ndarray) -> np.ndarray:
    """Return whether each frame is speech: a stretch above the lower threshold that somewhere reaches the upper."""
    above = probabilities >= SPEECH_GOES_ON
    begins = above & ~np.concatenate([[False], above[:-1]])
    stretch = np.cumsum(begins)  # number of the stretch, for frames above
    reached = np.unique(stretch[probabilities >= SPEECH_BEGINS])
    return above & np.isin(stretch, reached)
