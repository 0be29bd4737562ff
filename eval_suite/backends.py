"""Systems that answer: a transformers model, a chat server, a Python function. Each takes a batch of questions with
their audio and returns one answer a question; name, revision and settings identify its answers.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import logging
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llaso_common.audio import SAMPLE_RATE
from llaso_common.half_precision import in_fp32_if_faster

from .answer_records import Reply
from .corpus import Question, encode_wav
from .endpoint import ChatEndpoint, RequestRefusedError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated; part of the key of every record."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 is greedy decoding."""
    seed: int = 0
    """Of sampling, together with the batch; greedy decoding ignores it."""
    system: str | None = None
    """A system prompt to use in place of the rows' own."""


@dataclass(frozen=True)
class Request:
    """One row with its decoded clips, mono float32 `(n,)` at the backend's sampling rate."""

    row: Question
    audio: tuple[np.ndarray, ...]
    messages: tuple[dict[str, Any], ...]


class AnswerBackend(Protocol):
    """The interface through which `generate` asks a system."""

    @property
    def name(self) -> str:
        """The system's name, as the report shows it."""

    @property
    def settings(self) -> GenerationSettings:
        """How answers are generated."""

    def revision(self) -> str:
        """Return what tells two states of one name apart; cheap, loads no weights."""

    def load(self) -> None:
        """Load the weights. Called once, and only if there is something to answer."""

    def sampling_rate(self) -> int:
        """Return the sampling rate of the clips in a request, in Hz."""

    def prepare(self, requests: Sequence[Request]) -> Any:
        """Make the inputs of a batch; called in another thread, while an earlier batch is being answered."""

    def answer(self, prepared: Any) -> list[Reply]:
        """Return one reply a request, with its time if that is known. What it raises fails the whole batch."""

    def machine(self) -> dict[str, Any]:
        """Return what answers: `device`, `precision` and whatever else the speed depends on. Called after `load`."""

    def peak_memory(self) -> int | None:
        """Return the most memory used so far, in bytes; None if it is not known."""


@dataclass
class CallableBackend:
    """Any Python function from a list of `Request`s to a list of texts."""

    function: Callable[[Sequence[Request]], Sequence[str]]
    settings: GenerationSettings = field(default_factory=GenerationSettings)

    @property
    def name(self) -> str:
        if inspect.isroutine(self.function):
            return f"{self.function.__module__}.{self.function.__qualname__}"
        return f"{type(self.function).__module__}.{type(self.function).__qualname__}"

    def revision(self) -> str:
        source = self.function if inspect.isroutine(self.function) else type(self.function)
        try:
            return "source:" + hashlib.sha256(inspect.getsource(source).encode()).hexdigest()[:16]
        except (OSError, TypeError):  # built in, or typed at a prompt
            return "source:unknown"

    def load(self) -> None:
        return None

    def sampling_rate(self) -> int:
        return SAMPLE_RATE

    def prepare(self, requests: Sequence[Request]) -> Sequence[Request]:
        return requests

    def answer(self, prepared: Sequence[Request]) -> list[Reply]:
        texts = self.function(prepared)
        if len(texts) != len(prepared):
            raise ValueError(f"{self.name} returned {len(texts)} answers to {len(prepared)} requests")
        return [Reply(text) for text in texts]

    def machine(self) -> dict[str, Any]:
        return {"device": platform.processor() or platform.machine(), "precision": None}

    def peak_memory(self) -> int | None:
        return process_memory()


@dataclass
class EndpointBackend:
    """An OpenAI-compatible chat server that takes audio; a batch is as many requests at once."""

    endpoint: ChatEndpoint
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    model_revision: str = "served"

    @property
    def name(self) -> str:
        return self.endpoint.model

    def revision(self) -> str:
        return self.model_revision

    def load(self) -> None:
        return None

    def sampling_rate(self) -> int:
        return SAMPLE_RATE

    def prepare(self, requests: Sequence[Request]) -> list[tuple[list[dict[str, Any]], int]]:
        return [(self._conversation(request), self.settings.seed + request.row.sample) for request in requests]

    @staticmethod
    def _conversation(request: Request) -> list[dict[str, Any]]:
        clips = iter(request.audio)
        conversation = []
        for message in request.messages:
            parts: list[dict[str, Any]] = []
            for part in message["content"]:
                if part["type"] == "audio":
                    data = base64.b64encode(encode_wav(next(clips), SAMPLE_RATE)).decode("ascii")
                    parts.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
                else:
                    parts.append(part)
            only_text = len(parts) == 1 and parts[0]["type"] == "text"
            conversation.append({"role": message["role"], "content": parts[0]["text"] if only_text else parts})
        return conversation

    def answer(self, prepared: list[tuple[list[dict[str, Any]], int]]) -> list[Reply]:
        with ThreadPoolExecutor(max_workers=max(1, len(prepared))) as pool:
            return list(pool.map(lambda one: self._ask(*one), prepared))

    def _ask(self, conversation: list[dict[str, Any]], seed: int) -> Reply:
        try:
            completion = self.endpoint.ask(
                conversation,
                stream=True,
                max_tokens=self.settings.max_new_tokens,
                temperature=self.settings.temperature,
                seed=seed,
            )
        except RequestRefusedError as error:
            return Reply("", str(error))
        time = {"latency": completion.seconds, "first_token": completion.first_token, "tokens": completion.tokens}
        return Reply(completion.text, None, time)

    def machine(self) -> dict[str, Any]:
        return {"device": "a server", "precision": None}

    def peak_memory(self) -> int | None:
        return None


