"""Runs exported ONNX files by ONNX Runtime and NumPy, without PyTorch or transformers.

    model = OnnxLlaso("runs/onnx")
    print(model.generate("What is said?", ["clip.wav"]))

Answers are greedy: at each step the likeliest token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .export_folder import DESCRIPTION_FILE
from .numpy_processor import NumpyInputs, NumpyProcessor

WINDOWS_AT_ONCE = 4
"""Windows that the encoder takes in one run, which bounds the memory of long audio."""


class OnnxLlaso:
    """A model of exported files.

    Args:
        folder: what `llaso export onnx` wrote.
        providers: ONNX Runtime's execution providers, the preferred first.
        threads: used by one run; 0 for as many as there are cores.

    Attributes:
        processor: makes prompts and log-mel.
        description: what `llaso_onnx.json` says: shapes, ids, how audio is cut.

    Raises:
        ValueError: the folder holds no such files, or ONNX Runtime does not load them.
    """

    def __init__(
        self, folder: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0
    ) -> None:
        folder = Path(folder)
        try:
            self.description: dict[str, Any] = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{folder}: {DESCRIPTION_FILE} is missing; `llaso export onnx` writes it") from None
        self.processor = NumpyProcessor(folder, self.description)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {}
        for name, part in self.description["parts"].items():
            file = folder / part["file"]
            if not file.is_file():
                raise ValueError(f"{file} is missing; `llaso export onnx` writes it")
            self.sessions[name] = onnxruntime.InferenceSession(str(file), options, providers=list(providers))
        self.cache_names = [name for name in self.description["parts"]["decoder"]["inputs"] if name.startswith("past")]

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
        past = self._no_past()
        for total in range(length, min(length + max_new_tokens, context)):
            logits, past = self._decode(embeds, total, past)
            number = int(logits.argmax())
            yield number, logits
            if number in self.description["eos_token_ids"]:
                return
            (embeds,) = self.sessions["embed"].run(None, {"input_ids": np.asarray([[number]], dtype=np.int64)})

    def embed(self, inputs: NumpyInputs) -> np.ndarray:
        """Compute a prompt's embeddings `(1, tokens, hidden_size)`, its audio in the place of the placeholders."""
        (embeds,) = self.sessions["embed"].run(None, {"input_ids": inputs.input_ids})
        if inputs.input_features is not None:
            audio = []
            for start in range(0, len(inputs.input_features), WINDOWS_AT_ONCE):
                stop = start + WINDOWS_AT_ONCE
                given = {"input_features": inputs.input_features[start:stop]}
                if self.description["audio"]["padding"] == "trim":
                    assert inputs.input_features_mask is not None
                    given["input_features_mask"] = inputs.input_features_mask[start:stop]
                audio += self.sessions["audio"].run(None, given)
            embeds[inputs.input_ids == self.description["text"]["placeholder_id"]] = np.concatenate(audio)
        return embeds

    def _decode(self, embeds: np.ndarray, total: int, past: list[Any]) -> tuple[np.ndarray, list[Any]]:
        """Run the decoder on new embeddings, after which there are `total` tokens."""
        new = embeds.shape[1]
        given = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(total - new, total, dtype=np.int64)[None],
        }
        # Keys and values stay with ONNX Runtime from step to step.
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in given.items()}
        values |= zip(self.cache_names, past, strict=True)
        outputs = self.sessions["decoder"].run_with_ort_values(None, values)
        return outputs[0].numpy()[0, -1], outputs[1:]

    def _no_past(self) -> list[Any]:
        shapes = self.description["parts"]["decoder"]["inputs"]
        past = []
        for name in self.cache_names:
            _, heads, _, width = shapes[name]
            past.append(onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, 0, width), dtype=np.float32)))
        return past
