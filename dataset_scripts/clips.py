"""The store of made clips: each is synthesized once, kept under the hash of what it says, and found again.

A clip's address is the SHA-256 of its sound (text, voice, rate, pitch, room and noise) and of what made it.
Files are written beside their place and renamed into it, so that a killed worker leaves no half clip and two workers
may make the same one.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import soundfile
import soxr

from llaso_common.atomic_write import write_atomically

from . import acoustics, musical_notes
from .schema import SAMPLE_RATE
from .sources.base import Note, Recording, Sound, Speech
from .synthesize import Backend, backend

PAUSE_S = 0.35
"""Silence between the sounds of one clip, seconds."""
SILENCE = 1e-4
"""Peak below which a sound is silent (-80 dB of full scale)."""
TOLERANCE_S = 0.1
"""Seconds by which a file may end before the end that its header or its corpus states."""
NOTES_VERSION = 1
"""Part of a note's address; raise it when `musical_notes.play` sounds different."""


class UnheardError(ValueError):
    """A sound is empty or silent."""


class ClipStore:
    """Makes sounds, and keeps those that had to be synthesized.

    Args:
        root: folder of the kept clips.
        speech: name of the speech backend, see `synthesize.backend`. It is loaded when first needed.
    """

    def __init__(self, root: str | Path, speech: str = "espeak") -> None:
        self.root = Path(root)
        self._speech_name = speech
        self._backend: Backend | None = None

    def prepare(self, sounds: Iterable[Sound]) -> None:
        """Synthesize all speech that is not in the store yet, in batches."""
        wanted = {self._address(sound): sound for sound in sounds if isinstance(sound, Speech)}
        missing = [sound for address, sound in wanted.items() if not self._file(address).exists()]
        for start in range(0, len(missing), 32):
            batch = missing[start : start + 32]
            for sound, samples in zip(batch, self._speaker.speak(batch), strict=True):
                with contextlib.suppress(UnheardError):  # `clip` will say so, to those who asked for it
                    self._keep(sound, samples)

    def clip(self, sounds: tuple[Sound, ...], most: float = math.inf) -> bytes:
        """One clip as 16 kHz mono FLAC; several sounds are joined with a short pause.

        Args:
            sounds: what is heard, in order.
            most: seconds that a recording may last.

        Raises:
            ValueError: a recording cannot be used (see `read_recording`), or the speech backend said nothing.
        """
        if len(sounds) == 1 and not isinstance(sounds[0], Recording):
            return self._made(sounds[0])
        parts: list[np.ndarray] = []
        for sound in sounds:
            if parts:
                parts.append(np.zeros(int(PAUSE_S * SAMPLE_RATE), np.float32))
            parts.append(read_recording(sound, most) if isinstance(sound, Recording) else decode(self._made(sound)))
        return encode(np.concatenate(parts))

    @property
    def _speaker(self) -> Backend:
        if self._backend is None:
            self._backend = backend(self._speech_name)
        return self._backend

    def _made(self, sound: Speech | Note) -> bytes:
        """A synthesized sound as FLAC, from the store or made now."""
        file = self._file(self._address(sound))
        try:
            return file.read_bytes()
        except FileNotFoundError:
            samples = musical_notes.play(sound) if isinstance(sound, Note) else self._speaker.speak([sound])[0]
            return self._keep(sound, samples)

    def _keep(self, sound: Speech | Note, samples: np.ndarray) -> bytes:
        """Put a clip into its place; safe beside other workers doing the same."""
        if sound.acoustics:
            samples = acoustics.apply(samples, sound.acoustics)
        check_heard(samples)
        data, file = encode(samples), self._file(self._address(sound))
        write_atomically(file, data)
        return data

    def _address(self, sound: Speech | Note) -> str:
        maker = f"notes {NOTES_VERSION}" if isinstance(sound, Note) else self._speaker.name
        return sha256(json.dumps([maker, asdict(sound)], sort_keys=True).encode()).hexdigest()

    def _file(self, address: str) -> Path:
        return self.root / address[:2] / address[2:4] / f"{address}.flac"


def encode(samples: np.ndarray) -> bytes:
    """float32 mono at 16 kHz to 16-bit FLAC."""
    buffer = io.BytesIO()
    soundfile.write(buffer, acoustics.limit(samples), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """FLAC bytes as written by `encode` to float32 samples, shape (n,)."""
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == SAMPLE_RATE and samples.ndim == 1
    return samples


def seconds(flac: bytes) -> float:
    """Length of a clip written by `encode`, from its header (STREAMINFO: 36 bits of samples end at byte 26)."""
    return (int.from_bytes(flac[18:26], "big") & (1 << 36) - 1) / SAMPLE_RATE


def check_heard(samples: np.ndarray) -> None:
    """Raise UnheardError for an empty or silent sound, or one whose samples are no numbers."""
    if not samples.size:
        raise UnheardError("empty audio")
    peak = float(np.max(np.abs(samples)))
    if not np.isfinite(peak):
        raise UnheardError("audio with samples that are no numbers")
    if peak < SILENCE:
        raise UnheardError("silent audio")


def recording_seconds(recording: Recording) -> float:
    """How long a stretch of a file is, by the file's header.

    Raises:
        ValueError: the file is missing, empty or not readable, or the stretch lies outside it.
    """
    with _opened(recording) as (file, frames):
        return frames / file.samplerate


def read_recording(recording: Recording, most: float = math.inf) -> np.ndarray:
    """A stretch of a file as float32 mono at 16 kHz.

    Args:
        recording: the file and the stretch.
        most: seconds; a longer stretch is refused before it is read.

    Raises:
        ValueError: the file is missing, empty, not readable, silent or cut off, the stretch lies outside it, or is
            longer than `most`.
    """
    with _opened(recording) as (file, frames):
        rate = file.samplerate
        if frames > most * rate:
            raise ValueError(f"longer than {most:g} s")
        samples = file.read(frames, dtype="float32", always_2d=True)
    if len(samples) < frames - TOLERANCE_S * rate:
        raise ValueError("unreadable audio: it is cut off")
    mono = samples.mean(axis=1)
    check_heard(mono)
    heard = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ").astype(np.float32)
    return acoustics.apply(heard, recording.acoustics) if recording.acoustics else heard


@contextlib.contextmanager
def _opened(recording: Recording) -> Iterator[tuple[soundfile.SoundFile, int]]:
    """A recording's file at its first frame, and its frames."""
    try:
        with soundfile.SoundFile(recording.path) as file:
            first = round(recording.start * file.samplerate)
            last = file.frames if recording.end is None else round(recording.end * file.samplerate)
            if not file.frames:
                raise ValueError("empty audio")
            if not 0 <= first < min(last, file.frames):
                raise ValueError("no audio in this stretch")
            if last > file.frames + TOLERANCE_S * file.samplerate:
                raise ValueError("the audio ends before its stretch does")
            file.seek(first)
            yield file, min(last, file.frames) - first
    except FileNotFoundError as error:
        raise ValueError("no such audio file") from error
    except soundfile.LibsndfileError as error:
        if not os.path.exists(recording.path):
            raise ValueError("no such audio file") from error
        empty = os.path.getsize(recording.path) == 0
        raise ValueError("empty audio file" if empty else f"unreadable audio: {error.error_string}") from error
