"""A question from the page to the model, and its answer word by word.

Recordings come in as files; whatever is wrong with a question is said before the model is asked anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, TextIteratorStreamer

from llaso_common.audio import read_audio

PAUSE_S = 0.35
"""Silence between two recordings of one question, seconds; as between the sounds of a corpus's clip."""


@dataclass(frozen=True)
class Question:
    """What a visitor asks.

    Args:
        modality: text_audio (written instruction, recording), audio_text (spoken instruction, written content) or
            audio (both spoken).
        recordings: audio files, heard one after another; None where a place on the page is empty.
        instruction: in text_audio.
        content: in audio_text.
    """

    modality: str
    recordings: tuple[str | None, ...]
    instruction: str = ""
    content: str = ""

    def message(self) -> dict[str, Any]:
        """The user's message, its parts in the order of the format.

        Raises:
            ValueError: a text is missing.
        """
        audio = {"type": "audio"}
        if self.modality == "audio":
            return {"role": "user", "content": [audio]}
        if self.modality == "audio_text":
            if not self.content.strip():
                raise ValueError("The content is empty: write the text that the spoken instruction is about.")
            return {"role": "user", "content": [audio, {"type": "text", "text": self.content}]}
        if not self.instruction.strip():
            raise ValueError("The instruction is empty: choose a task, or write what to do.")
        return {"role": "user", "content": [{"type": "text", "text": self.instruction}, audio]}


@dataclass(frozen=True)
class Answer:
    """An answer so far.

    Attributes:
        text: what has been written.
        audio_s: seconds of sound that were heard.
        prompt_tokens: tokens that the language model read, audio and all.
        seconds: since the question.
        done: nothing more comes.
    """

    text: str
    audio_s: float
    prompt_tokens: int
    seconds: float
    done: bool = False


class Answerer:
    """A model that answers one question at a time; others wait for their turn.

    Args:
        model, processor: as loaded.
        max_new_tokens: an answer's length at most.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 256) -> None:
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.rate: int = processor.feature_extractor.sampling_rate
        self._turn = threading.Lock()

    @property
    def limit_s(self) -> float:
        """Seconds of sound that one question may hold."""
        return self.processor.max_windows * self.processor.feature_extractor.n_samples / self.rate

    def hear(self, recordings: tuple[str | None, ...]) -> np.ndarray:
        """The recordings of a question as one clip, mono at the encoder's rate.

        Raises:
            ValueError: there is none, it is longer than the model hears, or `read_audio` refuses it.
        """
        clips: list[np.ndarray] = []
        for file in filter(None, recordings):
            if clips:
                clips.append(np.zeros(round(PAUSE_S * self.rate), np.float32))
            clips.append(read_audio(file, self.rate, name=Path(file).name))
        if not clips:
            raise ValueError("There is no recording yet: record one, or upload a file.")
        clip = np.concatenate(clips)
        if len(clip) > self.limit_s * self.rate:
            raise ValueError(
                f"The recording lasts {_clock(len(clip) / self.rate)}, and the model hears {_clock(self.limit_s)} at "
                "most: cut it with the scissors under the waveform, or upload a shorter one."
            )
        return clip

    def stream(self, question: Question) -> Iterator[Answer]:
        """The answer as it grows; the last one is done. Closing the iterator ends the generation.

        Raises:
            ValueError: the question cannot be asked; the message is for the visitor.
        """
        message = question.message()
        clip = self.hear(question.recordings)
        request = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
        with self._turn:
            inputs = self.processor.apply_chat_template([message], audio=[clip], **request)
            prompt_tokens = inputs["input_ids"].shape[1]
            room = self.model.config.text_config.max_position_embeddings - prompt_tokens
            if room < 1:
                raise ValueError(f"The question takes {prompt_tokens} tokens, more than the model reads: shorten it.")
            started, text = time.perf_counter(), ""
            for piece in self._generate(inputs, min(room, self.max_new_tokens)):
                text += piece
                yield Answer(text.strip(), len(clip) / self.rate, prompt_tokens, time.perf_counter() - started)
        yield Answer(text.strip(), len(clip) / self.rate, prompt_tokens, time.perf_counter() - started, done=True)

    def _generate(self, inputs: Any, max_new_tokens: int) -> Iterator[str]:
        """Pieces of text, from a thread that stops when nobody listens any more."""
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        unheard = _Unheard()
        faults: list[Exception] = []

        def work() -> None:
            try:
                self.model.generate(
                    **inputs.to(self.model.device),
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    stopping_criteria=[unheard],
                )
            except Exception as fault:  # raised again below, in the thread that asked
                faults.append(fault)
                streamer.end()

        worker = threading.Thread(target=work, name="answer", daemon=True)
        worker.start()
        try:
            yield from streamer
        finally:
            unheard.event.set()
            worker.join()
        if faults:
            raise faults[0]


class _Unheard(StoppingCriteria):
    """Ends a generation whose listener has gone."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return input_ids.new_full((len(input_ids),), self.event.is_set(), dtype=torch.bool)


def _clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
