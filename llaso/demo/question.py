"""Asking the model a question from the page, and streaming its answer.

Recordings are files. A question is checked before the model is called.
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

from llaso_common.audio import audio_seconds, join_clips, read_audio

TIMED_TASK = "Transcript with times"
"""Name of the task that cuts recordings of any length into pieces."""
NO_RECORDING = "There is no recording yet: record one, or upload a file."


@dataclass(frozen=True)
class DemoQuestion:
    """A visitor's question.

    Args:
        modality: text_audio (written instruction, recording), audio_text (spoken instruction, written content) or
            audio (both spoken).
        recordings: audio files, joined in this order; None for an empty recorder.
        instruction: written instruction, in text_audio.
        content: written content, in audio_text.
    """

    modality: str
    recordings: tuple[str | None, ...]
    instruction: str = ""
    content: str = ""

    def message(self) -> dict[str, Any]:
        """Return the user's message, its parts in the order of the format.

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
class PartialAnswer:
    """An answer, as far as it is generated.

    Attributes:
        text: the text so far.
        audio_s: length of the recordings, seconds.
        prompt_tokens: length of the prompt, audio included.
        seconds: time since the question.
        done: whether the answer is complete.
    """

    text: str
    audio_s: float
    prompt_tokens: int
    seconds: float
    done: bool = False


class DemoModel:
    """A model that answers one question at a time; other questions wait.

    Args:
        model: a `LlasoForConditionalGeneration`.
        processor: its processor.
        max_new_tokens: maximum length of an answer.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 256) -> None:
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.rate: int = processor.feature_extractor.sampling_rate
        self.lock = threading.Lock()
        """Held while an answer is generated."""

    @property
    def max_audio_seconds(self) -> float:
        """Return the maximum length of a question's recordings, seconds."""
        return self.processor.max_audio_len

    def read_recordings(self, recordings: tuple[str | None, ...]) -> np.ndarray:
        """Read the recordings of a question as one clip, mono at the encoder's rate.

        Raises:
            ValueError: there is no recording, they are too long, or `read_audio` refuses one.
        """
        files = [file for file in recordings if file]
        if not files:
            raise ValueError(NO_RECORDING)
        # Checked by the headers first, so that an hour is not decoded only to be refused.
        self._check_length(sum(audio_seconds(file, name=Path(file).name) for file in files))
        clip = join_clips([read_audio(file, self.rate, name=Path(file).name) for file in files], self.rate)
        self._check_length(len(clip) / self.rate)
        return clip

    def _check_length(self, seconds: float) -> None:
        if seconds > self.max_audio_seconds:
            raise ValueError(
                f"The recording lasts {clock(seconds)}, and this model takes {clock(self.max_audio_seconds)} at most: "
                "cut it with the scissors under the waveform, or upload a shorter one. The task "
                f"“{TIMED_TASK}” takes recordings of any length."
            )

    def stream(self, question: DemoQuestion) -> Iterator[PartialAnswer]:
        """Yield the growing answer; the last one is `done`. Closing the iterator stops the generation.

        Raises:
            ValueError: the question is invalid; the message is shown to the visitor.
        """
        message = question.message()
        clip = self.read_recordings(question.recordings)
        request = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
        with self.lock:
            inputs = self.processor.apply_chat_template([message], audio=[clip], **request)
            prompt_tokens = inputs["input_ids"].shape[1]
            room = self.model.config.text_config.max_position_embeddings - prompt_tokens
            if room < 1:
                audio_tokens = self.processor.count_audio_tokens(len(clip))
                part = "recording" if 2 * audio_tokens > prompt_tokens else "text"
                raise ValueError(
                    f"The {part} is too long for this model: {audio_tokens:,} tokens of audio and "
                    f"{prompt_tokens - audio_tokens:,} of text do not leave room for an answer. Shorten the {part}."
                )
            started, text = time.perf_counter(), ""
            for piece in self._generate(inputs, min(room, self.max_new_tokens)):
                text += piece
                yield PartialAnswer(text.strip(), len(clip) / self.rate, prompt_tokens, time.perf_counter() - started)
        yield PartialAnswer(
            text.strip(), len(clip) / self.rate, prompt_tokens, time.perf_counter() - started, done=True
        )

    def _generate(self, inputs: Any, max_new_tokens: int) -> Iterator[str]:
        """Yield pieces of text from a generating thread; closing the iterator stops the thread."""
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = StopWhenSet()
        errors: list[Exception] = []

        def work() -> None:
            try:
                self.model.generate(
                    **inputs.to(self.model.device),
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    stopping_criteria=[stop],
                )
            except Exception as error:  # raised again below, in the thread that asked
                errors.append(error)
                streamer.end()

        worker = threading.Thread(target=work, name="answer", daemon=True)
        worker.start()
        try:
            yield from streamer
        finally:
            stop.event.set()
            worker.join()
        if errors:
            raise errors[0]


class StopWhenSet(StoppingCriteria):
    """Stops a generation once its event is set."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return input_ids.new_full((len(input_ids),), self.event.is_set(), dtype=torch.bool)


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
