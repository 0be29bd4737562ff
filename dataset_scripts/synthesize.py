"""Synthesizes speech from text: by espeak-ng, or by any text-to-audio model of transformers for better quality.

A backend takes `Speech` and gives float32 mono at 16 kHz. Every clip is a pure function of its text, voice, rate and
pitch, so that clips can be stored under a hash of these and made in any order by any process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr

from llaso_common.audio import SAMPLE_RATE

from . import draw
from .sources.base import Speech

ACCENTS = {
    "american": "en-us",
    "british": "en",
    "caribbean": "en-029",
    "lancastrian": "en-gb-x-gbclan",
    "new yorker": "en-us-nyc",
    "received pronunciation": "en-gb-x-rp",
    "scottish": "en-gb-scotland",
    "west midlands": "en-gb-x-gbcwmd",
}
"""espeak-ng's accents of English. Plain British is called "en": "en-gb" is no name of a voice, and would be spoken in
whatever voice was set before."""
FEMALE = ("f1", "f2", "f3", "f4", "f5", "Annie", "linda", "steph", "belinda", "anika", "aunty", "Alicia", "Andrea")
MALE = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "max", "robert", "john", "travis", "victor", "paul", "rob")
"""Variants of a voice; each can be put on each accent: "en-us+f3"."""


class Backend(Protocol):
    """Speaks texts."""

    name: str
    """Identifies the backend, its version and its settings: part of a clip's address."""

    def speak(self, batch: Sequence[Speech]) -> list[np.ndarray]:
        """Return the samples of each text, float32 mono at 16 kHz."""
        ...


def backend(name: str = "espeak") -> Backend:
    """Return a backend by name: "espeak", or the id or folder of a transformers text-to-audio model."""
    return Espeak() if name == "espeak" else TextToAudio(name)


def voices(accents: Sequence[str] = (), variants: Sequence[str] = FEMALE + MALE) -> list[str]:
    """List espeak voices: every variant on every accent (all of `ACCENTS` by default)."""
    return [f"{ACCENTS[accent]}+{variant}" for accent in accents or ACCENTS for variant in variants]


# --- espeak-ng -----------------------------------------------------------------------------------------------------

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: AUDIO_OUTPUT_SYNCHRONOUS
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_UTF8 = 1  # espeakCHARS_UTF8
_IPA = 2  # phoneme mode of espeak_TextToPhonemes
_SAMPLES = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """Speaks with espeak-ng through the library in the wheel `espeakng-loader` (extra `tts`; GPL-3, hence optional).

    espeak-ng keeps noise and flutter generators running from one utterance to the next, so that a clip would depend on
    those before it. The library is therefore loaded anew, and seeded, for every clip: about 5 ms more.

    Raises:
        ValueError: the extra `tts` is not installed.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ValueError("espeak-ng is not installed: pip install 'llaso[tts]'") from error
        self._copy, self._library = _copy_of(espeakng_loader.get_library_path())
        self._data = espeakng_loader.get_data_path()
        self._variants = {path.name for path in (Path(self._data) / "voices" / "!v").iterdir()}
        self.name = f"espeak-ng {metadata.version('espeakng-loader')}"

    def speak(self, batch: Sequence[Speech]) -> list[np.ndarray]:
        """Return the samples of each text.

        Raises:
            ValueError: there is no such voice.
        """
        return [self._speak(speech) for speech in batch]

    def phonemes(self, text: str, voice: str) -> str:
        """Return a text in IPA in a voice's accent: words separated by spaces, no stress marks, no punctuation."""
        espeak = self._reader
        self._set_voice(espeak, voice)
        rest, clauses = ctypes.c_char_p(text.encode()), []
        while rest.value:
            clauses.append(espeak.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA).decode())
        return " ".join(re.sub(r"[ˈˌ]|\([a-z-]+\)", "", " ".join(clauses)).split())

    @functools.cached_property
    def _reader(self) -> Any:
        """Return a second copy of the library, kept loaded: converting spelling to phonemes has no state.

        It is loaded from a copy, because one file is loaded but once: speech could not begin afresh beside it.
        """
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(self._library, f"{folder}/espeak-ng")
            espeak = ctypes.CDLL(copy)
        if espeak.espeak_Initialize(_SYNCHRONOUS, 0, self._data.encode(), 0) <= 0:
            raise OSError(f"espeak-ng found no data in {self._data}")
        espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
        return espeak

    def _speak(self, speech: Speech) -> np.ndarray:
        heard = bytearray()

        def take(samples: Any, count: int, events: Any) -> int:
            if samples and count > 0:
                heard.extend(ctypes.string_at(samples, 2 * count))
            return 0

        callback = _SAMPLES(take)
        with _Loaded(self._library, self._data) as loaded:
            espeak = loaded.library
            espeak.espeak_SetSynthCallback(callback)
            self._set_voice(espeak, speech.voice)
            espeak.espeak_SetParameter(_RATE, speech.rate, 0)
            espeak.espeak_SetParameter(_PITCH, speech.pitch, 0)
            text = speech.text.replace("\0", " ").encode() + b"\0"
            status = espeak.espeak_Synth(text, len(text), 0, 1, 0, _UTF8, None, None)
            if status:
                raise OSError(f"espeak-ng could not speak {speech.text[:40]!r}: error {status}")
            espeak.espeak_Synchronize()
        samples = np.frombuffer(bytes(heard), "<i2").astype(np.float32) / 32768
        return soxr.resample(samples, loaded.rate, SAMPLE_RATE, quality="HQ").astype(np.float32)

    def _set_voice(self, espeak: Any, voice: str) -> None:
        _, _, variant = voice.partition("+")
        # An unknown variant is no error to espeak-ng; it just speaks without it.
        if (variant and variant not in self._variants) or espeak.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}; e.g. {', '.join(voices(variants=('f3',)))}")


