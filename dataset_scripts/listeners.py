"""Transcribes a corpus: by a speech recognizer or a LLaSO of transformers, or by a server with OpenAI's interface.

Each takes a batch of clips and returns a transcript for each; its name and revision identify what it heard.
"""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from llaso_common.audio import SAMPLE_RATE

logger = logging.getLogger(__name__)

LONGEST_WINDOW = 30
"""Seconds that a Whisper hears at once; it needs timestamps to go on after them."""
LONGEST_TRANSCRIPT = 256
"""Tokens that a LLaSO may write about one clip."""
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""HTTP codes worth another try."""
REFUSED = {400, 413, 415, 422}
"""HTTP codes that concern one clip."""
RETRIES, PAUSE = 5, 1.0
"""How often a passing failure is tried again; seconds before the first new try, doubled each time."""


class Listener(Protocol):
    """Interface of the models and servers that `transcribe_rows` asks."""

    @property
    def identity(self) -> dict[str, str]:
        """Name, and what tells two states of one name apart; transcripts are kept under them."""

    def transcribe(self, clips: Sequence[np.ndarray]) -> list[str | None]:
        """Return the transcript of each clip, mono float32 at `SAMPLE_RATE`; None for one that is refused."""


def open_listener(model: str, language: str | None = None, served_as: str | None = None) -> Listener:
    """Open what `--listen` names; weights are loaded when there is something to transcribe.

    Args:
        model: the base address of a server (http://localhost:8000/v1), a checkpoint folder, or an id on the Hub.
        language: of the recordings, e.g. "en"; None lets the listener find out.
        served_as: the model's name on the server, if it serves several.

    Raises:
        ValueError: it is nothing that transcribes, or there are several models to choose from.
        ConnectionError: the server cannot be reached.
    """
    if model.startswith(("http://", "https://")):
        return TranscriptionServer(model, language, served_as)
    if served_as:
        raise ValueError(f"--listen-model names a model on a server, but {model} is a folder or an id: leave it out")
    return TransformersListener(model, language)


class TranscriptionServer:
    """A server with OpenAI's `POST /audio/transcriptions`; a batch is as many requests at once.

    Args:
        url: its base address.
        language: of the recordings.
        model: its name there; the only one that `GET /models` lists by default.

    Raises:
        ValueError: the server lists no model or several.
        ConnectionError: it cannot be reached.
    """

    def __init__(self, url: str, language: str | None = None, model: str | None = None) -> None:
        import httpx

        key = os.environ.get("OPENAI_API_KEY")
        self._url = url.rstrip("/")
        self._client = httpx.Client(timeout=300, headers={"Authorization": f"Bearer {key}"} if key else {})
        if model is None:
            listed = self._ask("GET", "/models").json()
            names = [str(one["id"]) for one in listed.get("data", [])]
            if len(names) != 1:
                raise ValueError(f"{url} serves {', '.join(names) or 'no model'}: choose one with --listen-model NAME")
            (model,) = names
        self._form = {"model": model, "response_format": "json"} | ({"language": language} if language else {})
        self.identity = {"name": model, "revision": f"{self._url} {language or ''}".strip()}

    def transcribe(self, clips: Sequence[np.ndarray]) -> list[str | None]:
        """See `Listener`."""
        with ThreadPoolExecutor(max(1, len(clips))) as pool:
            return list(pool.map(self._one, clips))

    def _one(self, clip: np.ndarray) -> str | None:
        wav = io.BytesIO()
        soundfile.write(wav, clip, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        files = {"file": ("clip.wav", wav.getvalue(), "audio/wav")}
        answer = self._ask("POST", "/audio/transcriptions", data=self._form, files=files)
        if answer.status_code in REFUSED:
            logger.warning("%s refused a clip: %s", self._url, answer.text[:200])
            return None
        try:
            return str(answer.json()["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._url} answered no transcript but {answer.text[:200]!r}") from error

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        """Send a request; failures that may pass are tried again."""
        import httpx

        reason = ""
        for attempt in range(RETRIES + 1):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                answer = self._client.request(method, self._url + path, **content)
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                continue
            if answer.is_success or answer.status_code in REFUSED:
                return answer
            reason = f"HTTP {answer.status_code}: {answer.text[:200]}"
            if answer.status_code not in PASSING:
                break
        raise ConnectionError(
            f"{self._url}{path} cannot be asked ({reason}); start the server, or correct address, model and "
            "OPENAI_API_KEY. The same command goes on from what is transcribed"
        )


class TransformersListener:
    """A recognizer of transformers' pipeline (Whisper, wav2vec2, …) or a LLaSO, on the accelerator if there is one.

    Args:
        model: a folder, or an id on the Hub.
        language: of the recordings, for a multilingual Whisper.

    Raises:
        ValueError: it is no checkpoint, or is told a language though it cannot be.
        OSError: it cannot be found.
    """

    def __init__(self, model: str, language: str | None = None) -> None:
        from transformers import AutoConfig

        self._name, self._language = model, language
        config = AutoConfig.from_pretrained(model)
        self._is_llaso = config.model_type == "llaso"
        if self._is_llaso and language:
            raise ValueError(f"{model} is a LLaSO, which is not told a language: leave --listen-language out")
        state = _state(Path(model)) if Path(model).is_dir() else config._commit_hash
        self.identity = {"name": model, "revision": f"{state} {language or ''}".strip()}
        self._transcribe: Any = None

    def transcribe(self, clips: Sequence[np.ndarray]) -> list[str | None]:
        """See `Listener`. A batch that does not fit into memory is halved."""
        import torch

        if self._transcribe is None:
            self._transcribe = self._load_llaso() if self._is_llaso else self._load_recognizer()
        try:
            return self._transcribe(list(clips))
        except torch.cuda.OutOfMemoryError:
            if len(clips) == 1:
                raise
        torch.cuda.empty_cache()
        middle = len(clips) // 2
        return self.transcribe(clips[:middle]) + self.transcribe(clips[middle:])

    def _load_recognizer(self) -> Any:
        from transformers import pipeline

        recognizer: Any = pipeline("automatic-speech-recognition", model=self._name, device=_device(), dtype=_dtype())
        _complete_whisper(recognizer)
        if recognizer.tokenizer.pad_token is None:
            recognizer.tokenizer.pad_token = recognizer.tokenizer.eos_token
        if self._language and not hasattr(recognizer.model.generation_config, "lang_to_id"):
            raise ValueError(f"{self._name} cannot be told a language: leave --listen-language out")
        # The pipeline's own choice, five beams, takes several times as long.
        options: dict[str, Any] = {"num_beams": 1} | ({"language": self._language} if self._language else {})
        generation = {"generate_kwargs": options} if recognizer.type.startswith("seq2seq") else {}

        def transcribe(clips: list[np.ndarray]) -> list[str | None]:
            long = any(len(clip) > LONGEST_WINDOW * SAMPLE_RATE for clip in clips)
            whisper = {"return_timestamps": True} if long and recognizer.type == "seq2seq_whisper" else {}
            asked = [{"raw": clip, "sampling_rate": SAMPLE_RATE} for clip in clips]
            heard = recognizer(asked, batch_size=len(clips), **generation, **whisper)
            return [str(one["text"]) for one in heard]

        return transcribe

    def _load_llaso(self) -> Any:
        import torch
        from transformers import AutoModelForMultimodalLM, AutoProcessor

        processor = AutoProcessor.from_pretrained(self._name)
        processor.tokenizer.padding_side = "left"
        model = AutoModelForMultimodalLM.from_pretrained(self._name, dtype=_dtype()).to(_device()).eval()

        def transcribe(clips: list[np.ndarray]) -> list[str | None]:
            padded = {"text_kwargs": {"padding": True}, "return_tensors": "pt"}
            inputs = processor.apply_transcription_request(clips, processor_kwargs=padded)
            inputs = inputs.to(model.device, dtype=model.dtype)
            with torch.inference_mode():
                written = model.generate(**inputs, max_new_tokens=LONGEST_TRANSCRIPT, do_sample=False)
            return processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

        return transcribe


def _device() -> str:
    import torch

    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None and torch.accelerator.is_available() else "cpu"


def _dtype() -> str:
    """Return the weights' own type; on a CPU, which is slow in half precision, float32."""
    return "float32" if _device() == "cpu" else "auto"


def _complete_whisper(recognizer: Any) -> None:
    """Give a multilingual Whisper the ids of languages and tasks, if its generation config was saved without them."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

    settings, ids = recognizer.model.generation_config, recognizer.tokenizer.get_vocab()
    if recognizer.type != "seq2seq_whisper" or hasattr(settings, "lang_to_id") or "<|transcribe|>" not in ids:
        return
    settings.lang_to_id = {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in ids}
    settings.task_to_id = {task: ids[f"<|{task}|>"] for task in TASK_IDS}
    settings.no_timestamps_token_id = ids["<|notimestamps|>"]
    settings.is_multilingual = True


def _state(folder: Path) -> str:
    """Return a digest of the files of a checkpoint by name, size and time of change."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    state = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return sha256(json.dumps([str(folder.resolve()), state]).encode()).hexdigest()[:16]
