"""Prepares inputs as LlasoProcessor does, by NumPy, Jinja and tokenizers alone, for programs that run exports.

Conversations and recordings go in; token ids with a placeholder for each audio token and Whisper's log-mel come out,
the same as the processor's (tests hold them against each other).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from llaso_common.audio import read_audio

AUDIO_KEYS = ("audio", "path")
"""Keys of an audio part that may hold its audio."""
MEL_FLOOR = 1e-10
"""The least power of a band."""
MEL_RANGE = 8.0
"""Powers of ten below a window's loudest band at which its log-mel is cut."""
RELEASED_SLICE_GAP = 1
"""Samples that the released code drops between two windows, in `full`."""


@dataclass(frozen=True)
class NumpyInputs:
    """A prompt for the exported parts.

    Attributes:
        input_ids: `(1, tokens)`.
        input_features: log-mel `(windows, num_mel_bins, frames)`; None without audio.
        input_features_mask: `(windows, frames)`, 1 for real frames, 0 for padding.
    """

    input_ids: np.ndarray
    input_features: np.ndarray | None = None
    input_features_mask: np.ndarray | None = None


class NumpyProcessor:
    """Prompts and audio windows for exported files.

    Args:
        folder: what `llaso export onnx` or `llaso export executorch` wrote.
        description: what its description file, such as `llaso_onnx.json`, says.
    """

    def __init__(self, folder: Path, description: dict[str, Any]):
        self.audio, self.text = description["audio"], description["text"]
        self.tokenizer = Tokenizer.from_file(str(folder / self.text["tokenizer"]))
        added = self.tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = sorted(token.content for token in added if token.special)
        template = (folder / self.text["chat_template"]).read_text(encoding="utf-8")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        # transformers' own tags, by which training finds the answers; they write nothing.
        self.template = environment.from_string(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", _kept_blanks, template))
        self.mel_filters = np.load(folder / self.audio["mel_filters"])

    def __call__(self, messages: Sequence[dict[str, Any]], audio: Sequence[Any] = ()) -> NumpyInputs:
        """Turn a conversation into what the parts take.

        Args:
            messages: as LlasoProcessor takes them: a role, and a text or a list of text and audio parts. An audio part
                holds its recording, or takes the next item of `audio`.
            audio: recordings: paths, bytes of a file, or mono samples at the encoder's rate.

        Raises:
            ValueError: a message is malformed, holds a special token as text, or there are not as many recordings as
                audio parts; or one cannot be read.
        """
        self._check(messages)
        parts = [part for message in messages if not isinstance(message["content"], str)
                 for part in message["content"] if part["type"] == "audio"]  # fmt: skip
        sources = [next((part[key] for key in AUDIO_KEYS if part.get(key) is not None), None) for part in parts]
        needed = sum(source is None for source in sources)
        if needed != len(audio):
            raise ValueError(
                f"the conversation has {needed} audio parts without a recording, but {len(audio)} recordings were "
                "passed"
            )
        remaining = iter(audio)
        clips = [
            self._read(next(remaining) if source is None else source, place) for place, source in enumerate(sources)
        ]
        windows = [self.windows(clip) for clip in clips]
        ids = self._expanded(self.prompt(messages), [sum(map(self.count_tokens, of_one)) for of_one in windows])
        if not clips:
            return NumpyInputs(ids)
        return NumpyInputs(ids, *self._stacked([self.log_mel(window) for of_one in windows for window in of_one]))

    # ---- Text ----

    def prompt(self, messages: Sequence[dict[str, Any]]) -> str:
        """Render a conversation, one placeholder for each audio, up to where the answer begins."""
        return self.template.render(
            messages=messages, add_generation_prompt=True, bos_token=self.text["bos_token"], raise_exception=_refuse
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _expanded(self, prompt: str, counts: Sequence[int]) -> np.ndarray:
        begun = self.text["bos_token"] is not None and prompt.startswith(self.text["bos_token"])
        remaining = iter(counts)
        ids: list[int] = []
        for number in self.tokenizer.encode(prompt, add_special_tokens=not begun).ids:
            ids += [number] * (next(remaining) if number == self.text["placeholder_id"] else 1)
        return np.asarray([ids], dtype=np.int64)

    def _check(self, messages: Sequence[dict[str, Any]]) -> None:
        if not messages:
            raise ValueError("there is no conversation")
        for turn, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
                raise ValueError(f'message {turn}: its "role" is none of system, user and assistant')
            content = message.get("content")
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            place = f"message {turn} ({message['role']})"
            if not isinstance(parts, list | tuple) or not all(isinstance(part, dict) for part in parts):
                raise ValueError(f"{place}: its content is neither a text nor a list of parts")
            for part in parts:
                if part.get("type") == "audio" and message["role"] == "user":
                    continue
                if part.get("type") != "text" or not isinstance(part.get("text"), str):
                    raise ValueError(f"{place}: messages hold text, and a user's audio too")
                for token in (*self.special_tokens, self.text["placeholder"]):
                    if token in part["text"]:
                        raise ValueError(
                            f"{place}: the text holds the special token {token!r}, which would break the prompt"
                        )

    # ---- Audio: samples → windows → log-mel, frames → tokens ----

    def _read(self, source: Any, index: int) -> np.ndarray:
        rate = self.audio["sampling_rate"]
        bare = not isinstance(source, str | Path | bytes | dict)
        return read_audio(source, rate, rate=rate if bare else None, name=f"audio {index}" if bare else None)

    def windows(self, clip: np.ndarray) -> list[np.ndarray]:
        """Cut samples into windows, the last with its tail of silence.

        Raises:
            ValueError: they are more than a prompt may hold.
        """
        size, rate = self.audio["window_samples"], self.audio["sampling_rate"]
        step = size + RELEASED_SLICE_GAP if self.audio["padding"] == "full" else size
        windows = [clip[start : start + size] for start in range(0, len(clip), step)]
        if sum(map(len, windows)) > self.audio["max_seconds"] * rate:
            raise ValueError(
                f"the recording lasts {len(clip) / rate:.1f} s, longer than the {self.audio['max_seconds']:g} s that "
                "the processor takes; cut it"
            )
        tail = min(self.audio["tail_samples"], size - len(windows[-1]))
        windows[-1] = np.pad(windows[-1], (0, tail))
        return windows

    def count_tokens(self, window: np.ndarray) -> int:
        """Count the tokens that a window of samples becomes."""
        frames = -(-len(window) // self.audio["hop_length"])
        if self.audio["padding"] == "full":
            frames = self.audio["window_frames"]
        vectors = (frames + 1) // 2
        return -(-vectors // self.audio["projector_stride"])

    def log_mel(self, window: np.ndarray) -> np.ndarray:
        """Compute Whisper's log-mel of a window: `(num_mel_bins, frames)`, whole windows in `full`."""
        n_fft, hop, size = self.audio["n_fft"], self.audio["hop_length"], self.audio["window_samples"]
        half, whole = n_fft // 2, self.audio["window_frames"]
        frames = -(-len(window) // hop)
        if self.audio["padding"] == "full":
            # Frames up to half a transform after the last sample still overlap it; those after hold silence.
            frames = min(frames + half // hop + 1, whole)
        # The samples under these frames, as if the window were padded with silence and reflected at both ends; a whole
        # number of hops, so that the reflection of a single frame is inside.
        samples = np.zeros(-(-((frames - 1) * hop + n_fft) // hop) * hop, dtype=np.float32)
        samples[half : half + len(window)] = window[: len(samples) - half]
        samples[:half] = samples[half + 1 : n_fft + 1][::-1]
        beyond = len(samples) - half - size
        if beyond > 0:
            samples[-beyond:] = samples[-2 * beyond - 1 : -beyond - 1][::-1]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
        spectrum = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(samples, n_fft)[::hop][:frames] * hann)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        mel = np.log10(np.maximum(power @ self.mel_filters, MEL_FLOOR)).T
        if self.audio["padding"] == "full":
            mel = np.pad(mel, ((0, 0), (0, whole - frames)), constant_values=np.log10(MEL_FLOOR))
        return (np.maximum(mel, mel.max() - MEL_RANGE) + 4.0) / 4.0

    def _stacked(self, mels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        longest = max(mel.shape[1] for mel in mels)
        features = np.zeros((len(mels), mels[0].shape[0], longest), dtype=np.float32)
        mask = np.zeros((len(mels), longest), dtype=np.int64)
        for row, mel in enumerate(mels):
            features[row, :, : mel.shape[1]] = mel
            mask[row, : mel.shape[1]] = 1
        return features, mask


def _kept_blanks(tag: re.Match[str]) -> str:
    """Replace a tag by an empty comment that takes the same blanks beside it."""
    opening, closing = ("{#-" if "{%-" in tag.group() else "{#"), ("-#}" if "-%}" in tag.group() else "#}")
    return f"{opening} {closing}"


def _refuse(message: str) -> None:
    raise ValueError(message)
