"""Runs exported files in the installed llama.cpp and compares its answers with the model's own.

`xllamacpp` holds llama.cpp with its HTTP server, which runs in this process and listens to this machine alone. The
server is asked as any client asks it, so that its reading of audio, its tokenizer and the chat template are compared
along with the weights.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from llaso_common.audio import read_audio
from modeling_llaso.loading import end_ids
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import AUDIO_TAGS, LlasoProcessor

from .gguf_files import HOP, MMPROJ_FILE, RATE, TEXT_FILE, WINDOW_SECONDS
from .numpy_processor import MEL_RANGE
from .own_answers import FORMS, compared_ids, message_parts, own_answer, own_inputs

LIKELIEST = 20
"""Number of tokens of which the server is asked the log-probability, at each place of an answer."""
LLAMA_CPP_MEL_FLOOR = 5.96e-8
"""The least power of a band in llama.cpp's log-mel; ours is 1e-10."""
SPARE_TOKENS = 64
"""Places of the context beyond the longest prompt and answer."""


@dataclass(frozen=True)
class ClipComparison:
    """One clip's answer, by the model and by llama.cpp.

    Attributes:
        prompt_tokens: tokens of the prompt with its audio, ours and theirs.
        ours: ids of the answer, without the token that ends it.
        theirs: the same, by llama.cpp.
        ended: whether the answer ended by itself, ours and theirs.
        gaps: absolute differences in log-probability of our ids, as long as the ids before were equal; infinite for
            an id that is not among llama.cpp's likeliest.
    """

    prompt_tokens: tuple[int, int]
    ours: list[int]
    theirs: list[int]
    ended: tuple[bool, bool]
    gaps: list[float]

    @property
    def equal(self) -> bool:
        """True if prompt lengths and answers are the same."""
        lengths, ends = self.prompt_tokens, self.ended
        return lengths[0] == lengths[1] and self.ours == self.theirs and ends[0] == ends[1]

    def described(self) -> str:
        """Say what is equal and what is not."""
        ours, theirs = self.prompt_tokens
        parts = [
            f"{ours} prompt tokens" if ours == theirs else f"DIFFERENT prompt lengths, {ours} and {theirs}",
            compared_ids(self.ours, self.theirs),
        ]
        if self.ended[0] != self.ended[1]:
            parts.append("only one of them ended by itself")
        within = f"log-probabilities within {max(self.gaps):.4f}" if self.gaps else "no log-probabilities to compare"
        return "; ".join([*parts, within])


