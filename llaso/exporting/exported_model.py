"""Runs any exported model: writes its prompts, cuts its audio, and answers greedily."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .numpy_processor import NumpyInputs, NumpyProcessor

WINDOWS_AT_ONCE = 4
"""Windows that the encoder takes in one run at most, which bounds the memory of long audio."""


class ExportedLlaso(ABC):
    """A model in files: `audio`, `embed` and `decoder`.

    Args:
        folder: what `llaso export` wrote.

    Attributes:
        processor: makes prompts and log-mel.
        description: shapes, ids, how audio is cut.
        files: of the parts, by name.
        cache_shapes: of the decoder's keys and values, by the names of its inputs.

    Raises:
        ValueError: the folder holds no such files.
    """

    description_file: str
    """The file that says how the parts fit together."""
    command: str
    """The command that writes the files."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        described = folder / self.description_file
        if not described.is_file():
            raise ValueError(f"{described} is missing; `{self.command}` writes it")
        try:
            self.description: dict[str, Any] = json.loads(described.read_text(encoding="utf-8"))
            self.files = {part: folder / of_part["file"] for part, of_part in self.description["parts"].items()}
            inputs = self.description["parts"]["decoder"]["inputs"]
            text, audio = self.description["text"], self.description["audio"]
            others = [folder / name for name in (text["tokenizer"], text["chat_template"], audio["mel_filters"])]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{described}: not as `{self.command}` writes it ({error!r})") from error
        for file in (*self.files.values(), *others):
            if not file.is_file():
                raise ValueError(f"{file} is missing; `{self.command}` writes it")
        self.processor = NumpyProcessor(folder, self.description)
        self.cache_shapes = {name: shape for name, shape in inputs.items() if name.startswith("past_key_values")}

    @abstractmethod
    def run(self, part: str, given: dict[str, np.ndarray]) -> np.ndarray:
        """Run `audio` or `embed`, and return what it gives."""

    @abstractmethod
    def decode(self, given: dict[str, np.ndarray], past: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Run `decoder`.

        Args:
            given: its inputs but for keys and values.
            past: keys and values by the names of the inputs: what the last call returned, arrays of length 0 at first.

        Returns:
            Logits `(vocab_size,)` of the last token, and keys and values for the next call.
        """

    def generate(
        self, conversation: str | Sequence[dict[str, Any]], audio: Sequence[Any] = (), max_new_tokens: int = 256
    ) -> str:
        """Answer.

        Args:
            conversation: a question that is asked before the audio; or messages, as LlasoProcessor takes them.
            audio: recordings: paths, bytes of a file, or mono samples at 16 kHz.
            max_new_tokens: length of the answer at most.

        Raises:
            ValueError: the conversation or a recording cannot be used, or the prompt fills the model's context.
        """
        if isinstance(audio, str | bytes | np.ndarray):
            raise ValueError("audio: pass a list of recordings, even for one")
        if isinstance(conversation, str):
            content = [{"type": "text", "text": conversation}, *({"type": "audio"} for _ in audio)]
            conversation = [{"role": "user", "content": content}]
        inputs = self.processor(conversation, audio)
        ends = self.description["eos_token_ids"]
        ids = [number for number, _ in self.steps(inputs, max_new_tokens)]
        return self.processor.decode(ids[:-1] if ids and ids[-1] in ends else ids)

    def transcribe(self, recording: Any, max_new_tokens: int = 256) -> str:
        """Transcribe a recording by the instruction that the model was trained with."""
        return self.generate(self.description["text"]["transcription_prompt"], [recording], max_new_tokens)

    def steps(self, inputs: NumpyInputs, max_new_tokens: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the id of each new token, and the logits `(vocab_size,)` it was taken from; the end's is the last.

        Raises:
            ValueError: the prompt fills the model's context.
        """
        context = self.description["max_tokens"]
        length = inputs.input_ids.shape[1]
        if length >= context:
            raise ValueError(
                f"the prompt has {length} tokens, its audio included, and the language model reads at most "
                f"{context} with the answer; shorten or cut the audio, or shorten the text"
            )
        embeds = self.embed(inputs)
        past: dict[str, Any] = {}
        for name, (_, heads, _, width) in self.cache_shapes.items():
            past[name] = np.zeros((1, heads, 0, width), dtype=np.float32)
        for total in range(length, min(length + max_new_tokens, context)):
            new = embeds.shape[1]
            given = {
                "inputs_embeds": embeds,
                "attention_mask": np.ones((1, total), dtype=np.int64),
                "position_ids": np.arange(total - new, total, dtype=np.int64)[None],
            }
            logits, past = self.decode(given, past)
            number = int(logits.argmax())
            yield number, logits
            if number in self.description["eos_token_ids"]:
                return
            embeds = self.run("embed", {"input_ids": np.asarray([[number]], dtype=np.int64)})

    def embed(self, inputs: NumpyInputs) -> np.ndarray:
        """Compute a prompt's embeddings `(1, tokens, hidden_size)`, its audio in the place of the placeholders."""
        embeds = self.run("embed", {"input_ids": inputs.input_ids})
        if inputs.input_features is not None and inputs.input_features_mask is not None:
            audio = self._audio(inputs.input_features, inputs.input_features_mask)
            embeds[inputs.input_ids == self.description["text"]["placeholder_id"]] = audio
        return embeds

    def _audio(self, features: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Encode windows, a few at a time."""
        takes = self.description["parts"]["audio"]["inputs"]
        embeds = []
        at_once = 1 if takes["input_features"][0] == 1 else WINDOWS_AT_ONCE
        for start in range(0, len(features), at_once):
            of_some, real = features[start : start + at_once], mask[start : start + at_once]
            if self.description["audio"]["padding"] == "trim":
                longest = real.sum(1).max()
                of_some, real = of_some[:, :, :longest], real[:, :longest]
            given = {"input_features": np.ascontiguousarray(of_some), "input_features_mask": real}
            embeds.append(self.run("audio", {name: given[name] for name in takes}))
        return np.concatenate(embeds)