def _copy_of(library: str) -> tuple[Any, str]:
    """Copy a library for one process alone; return an object that keeps it alive and a path to load it from.

    A file that something else in the process (phonemizer, say) keeps loaded is never unloaded, and every clip would
    carry on from the one before. On Linux the copy is memory, which a killed worker cannot leave behind.
    """
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("espeak-ng"), "wb")
        file.write(Path(library).read_bytes())
        file.flush()
        return file, f"/proc/self/fd/{file.fileno()}"
    folder = tempfile.TemporaryDirectory(prefix="llaso-espeak-")
    return folder, shutil.copy(library, folder.name)


class _Loaded:
    """Loads espeak-ng's library in its initial state on entry and unloads it on exit. `rate` is in Hz."""

    def __init__(self, library: str, data: str) -> None:
        self._path, self._data = library, data

    def __enter__(self) -> _Loaded:
        self.library: Any = ctypes.CDLL(self._path)
        self.rate: int = self.library.espeak_Initialize(_SYNCHRONOUS, 0, self._data.encode(), 0)
        if self.rate <= 0:
            raise OSError(f"espeak-ng found no data in {self._data}")
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        return self

    def __exit__(self, *error: object) -> None:
        import _ctypes  # the only way to unload a library

        self.library.espeak_Terminate()
        _ctypes.dlclose(self.library._handle)


@functools.cache
def _espeak() -> Espeak:
    return Espeak()


def phonemes(text: str, voice: str = "en-us") -> str:
    """Return a text in IPA as espeak-ng pronounces it in the accent of `voice`, e.g. "en-us" or "en-gb-scotland+f3".

    Returns:
        Words parted by blanks, without stress marks or punctuation, as in the released PR references.
    """
    return _espeak().phonemes(text, voice)


# --- transformers --------------------------------------------------------------------------------------------------


class TextToAudio:
    """Speaks with any text-to-audio model that `transformers.pipeline("text-to-audio")` loads, e.g. VITS.

    Args:
        model: Hub id or folder.

    A voice is the number of a speaker of the model ("0", "1", ...) or "" for a model with one. Rate and pitch are the
    model's own, whatever `Speech` says.

    Raises:
        ValueError: there is no such model, or it does not speak.
    """

    def __init__(self, model: str) -> None:
        import torch
        from transformers import pipeline

        try:
            self._pipeline = pipeline("text-to-audio", model=model)
        except (OSError, ValueError) as error:
            raise ValueError(f"speech: {model} is no text-to-audio model that can be loaded: {error}") from error
        weights = sha256()
        for name, tensor in sorted(self._pipeline.model.state_dict().items()):
            weights.update(name.encode())
            weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        self.name = f"{type(self._pipeline.model).__name__} {weights.hexdigest()}"

    def speak(self, batch: Sequence[Speech]) -> list[np.ndarray]:
        """Return the samples of each text; noise is seeded by text and voice, so that clips are independent."""
        return [self._speak(speech) for speech in batch]

    def _speak(self, speech: Speech) -> np.ndarray:
        import torch
        from transformers import set_seed

        if (tokenizer := self._pipeline.tokenizer) is not None:
            silent = {tokenizer.pad_token_id, tokenizer.unk_token_id}
            if silent.issuperset(tokenizer(speech.text)["input_ids"]):
                return np.zeros(0, np.float32)  # nothing in it that the model has a letter for
        speakers = getattr(self._pipeline.model.config, "num_speakers", 1)
        if speech.voice and not (speech.voice.isdecimal() and int(speech.voice) < speakers):
            raise ValueError(f"voice {speech.voice!r} is no speaker of the model, which has 0 to {speakers - 1}")
        set_seed(draw.integer(0, f"{speech.voice}\0{speech.text}", "speech") % 2**31)
        settings = {"speaker_id": int(speech.voice)} if speech.voice else {}
        with torch.inference_mode():
            output = self._pipeline(speech.text, forward_params=settings)
        samples = np.asarray(output["audio"], dtype=np.float32).reshape(-1)
        return soxr.resample(samples, output["sampling_rate"], SAMPLE_RATE, quality="HQ").astype(np.float32)
