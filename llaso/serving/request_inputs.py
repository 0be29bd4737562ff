"""From a request to the model's inputs: decodes audio, builds the conversation, and checks that it fits."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llaso_common.audio import read_audio

from .errors import ApiError
from .limits import Limits
from .protocol import AudioPart, ChatRequest, TranscriptionRequest

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


Inputs = Mapping[str, torch.Tensor]
"""The processor's output for one conversation."""


class PromptBuilder:
    """Builds prompts; safe to use from several threads.

    Args:
        processor: the model's processor.
        context: length of the model's context in tokens, prompt and answer together.
        limits: `audio_seconds` and `answer_tokens` apply here.
    """

    def __init__(self, processor, context: int, limits: Limits):
        self._processor = processor
        self._context = context
        self._limits = limits
        # A fast tokenizer is not thread-safe: it raises if two threads encode at once.
        self._tokenizer_lock = threading.Lock()

    def for_chat(self, request: ChatRequest) -> tuple[Inputs, PromptSize]:
        """Build the prompt of a chat.

        Raises:
            ApiError: 400, naming the invalid message.
        """
        messages: list[dict[str, Any]] = []
        clips: list[np.ndarray] = []
        for number, message in enumerate(request.messages):
            role = "system" if message.role == "developer" else message.role
            content = []
            for place, part in enumerate(message.content):
                if isinstance(part, AudioPart):
                    param = f"messages.{number}.content.{place}.input_audio.data"
                    clips.append(self._clip(_bytes(part.input_audio.data, param), clips, param))
                    content.append({"type": "audio"})
                else:
                    content.append({"type": "text", "text": part.text})
            messages.append({"role": role, "content": content})
        return self._prompt(messages, clips, request.answer_tokens, "messages")

    def for_transcription(self, request: TranscriptionRequest, file: bytes) -> tuple[Inputs, PromptSize]:
        """Build the prompt that asks for a transcription; `prompt` replaces the processor's instruction.

        Raises:
            ApiError: 400, naming the invalid field.
        """
        instruction = request.prompt or self._processor.transcription_prompt
        content = [{"type": "text", "text": instruction}, {"type": "audio"}]
        return self._prompt([{"role": "user", "content": content}], [self._clip(file, [], "file")], None, "prompt")

    def _clip(self, file: bytes, before: Sequence[np.ndarray], param: str) -> np.ndarray:
        rate = self._processor.feature_extractor.sampling_rate
        left = self._limits.audio_seconds - sum(map(len, before)) / rate
        try:
            return read_audio(file, rate, name=param, max_seconds=left)
        except ValueError as error:
            raise ApiError(400, str(error), param=param, code="invalid_audio") from None

    def _prompt(
        self, messages: list[dict[str, Any]], clips: list[np.ndarray], max_tokens: int | None, param: str
    ) -> tuple[Inputs, PromptSize]:
        characters = sum(len(part.get("text", "")) for message in messages for part in message["content"])
        if characters > MAX_CHARACTERS_PER_TOKEN * self._context:
            raise self._too_long(f"a text of {characters} characters", param)
        try:
            with self._tokenizer_lock:
                inputs = self._processor.apply_chat_template(
                    messages, audio=clips, tokenize=True, return_dict=True, add_generation_prompt=True
                )
        except ValueError as error:
            raise ApiError(400, str(error), param=param, code="invalid_value") from None
        tokens = inputs["input_ids"].shape[1]
        if tokens >= self._context:
            raise self._too_long(f"a prompt of {tokens} tokens", param)
        most = self._limits.answer_tokens
        if max_tokens is None:
            max_tokens = min(most, self._context - tokens)
        elif max_tokens > most:
            raise ApiError(400, f"max_tokens is {max_tokens}; this server gives at most {most}", param="max_tokens")
        elif tokens + max_tokens > self._context:
            raise self._too_long(f"a prompt of {tokens} tokens with an answer of {max_tokens}", param)
        audio_tokens = int(inputs["input_ids"].eq(self._processor.audio_token_id).sum())
        seconds = sum(map(len, clips)) / self._processor.feature_extractor.sampling_rate
        return inputs, PromptSize(tokens, audio_tokens, seconds, max_tokens)

    def _too_long(self, what: str, param: str) -> ApiError:
        return ApiError(
            400,
            f"{what} does not fit: the model takes {self._context} tokens, prompt and answer together",
            param=param,
            code="context_length_exceeded",
        )


def _bytes(data: str, param: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{param}: not base64 ({error})", param=param, code="invalid_base64") from None
