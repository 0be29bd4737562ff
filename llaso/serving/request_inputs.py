"""Turns a request into the model's inputs: decodes audio, builds the conversation, and checks that it fits."""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llaso_common.audio import read_audio

from ..transcription.pieces import pieces_to_transcribe
from ..transcription.speech_finders import SpeechFinder
from .errors import ApiError
from .instruction import transcription_instruction
from .limits import Limits
from .protocol import AudioPart, AudioUrlPart, ChatRequest, TranscriptionRequest
from .remote_audio import AllowedHosts, fetch

MAX_CHARACTERS_PER_TOKEN = 16
"""Longer text than this per token of the context is refused before tokenizing it, which would be slow."""


@dataclass(frozen=True)
class PromptSize:
    """Size of a prompt and of its answer.

    Args:
        tokens: length of the prompt, audio included.
        audio_tokens: audio placeholders among them.
        audio_seconds: length of all clips together.
        max_tokens: maximum number of tokens of the answer.
    """

    tokens: int
    audio_tokens: int
    audio_seconds: float
    max_tokens: int

    def __add__(self, other: PromptSize) -> PromptSize:
        return PromptSize(
            self.tokens + other.tokens,
            self.audio_tokens + other.audio_tokens,
            self.audio_seconds + other.audio_seconds,
            self.max_tokens + other.max_tokens,
        )


Span = tuple[int, int]
"""Start and stop, in samples."""
Inputs = Mapping[str, torch.Tensor]
"""The processor's output for one conversation."""