class LlamaCppServer:
    """llama.cpp's server for exported files; a `with` block ends it.

    Args:
        folder: what `llaso export gguf` wrote.
        context: tokens that a prompt and its answer may have together.

    Raises:
        ValueError: xllamacpp is not installed, a file is missing, or llama.cpp does not load them.
    """

    def __init__(self, folder: str | Path, context: int):
        try:
            import xllamacpp
        except ImportError:
            raise ValueError("xllamacpp, which holds llama.cpp, is not installed: pip install xllamacpp") from None
        folder = Path(folder)
        for name in (TEXT_FILE, MMPROJ_FILE):
            if not (folder / name).is_file():
                raise ValueError(f"{folder}: {name} is missing; `llaso export gguf` writes it")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(folder / TEXT_FILE)
        parameters.mmproj.path = str(folder / MMPROJ_FILE)
        parameters.hostnames = ["127.0.0.1"]
        parameters.port = 0
        parameters.n_ctx = context
        parameters.n_parallel = 1
        parameters.warmup = False
        parameters.verbosity = 1  # errors, on stderr: the exception tells no reason
        # Half precision in the cache would be a difference that is not the files'.
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        try:
            self.server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise ValueError(
                f"{folder}: llama.cpp does not load these files ({error}); its reason is above"
            ) from error

    def __enter__(self) -> LlamaCppServer:
        return self

    def __exit__(self, *error: object) -> None:
        del self.server

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """POST a JSON body, or GET without one, and return the answer.

        Raises:
            ValueError: the server refused; its message is in the error.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.server.listening_address + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ValueError(f"llama.cpp answered {error.code} to {path}: {error.read().decode()[:500]}") from error

    def answer(self, question: str, clip: np.ndarray, max_new_tokens: int) -> dict[str, Any]:
        """Ask about a clip, greedily, and return what the server says: its text, `content`, with ids and scores."""
        # /v1/chat/completions would do both steps, but leaves out the ids of tokens that are part of a character.
        return self.ask(
            "/completion",
            {
                "prompt": self.prompt(_their_messages(question, ["text", "audio"], [clip]), [clip]),
                "temperature": 0,
                "n_predict": max_new_tokens,
                "return_tokens": True,
                "n_probs": LIKELIEST,
                "cache_prompt": False,
            },
        )

    def prompt(self, messages: list[dict[str, Any]], clips: Sequence[np.ndarray]) -> dict[str, Any]:
        """The prompt that the server makes of messages, with the audio that belongs to it."""
        text = self.ask("/apply-template", {"messages": messages})["prompt"]
        return {"prompt_string": text, "multimodal_data": [_base64_wav(clip) for clip in clips]}

    def prompt_ids(self, messages: list[dict[str, Any]]) -> list[int | None]:
        """Token ids of the prompt that the server makes of messages, None in the place of each audio."""
        prompt = self.ask("/apply-template", {"messages": messages})["prompt"]
        ids: list[int | None] = []
        for number, text in enumerate(re.split(r"<__media\w*__>", prompt)):
            body = {"content": text, "add_special": number == 0, "parse_special": True}
            ids += [None] * bool(number) + self.ask("/tokenize", body)["tokens"]
        return ids


def compare_prompts(server: LlamaCppServer, processor: LlasoProcessor, question: str) -> dict[str, bool]:
    """Tell for each of `FORMS` whether the server's prompt has the processor's token ids around its audio."""
    clip = np.sin(np.arange(RATE, dtype=np.float32))
    start, end = processor.tokenizer.convert_tokens_to_ids(list(AUDIO_TAGS[2:]))
    equal = {}
    for form in FORMS:
        kinds = form.split(", ")
        clips = [clip] * kinds.count("audio")
        inputs = own_inputs(processor, question, kinds, clips)
        ours: list[int | None] = []
        inside = False
        for number in inputs["input_ids"][0].tolist():
            if number == start:
                ours.append(None)
                inside = True
            if not inside:
                ours.append(number)
            inside = inside and number != end
        equal[form] = ours == server.prompt_ids(_their_messages(question, kinds, clips))
    return equal


def compare_clip(
    server: LlamaCppServer,
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    clip: np.ndarray,
    question: str,
    max_new_tokens: int,
) -> ClipComparison:
    """Ask both about a clip, greedily.

    Args:
        server: with the exported files.
        model: what they were exported from.
        processor: the model's.
        clip: mono samples at 16 kHz, shorter than a window.
        question: the text before the audio.
        max_new_tokens: length of an answer at most.
    """
    own = own_answer(model, processor, clip, question, max_new_tokens)
    scores = own.logits.log_softmax(-1)
    answer = server.answer(question, clip, max_new_tokens)
    theirs, places = answer["tokens"], answer.get("completion_probabilities", [])
    their_end = answer["stop_type"] == "eos"
    if their_end and theirs and theirs[-1] in end_ids(model):
        theirs = theirs[:-1]
    gaps = []
    remaining = iter(places)
    place = next(remaining, None)
    for step, number in enumerate(own.ids):
        if own.ids[:step] != theirs[:step] or place is None:
            break
        if step < len(theirs) and place["id"] != theirs[step]:
            continue  # the server gives no log-probabilities of a token that is part of a character
        likely = {one["id"]: one["logprob"] for one in place["top_logprobs"]}
        gaps.append(abs(scores[step, number].item() - likely[number]) if number in likely else float("inf"))
        place = next(remaining, None)
    return ClipComparison(
        prompt_tokens=(own.prompt_tokens, answer["tokens_evaluated"]),
        ours=own.said,
        theirs=theirs,
        ended=(own.ended, their_end),
        gaps=gaps,
    )


def read_clips(files: Sequence[str | Path]) -> list[np.ndarray]:
    """Read the clips to be compared.

    Raises:
        ValueError: one cannot be read, or llama.cpp would take more than one window for it, or none.
    """
    clips = []
    for file in files:
        clip = read_audio(file)
        if len(clip) >= WINDOW_SECONDS * RATE - HOP:
            raise ValueError(
                f"{file}: it lasts {len(clip) / RATE:.2f} s; from {WINDOW_SECONDS - HOP / RATE:.2f} s on llama.cpp "
                "takes more than one window, so compare shorter clips"
            )
        if len(clip) < HOP:
            raise ValueError(f"{file}: it lasts {len(clip)} samples, fewer than llama.cpp takes; compare longer clips")
        clips.append(clip)
    return clips


def is_quiet(processor: LlasoProcessor, clip: np.ndarray) -> bool:
    """Tell whether silence in a clip has another log-mel in llama.cpp, whose lower bound is then above ours."""
    loudest = 4.0 * processor.log_mel([clip])[0].max().item() - 4.0  # undoes Whisper's scaling
    return loudest - MEL_RANGE < math.log10(LLAMA_CPP_MEL_FLOOR)


def context_for(processor: LlasoProcessor, question: str, max_new_tokens: int) -> int:
    """Count the tokens of the longest prompt that is compared, with its answer."""
    kinds = FORMS[-1].split(", ")
    messages = [{"role": "user", "content": message_parts(question, kinds)}]
    return processor.expanded_length(messages, [1.0] * kinds.count("audio")) + max_new_tokens + SPARE_TOKENS


def _their_messages(question: str, kinds: Sequence[str], clips: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Messages as an OpenAI client sends them: each clip a WAV file in base64."""
    remaining = iter(clips)
    content: list[dict[str, Any]] = []
    for kind in kinds:
        if kind == "text":
            content.append({"type": "text", "text": question})
            continue
        audio = {"data": _base64_wav(next(remaining)), "format": "wav"}
        content.append({"type": "input_audio", "input_audio": audio})
    return [{"role": "user", "content": content}]


def _base64_wav(clip: np.ndarray) -> str:
    file = io.BytesIO()
    soundfile.write(file, clip, RATE, format="WAV", subtype="FLOAT")
    return base64.b64encode(file.getvalue()).decode()
