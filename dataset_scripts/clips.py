"""Stores synthesized clips: each is made once and kept under the hash of its content.

A clip's address is the SHA-256 of its sound (text, voice, rate, pitch, room and noise) and of what made it.
Files are written beside their place and renamed into it, so that a killed worker leaves no half clip and two workers
may make the same one.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import soundfile

from llaso_common.atomic_write import write_atomically
from llaso_common.audio import SAMPLE_RATE, AudioError, audio_seconds, check_heard, join_clips, read_audio

from . import acoustics, musical_notes
from .sources.base import Note, Recording, Sound, Speech
from .synthesize import Backend, backend

NOTES_VERSION = 1
"""Part of a note's address; raise it when `musical_notes.play` sounds different."""


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
                with contextlib.suppress(ValueError):  # `clip` raises it for the caller that asks for the clip
                    self._keep(sound, samples)

    def clip(self, sounds: tuple[Sound, ...], most: float = math.inf) -> bytes:
        """Make one clip as 16 kHz mono FLAC; several sounds are joined with a short pause.

        Args:
            sounds: what is heard, in order.
            most: seconds that a recording may last.

        Raises:
            ValueError: a recording cannot be used (see `read_recording`), or the speech backend said nothing.
        """
        if len(sounds) == 1 and not isinstance(sounds[0], Recording):
            return self._made(sounds[0])
        return encode(
            join_clips(
                [read_recording(s, most) if isinstance(s, Recording) else decode(self._made(s)) for s in sounds]
            )
        )

    @property
    def _speaker(self) -> Backend:
        if self._backend is None:
            self._backend = backend(self._speech_name)
        return self._backend

    def _made(self, sound: Speech | Note) -> bytes:
        """Return a synthesized sound as FLAC, from the store or made now."""
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
        with _reasons():
            check_heard(samples, "speech")
        data, file = encode(samples), self._file(self._address(sound))
        write_atomically(file, data)
        return data

    def _address(self, sound: Speech | Note) -> str:
        maker = f"notes {NOTES_VERSION}" if isinstance(sound, Note) else self._speaker.name
        return sha256(json.dumps([maker, asdict(sound)], sort_keys=True).encode()).hexdigest()

    def _file(self, address: str) -> Path:
        return self.root / address[:2] / address[2:4] / f"{address}.flac"


def encode(samples: np.ndarray) -> bytes:
    """Encode float32 mono samples at 16 kHz as 16-bit FLAC."""
    buffer = io.BytesIO()
    soundfile.write(buffer, acoustics.limit(samples), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """Decode FLAC bytes as written by `encode` to float32 samples, shape (n,)."""
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == SAMPLE_RATE and samples.ndim == 1
    return samples


def seconds(flac: bytes) -> float:
    """Return the length of a clip written by `encode`, from its header (STREAMINFO: samples end at byte 26)."""
    return (int.from_bytes(flac[18:26], "big") & (1 << 36) - 1) / SAMPLE_RATE


def recording_seconds(recording: Recording) -> float:
    """Return how long a stretch of a file is, by the file's header.

    Raises:
        ValueError: the file is missing, empty or not readable, or the stretch lies outside it.
    """
    with _reasons():
        return audio_seconds(recording.path, start=recording.start, end=recording.end)


def read_recording(recording: Recording, most: float = math.inf) -> np.ndarray:
    """Read a stretch of a file as float32 mono at 16 kHz.

    Args:
        recording: the file and the stretch.
        most: seconds; a longer stretch is refused before it is read.

    Raises:
        ValueError: the file is missing, empty, not readable, silent or cut off, the stretch lies outside it, or is
            longer than `most`. The message does not name the file: it is counted, and listed beside the file's name.
    """
    with _reasons():
        heard = read_audio(recording.path, start=recording.start, end=recording.end, max_seconds=most)
    return acoustics.apply(heard, recording.acoustics) if recording.acoustics else heard


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Raise the reason why a recording cannot be used without its name."""
    try:
        yield
    except AudioError as error:
        raise ValueError(error.reason) from error
