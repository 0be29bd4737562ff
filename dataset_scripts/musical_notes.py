"""Musical notes made from sums of partials: an instrument's timbre, a MIDI pitch and a velocity.

They stand in for NSynth if it is not on disk. Pitch is equal-tempered with A4 = 69 = 440 Hz; velocity sets level
and brightness, as it does on a keyboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from llaso_common.audio import SAMPLE_RATE

from .sources.base import Note

VELOCITIES = (25, 50, 75, 100, 127)
"""NSynth's five velocities."""
LEVEL = 0.5
"""Peak of a note at velocity 127."""
FADE_S = 0.01
"""Seconds in which a note fades out at its end."""


@dataclass(frozen=True)
class Timbre:
    """Describes how an instrument sounds.

    Args:
        source: how the sound is made, in NSynth's words: acoustic, electronic or synthetic.
        partials: relative strength of the partials, from the fundamental up.
        attack_s: seconds until the note is at its full level.
        decay_s: seconds in which it falls to 1/e; 0 for instruments that sustain.
        stretch: inharmonicity B: partial n lies at n * sqrt(1 + B n^2) times the fundamental.
        vibrato_hz: rate of a vibrato of a fifth of a semitone; 0 for none.
        breath: level of the noise of breath or bow, relative to the note.
    """

    source: str
    partials: tuple[float, ...]
    attack_s: float
    decay_s: float = 0.0
    stretch: float = 0.0
    vibrato_hz: float = 0.0
    breath: float = 0.0


TIMBRES: Mapping[str, Timbre] = MappingProxyType(
    {
        "bass": Timbre("electronic", (1.0, 0.6, 0.25, 0.1, 0.05), 0.008, decay_s=0.5),
        "flute": Timbre("acoustic", (1.0, 0.25, 0.06, 0.02), 0.06, vibrato_hz=5.0, breath=0.04),
        "guitar": Timbre("acoustic", (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.1), 0.004, decay_s=0.35, stretch=1e-4),
        "keyboard": Timbre("electronic", (1.0, 0.4, 0.3, 0.15, 0.1, 0.05), 0.006, decay_s=0.7, stretch=4e-4),
        "mallet": Timbre("acoustic", (1.0, 0.0, 0.0, 0.35, 0.0, 0.0, 0.0, 0.0, 0.0, 0.12), 0.002, decay_s=0.15),
        "organ": Timbre("electronic", (1.0, 0.8, 0.0, 0.6, 0.0, 0.0, 0.0, 0.4), 0.02),
        "reed": Timbre("acoustic", (1.0, 0.05, 0.7, 0.05, 0.45, 0.05, 0.25), 0.04, breath=0.01),
        "string": Timbre("acoustic", tuple(1 / n for n in range(1, 15)), 0.12, vibrato_hz=6.0, breath=0.01),
        "synth_lead": Timbre("synthetic", tuple((n % 2) / n for n in range(1, 20)), 0.005),
    }
)


def play(note: Note) -> np.ndarray:
    """Return the samples of a note.

    Args:
        note: timbre, MIDI pitch 0 to 127, velocity 1 to 127, length in seconds.

    Returns:
        float32 mono at 16 kHz, shape (seconds * 16000,). Partials above 8 kHz are left out.

    Raises:
        ValueError: the timbre is unknown, or pitch, velocity or length is out of range.
    """
    if note.timbre not in TIMBRES:
        raise ValueError(f"no timbre {note.timbre!r}; there are {', '.join(TIMBRES)}")
    if not (0 <= note.pitch <= 127 and 1 <= note.velocity <= 127 and note.seconds >= FADE_S):
        raise ValueError(f"not a note: {note}; pitch is 0 to 127, velocity 1 to 127, seconds {FADE_S:g} or more")
    timbre = TIMBRES[note.timbre]
    time = np.arange(int(note.seconds * SAMPLE_RATE)) / SAMPLE_RATE
    frequency = 440.0 * 2 ** ((note.pitch - 69) / 12)
    phase = 2 * np.pi * frequency * time
    if timbre.vibrato_hz:
        depth = frequency * (2 ** (0.2 / 12) - 1) / timbre.vibrato_hz
        phase += depth * np.sin(2 * np.pi * timbre.vibrato_hz * time)
    loudness = note.velocity / 127
    sound = np.zeros(time.size)
    for number, strength in enumerate(timbre.partials, start=1):
        ratio = number * np.sqrt(1 + timbre.stretch * number**2)
        if not strength or frequency * ratio >= SAMPLE_RATE / 2:
            continue
        level = strength * loudness ** (0.25 * (number - 1))
        fall = np.exp(-time * np.sqrt(number) / timbre.decay_s) if timbre.decay_s else 1.0
        sound += level * np.sin(ratio * phase) * fall
    if timbre.breath:
        seed = (note.pitch << 8) + note.velocity
        sound += timbre.breath * np.random.default_rng(seed).standard_normal(time.size)
    sound *= np.minimum(time / timbre.attack_s, 1.0) * np.minimum((time[-1] - time) / FADE_S, 1.0)
    peak = float(np.max(np.abs(sound), initial=0.0)) or 1.0
    return (sound / peak * LEVEL * loudness**1.5).astype(np.float32)