class TransformersBackend:
    """Any model of `AutoModelForMultimodalLM` whose processor's chat template takes audio.

    Args:
        model: a folder or an id on the Hub.
        settings: how to generate.
        hub_revision: branch, tag or commit on the Hub.
        dtype: of the weights; as stored by default, but float32 on a processor without bf16 instructions.
        device: e.g. "cuda:1"; by default this process's accelerator, else the CPU.
        trust_remote_code: run the model code that travels with the checkpoint.
        attn_implementation: e.g. "sdpa"; the model's own choice by default.
    """

    def __init__(
        self,
        model: str | Path,
        settings: GenerationSettings | None = None,
        *,
        hub_revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
    ):
        self.name = str(model)
        self.settings = settings or GenerationSettings()
        self._from: dict[str, Any] = {"revision": hub_revision, "trust_remote_code": trust_remote_code}
        self._weights = {"dtype": dtype, "attn_implementation": attn_implementation}
        self._device = device
        self.processor: Any = None
        self.model: Any = None

    def revision(self) -> str:
        """Return the commit on the Hub, or a digest of every file of a local folder."""
        return checkpoint_revision(self.name, **self._from)

    def load(self) -> None:
        """Open processor and weights; the processor pads on the left, the model is in evaluation mode."""
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(self.name, **self._from)
        extractors = [name for name in ("audio_processor", "feature_extractor") if hasattr(processor, name)]
        if not extractors or not hasattr(processor, "tokenizer"):
            raise ValueError(
                f"{self.name}: AutoProcessor gave a {type(processor).__name__}; generation needs a processor that "
                "takes audio and writes prompts by a chat template"
            )
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        self.processor, self._rate = processor, getattr(processor, extractors[0]).sampling_rate
        model = self._auto_class().from_pretrained(self.name, **self._from, **self._weights)
        if hasattr(model, "thinker"):
            model = model.thinker  # an omni model: the half that writes text; the half that speaks is not needed
        model = model.to(self._device or own_device()).eval()
        self.model = in_fp32_if_faster(model) if self._weights["dtype"] == "auto" else model

    def _auto_class(self) -> Any:
        """Return `AutoModelForMultimodalLM`, or the class that transformers lists an audio LLM under instead."""
        from transformers import AutoConfig, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_MULTIMODAL_LM_MAPPING,
            MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        )

        kind = type(AutoConfig.from_pretrained(self.name, **self._from))
        if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MULTIMODAL_LM_MAPPING:
            return AutoModelForSeq2SeqLM
        return AutoModelForMultimodalLM

    def sampling_rate(self) -> int:
        return self._rate

    def prepare(self, requests: Sequence[Request]) -> Any:
        """Make the model's inputs on the CPU: prompts by the processor's chat template, padded on the left."""
        processor = self.processor
        conversations = [self._conversation(request) for request in requests]
        inputs = processor.apply_chat_template(
            conversations,
            add_generation_prompt=not _is_mistral(processor),
            tokenize=True,
            return_dict=True,
            # Nested, so that the processor decides by itself how clips are padded.
            processor_kwargs={"text_kwargs": {"padding": True}, "return_tensors": "pt"},
        )
        return inputs, requests

    def _conversation(self, request: Request) -> list[dict[str, Any]]:
        """Return the messages as chat templates of transformers want them: the clip lies in its content part."""
        clips = iter(request.audio)
        mistral = _is_mistral(self.processor)
        conversation = []
        for message in request.messages:
            parts: list[dict[str, Any]] = []
            for part in message["content"]:
                if part["type"] != "audio":
                    parts.append(dict(part))
                elif mistral:  # mistral-common takes files, not samples
                    wav = encode_wav(next(clips), self.sampling_rate())
                    parts.append({"type": "audio", "base64": base64.b64encode(wav).decode("ascii")})
                else:
                    parts.append({"type": "audio", "audio": next(clips)})
            conversation.append({"role": message["role"], "content": parts})
        return conversation

    def answer(self, prepared: Any) -> list[Reply]:
        import torch

        inputs, requests = prepared
        model = self.model
        inputs = inputs.to(model.device, dtype=model.dtype)
        if self.settings.temperature > 0:
            torch.manual_seed(_batch_seed(self.settings.seed, requests))
        clock = _first_token_clock(model.device)
        with torch.inference_mode():
            extras = self.generation_extras(inputs, requests)
            output = model.generate(**inputs, stopping_criteria=[clock], **extras, **self._generation_arguments())
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        prompt = inputs["input_ids"]
        width = prompt.shape[1]
        if sequences.shape[1] >= width and torch.equal(sequences[:, :width], prompt):
            sequences = sequences[:, width:]  # most models repeat the prompt; some return only what is new
        texts = self.processor.batch_decode(sequences, skip_special_tokens=True)
        pad = self.processor.tokenizer.pad_token_id
        lengths = [_generated(row.tolist(), pad) for row in sequences]
        return [
            Reply(text.strip(), None, {"first_token": clock.seconds, "tokens": length})
            for text, length in zip(texts, lengths, strict=True)
        ]

    def generation_extras(self, inputs: Any, requests: Sequence[Request]) -> dict[str, Any]:
        """Return further arguments of `generate` for a batch: none. A subclass may also change `inputs`."""
        return {}

    def machine(self) -> dict[str, Any]:
        import torch
        import transformers

        device = self.model.device
        named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
        return {
            "device": named or f"{device.type} ({platform.machine()})",
            "precision": str(self.model.dtype).removeprefix("torch."),
            "attention": self.model.config._attn_implementation,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def peak_memory(self) -> int | None:
        import torch

        device = self.model.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_memory()

    def _generation_arguments(self) -> dict[str, Any]:
        settings = self.settings
        arguments: dict[str, Any] = {"num_beams": 1, "pad_token_id": self.processor.tokenizer.pad_token_id}
        if settings.temperature > 0:
            arguments |= {"do_sample": True, "temperature": settings.temperature, "top_p": 1.0, "top_k": 0}
        else:
            arguments |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return arguments | {"max_new_tokens": settings.max_new_tokens}


def _is_mistral(processor: Any) -> bool:
    """Return whether prompts are written by mistral-common (Voxtral), which opens the answer's turn by itself."""
    return type(processor.tokenizer).__name__ == "MistralCommonBackend"


def _first_token_clock(device: Any) -> Any:
    """Return a stopping criterion that stops nothing and notes in `seconds` when the first token was there."""
    import torch
    from transformers import StoppingCriteria

    class FirstTokenClock(StoppingCriteria):
        seconds: float | None = None

        def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
            if self.seconds is None:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                self.seconds = time.perf_counter() - started
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    started = time.perf_counter()
    return FirstTokenClock()


def _generated(tokens: list[int], pad: int) -> int:
    """Return how many tokens a row generated: those before its padding."""
    length = len(tokens)
    while length and tokens[length - 1] == pad:
        length -= 1
    return length


def process_memory() -> int:
    """Return the most memory that this process has used, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def own_device() -> str:
    """Return the accelerator of this process, as `accelerate launch` assigns them, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _batch_seed(seed: int, requests: Sequence[Request]) -> int:
    """Return a seed that depends on the batch and the run's seed, not on time or process."""
    joined = "\n".join([str(seed), *(request.row.digest for request in requests)])
    return int.from_bytes(hashlib.sha256(joined.encode()).digest()[:8], "big") >> 1


def checkpoint_revision(model: str, **options: Any) -> str:
    """Return the commit of a model on the Hub, or a digest of every file of a local folder; load no weights.

    Raises:
        ValueError: the folder holds no checkpoint.
    """
    if Path(model).is_dir():
        return "sha256:" + _folder_digest(Path(model))
    from transformers import AutoConfig

    return f"commit:{AutoConfig.from_pretrained(model, **options)._commit_hash}"


def _folder_digest(folder: Path) -> str:
    """Return a short SHA-256 over the names and bytes of a checkpoint's files, training state left out."""
    whole = hashlib.sha256()
    endings = {".safetensors", ".bin", ".json", ".jinja", ".py", ".model", ".txt"}
    names = sorted(path for path in folder.iterdir() if path.suffix in endings and path.name != "trainer_state.json")
    if not names:
        raise ValueError(f"{folder} holds no checkpoint (config.json, weights, tokenizer)")
    for path in names:
        with open(path, "rb") as stream:
            whole.update(f"{path.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]