class PromptBuilder:
    """Builds prompts; safe to use from several threads.

    Args:
        processor: the model's processor.
        context: length of the model's context in tokens, prompt and answer together.
        limits: `audio_seconds`, `answer_tokens` and those of a request's size and arrival apply here.
        audio_hosts: hosts that audio may be fetched from.
        finder: finds the speech of recordings to transcribe; by default an `EnergyFinder`.
    """

    def __init__(
        self,
        processor,
        context: int,
        limits: Limits,
        audio_hosts: AllowedHosts | None = None,
        finder: SpeechFinder | None = None,
    ):
        self._processor = processor
        self._context = context
        self._limits = limits
        self._audio_hosts = audio_hosts or AllowedHosts()
        self._finder = finder
        # A fast tokenizer is not thread-safe: it raises if two threads encode at once.
        self._tokenizer_lock = threading.Lock()

    def for_chat(self, request: ChatRequest) -> tuple[Inputs, PromptSize]:
        """Build the prompt of a chat.

        Raises:
            ApiError: 400, naming the invalid message.
        """
        messages: list[dict[str, Any]] = []
        clips: list[np.ndarray] = []
        deadline = time.monotonic() + self._limits.upload_seconds
        for number, message in enumerate(request.messages):
            role = "system" if message.role == "developer" else message.role
            content = []
            for place, part in enumerate(message.content):
                if isinstance(part, AudioPart):
                    param = f"messages.{number}.content.{place}.input_audio.data"
                    clips.append(self._clip(_decode_base64(part.input_audio.data, param), clips, param))
                    content.append({"type": "audio"})
                elif isinstance(part, AudioUrlPart):
                    param = f"messages.{number}.content.{place}.audio_url.url"
                    clips.append(self._clip(self._read_url(part.audio_url.url, param, deadline), clips, param))
                    content.append({"type": "audio"})
                else:
                    content.append({"type": "text", "text": part.text})
            messages.append({"role": role, "content": content})
        return self._prompt(messages, clips, request.answer_tokens, ("messages", "messages"))

    def transcription_pieces(self, request: TranscriptionRequest, file: bytes) -> tuple[np.ndarray, list[Span], int]:
        """Read a recording and find its pieces.

        Returns:
            Samples at the encoder's rate, `(start, stop)` positions of the pieces, and the rate in Hz. A recording
            that the encoder takes whole is cut only if the request asks for segments.

        Raises:
            ApiError: 400, if the file cannot be read.
        """
        rate = self._processor.feature_extractor.sampling_rate
        try:
            samples = read_audio(file, rate, name="file", max_seconds=self._limits.audio_seconds)
        except ValueError as error:
            raise ApiError(400, str(error), param="file", code="invalid_audio") from None
        return samples, self.pieces(samples, request.with_segments), rate

    def pieces(self, samples: np.ndarray, cut_short: bool = False) -> list[Span]:
        """Find the pieces of samples at the encoder's rate, as `pieces_to_transcribe` does."""
        extractor = self._processor.feature_extractor
        rate = extractor.sampling_rate
        return pieces_to_transcribe(samples, rate, extractor.n_samples / rate, self._finder, cut_short)

    def for_transcription(self, request: TranscriptionRequest, clip: np.ndarray) -> tuple[Inputs, PromptSize]:
        """Build the prompt that asks for a transcription; the request's `prompt` follows the instruction as context.

        Args:
            request: the form fields.
            clip: samples at the encoder's rate that the encoder takes whole.

        Raises:
            ApiError: 400, naming the invalid field.
        """
        if not clip.any():
            raise ApiError(400, "the recording is silent", param="file", code="invalid_audio")
        instruction = transcription_instruction(self._processor, request.prompt)
        content = [{"type": "text", "text": instruction}, {"type": "audio"}]
        return self._prompt([{"role": "user", "content": content}], [clip], None, ("file", "prompt"))

    def _read_url(self, url: str, param: str, deadline: float) -> bytes:
        """Return the file of a data URI, or of a URL whose host is allowed."""
        if url.startswith("data:"):
            return _decode_base64(url, param)
        try:
            return fetch(url, self._audio_hosts, self._limits.body_bytes, max(0.1, deadline - time.monotonic()))
        except PermissionError as error:
            message = f"{param}: {error}; send the file itself, as input_audio or as a data URI"
            raise ApiError(400, message, param=param, code="url_not_allowed") from None
        except (ValueError, OSError) as error:
            raise ApiError(400, f"{param}: {error}", param=param, code="invalid_url") from None

    def _clip(self, file: bytes, before: Sequence[np.ndarray], param: str) -> np.ndarray:
        rate = self._processor.feature_extractor.sampling_rate
        left = self._limits.audio_seconds - sum(map(len, before)) / rate
        longest = self._processor.max_audio_len
        try:
            return read_audio(file, rate, name=param, max_seconds=min(left, longest))
        except ValueError as error:
            raise ApiError(400, str(error), param=param, code="invalid_audio") from None

    def _prompt(
        self,
        messages: list[dict[str, Any]],
        clips: list[np.ndarray],
        max_tokens: int | None,
        params: tuple[str, str],
    ) -> tuple[Inputs, PromptSize]:
        """Apply the chat template and check the lengths.

        Args:
            messages: the conversation.
            clips: its audio, in reading order.
            max_tokens: requested length of the answer.
            params: fields of the request that hold the audio and the text.
        """
        audio_param, param = params
        characters = sum(len(part.get("text", "")) for message in messages for part in message["content"])
        if characters > MAX_CHARACTERS_PER_TOKEN * self._context:
            raise self._too_long(f"the text has {characters} characters", param)
        try:
            with self._tokenizer_lock:
                inputs = self._processor.apply_chat_template(
                    messages, audio=clips, tokenize=True, return_dict=True, add_generation_prompt=True
                )
        except ValueError as error:
            raise ApiError(400, str(error), param=param, code="invalid_value") from None
        tokens = inputs["input_ids"].shape[1]
        audio_tokens = int(inputs["input_ids"].eq(self._processor.audio_token_id).sum())
        recording_is_larger = audio_tokens > tokens - audio_tokens
        part = "recording" if recording_is_larger else "text"
        measured = f"the {part} is too long: {audio_tokens} tokens of audio and {tokens - audio_tokens} of text"
        at_fault = audio_param if recording_is_larger else param
        if tokens >= self._context:
            raise self._too_long(measured, at_fault)
        most = self._limits.answer_tokens
        if max_tokens is None:
            max_tokens = min(most, self._context - tokens)
        elif max_tokens > most:
            raise ApiError(400, f"max_tokens is {max_tokens}; this server gives at most {most}", param="max_tokens")
        elif tokens + max_tokens > self._context:
            raise self._too_long(f"{measured}, and an answer of {max_tokens}", at_fault)
        seconds = sum(map(len, clips)) / self._processor.feature_extractor.sampling_rate
        return inputs, PromptSize(tokens, audio_tokens, seconds, max_tokens)

    def _too_long(self, what: str, param: str) -> ApiError:
        return ApiError(
            400,
            f"{what}; the model takes {self._context} tokens, prompt and answer together",
            param=param,
            code="context_length_exceeded",
        )


def _decode_base64(data: str, param: str) -> bytes:
    """Return the bytes of base64, with or without the head of a data URI."""
    if data.startswith("data:"):
        head, comma, data = data.partition(",")
        if not comma or not head.endswith(";base64"):
            message = f"{param}: a data URI must be data:TYPE;base64,DATA"
            raise ApiError(400, message, param=param, code="invalid_base64")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{param}: not base64 ({error})", param=param, code="invalid_base64") from None
