"""Finding speech: which frames of a recording hold it.

`EnergyFinder` compares levels and needs nothing but NumPy; whatever is loud counts as speech. `SileroFinder` is a
small network that tells speech from music and noise (extra `vad`).
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llaso_common.audio import SAMPLE_RATE, SILENT_PEAK

FRAME_SECONDS = 0.02
BLOCK_FRAMES = 8
"""Recordings that are heard block by block come in multiples of so many frames: 0.16 s, the shortest time that is
whole numbers of 20 ms frames and of silero's 32 ms."""
LEVELS_AT_ONCE_SECONDS = 30.0
"""Levels are computed from so much sound at once, which bounds the memory of long recordings."""
FINDERS = ("energy", "silero")


class SpeechFinder(Protocol):
    """Finds speech in mono samples, in two steps; safe to use from several threads."""

    def measure(self, samples: np.ndarray, rate: int, state: Any = None) -> tuple[np.ndarray, Any]:
        """Measure each frame of `FRAME_SECONDS`.

        Args:
            samples: a recording, or the next block of one; every block but the last has a multiple of `BLOCK_FRAMES`.
            rate: of the samples, Hz.
            state: what the call before returned; None for the beginning.

        Returns:
            A number for each frame, the last of which may be shorter, and the state for the next block.
        """
        ...

    def judge(self, measured: np.ndarray) -> np.ndarray:
        """Return whether each frame holds speech, by what was measured of it and its neighbours."""
        ...

    def for_live(self) -> SpeechFinder:
        """Return the finder to use while a recording is still being made."""
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


def available_finders() -> tuple[str, ...]:
    """Return the names of the finders that work here, the default first."""
    found = []
    for name in FINDERS:
        with contextlib.suppress(ValueError):  # its extra is not installed
            speech_finder(name)
            found.append(name)
    return tuple(found)


def frame_levels(samples: np.ndarray, frame: int) -> np.ndarray:
    """Return the level of each frame of `frame` samples in dB of full scale; the last frame may be shorter."""
    levels = []
    block = round(LEVELS_AT_ONCE_SECONDS / FRAME_SECONDS) * frame
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
"""Speech rises so far above a steady background. Whatever is this close to the loudest level is speech."""


class EnergyFinder:
    """A frame is speech if its level exceeds a threshold between the quiet and the loud frames around it.

    Args:
        keep_steady: count sound without pauses as speech, so that a recording that is speech throughout is not lost.
            Off for live sound, in which it would be the noise before the first word.
    """

    def __init__(self, keep_steady: bool = True) -> None:
        self._keep_steady = keep_steady

    def measure(self, samples: np.ndarray, rate: int, state: Any = None) -> tuple[np.ndarray, Any]:
        """Return the level of each frame in dB of full scale."""
        return frame_levels(samples, round(FRAME_SECONDS * rate)), None

    def judge(self, measured: np.ndarray) -> np.ndarray:
        """Return which levels are those of speech."""
        if not len(measured):
            return np.zeros(0, bool)
        return measured > np.maximum(self._threshold(measured), 20 * np.log10(SILENT_PEAK))

    def for_live(self) -> EnergyFinder:
        """Return a finder to which steady noise is no speech."""
        return EnergyFinder(keep_steady=False)

    def _threshold(self, levels: np.ndarray) -> np.ndarray:
        """Return the level above which each frame is speech."""
        size = round(NEIGHBOURHOOD_SECONDS / FRAME_SECONDS)
        starts = range(0, len(levels), size // 2)
        most = np.percentile(levels, LOUD) - MIN_DROP_DB if self._keep_steady else np.inf
        thresholds = []
        for start in starts:
            quiet, loud = np.percentile(levels[max(0, start - size // 4) : start + 3 * size // 4], [QUIET, LOUD])
            threshold = max(quiet + max((loud - quiet) / 4, MIN_RISE_DB), loud - MAX_RANGE_DB)
            thresholds.append(min(threshold, most))
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

    def measure(self, samples: np.ndarray, rate: int, state: Any = None) -> tuple[np.ndarray, Any]:
        """Return the probability of speech at the middle of each frame.

        Raises:
            ValueError: the rate is not the network's, 16 kHz.
        """
        if rate != SAMPLE_RATE:
            raise ValueError(f"the silero speech finder takes samples at {SAMPLE_RATE} Hz, not {rate} Hz")
        probabilities, state = self._probabilities(samples, state)
        frame = round(FRAME_SECONDS * rate)
        middles = np.minimum(np.arange(0, len(samples), frame) + frame // 2, max(0, len(samples) - 1))
        return probabilities[middles // SILERO_FRAME], state

    def judge(self, measured: np.ndarray) -> np.ndarray:
        """Return which probabilities are those of speech: stretches above the lower that somewhere reach the upper."""
        above = measured >= SPEECH_GOES_ON
        begins = above & ~np.concatenate([[False], above[:-1]])
        stretch = np.cumsum(begins)  # number of the stretch, for frames above
        reached = np.unique(stretch[measured >= SPEECH_BEGINS])
        return above & np.isin(stretch, reached)

    def for_live(self) -> SileroFinder:
        """Return itself."""
        return self

    def _probabilities(self, samples: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """Return the probability of speech in each 32 ms, and the network's state behind them."""
        hidden = cell = np.zeros((1, 1, 128), np.float32)
        context = np.zeros((1, SILERO_CONTEXT), np.float32)
        if state is not None:
            hidden, cell, context = state
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
        return np.concatenate(found), (hidden, cell, context)
