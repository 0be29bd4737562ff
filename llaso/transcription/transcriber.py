"""Transcribing a recording piece by piece, in batches.

Transcripts of a model that was aligned by CTC are decoded jointly (`llaso.alignment.joint_decoding`).
"""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from llaso.alignment import BEAMS
from llaso.alignment.joint_decoding import JointDecoding, joint_decoder
from llaso_common import __version__
from modeling_llaso.compatibility_llaso import CACHE_SINCE_5_24
from modeling_llaso.loading import end_ids

from .partial import PartialTranscript
from .pieces import pieces_to_transcribe
from .recordings import decoded
from .speech_finders import SpeechFinder
from .transcript_formats import Segment

BATCH_SIZE = 8
LOOP_RATIO = 2.4
"""Times that zlib shortens a text from which on the model is taken to repeat itself; OpenAI's Whisper has the same."""
SHORTEST_LOOP = 100
"""Bytes of a text below which a repetition may well have been said."""
NO_REPEAT_NGRAM = 3
"""Length of the token sequences that may not occur twice in a retried transcript; `generate` counts those of the
prompt as well."""


class Transcriber:
    """Transcribes recordings with a model: by joint decoding if it was aligned by CTC, otherwise greedily.

    Args:
        model: a `LlasoForConditionalGeneration`.
        processor: its processor.
        max_new_tokens: maximum length of a piece's transcript.
        batch_size: pieces that are transcribed together.
        finder: finds speech; by default an `EnergyFinder`.
        stopping: stops a generation early, as when a user cancels; the caller must discard that result.
        ctc_weight: of CTC in joint decoding, from 0 to 1; with 0 the language model decodes alone, greedily. By
            default `CTC_WEIGHT` if the model was aligned by CTC, else 0.
        beams: hypotheses that joint decoding follows.

    Raises:
        ValueError: there is no such weight or number of beams, or one is given but the model was not aligned by CTC.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        max_new_tokens: int = 256,
        batch_size: int = BATCH_SIZE,
        finder: SpeechFinder | None = None,
        stopping: StoppingCriteria | None = None,
        ctc_weight: float | None = None,
        beams: int = BEAMS,
    ):
        self.model, self.processor = model, processor
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.rate: int = processor.feature_extractor.sampling_rate
        self.window_seconds: float = processor.feature_extractor.n_samples / self.rate
        self.finder = finder
        self.stopping = StoppingCriteriaList([] if stopping is None else [stopping])
        if not isinstance(beams, int) or beams < 1:
            raise ValueError(f"beams is {beams}; it must be a whole number from 1")
        self._joint = joint_decoder(model, processor.tokenizer, ctc_weight)
        self.ctc_weight = self._joint.weight if self._joint else 0.0
        self.beams = beams if self._joint else 1

    def transcribe_file(
        self,
        file: str | Path,
        *,
        times: bool = True,
        partial: Path | None = None,
        progress: Callable[[float, float], None] | None = None,
    ) -> tuple[list[Segment], float]:
        """Transcribe a file of any length.

        Args:
            file: an audio file.
            times: cut short recordings at pauses, too, so that their segments have times.
            partial: file that keeps finished segments; a call after an interruption continues from it. Delete it once
                the transcript is stored. Only one process at a time may use it.
            progress: called with the seconds that are done and the length of the recording.

        Returns:
            The segments, and the length of the recording in seconds.

        Raises:
            ValueError: the file cannot be read; the message names it.
        """
        with decoded(file, self.rate) as samples:
            seconds = len(samples) / self.rate
            pieces = self.pieces(samples, times)
            spans = [(start / self.rate, stop / self.rate) for start, stop in pieces]
            store = None if partial is None else PartialTranscript(partial, self._header(samples), spans)
            segments = [] if store is None else list(store.segments)
            for batch in self.segments(samples, pieces[len(segments) :]):
                segments += batch
                if store is not None:
                    store.add(batch)
                if progress is not None:
                    progress(segments[-1].end, seconds)
        return segments, seconds

    def _header(self, samples: np.ndarray) -> dict[str, Any]:
        """Return what segments depend on, for a partial transcript."""
        recording = hashlib.sha256()
        for start in range(0, len(samples), 2**22):
            recording.update(samples[start : start + 2**22].tobytes())
        return {
            "llaso": __version__,
            "recording": recording.hexdigest(),
            "model": self._model_digest,
            "processor": _processor_digest(self.processor),
            "max_new_tokens": self.max_new_tokens,
            "ctc_weight": self.ctc_weight,
            "beams": self.beams,
        }

    @cached_property
    def _model_digest(self) -> str:
        """A digest of the weights, as they are loaded, and of the settings of the network and of generation."""
        digest = hashlib.sha256(self.model.config.to_json_string().encode())
        digest.update(self.model.generation_config.to_json_string().encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def pieces(self, samples: np.ndarray, cut_short: bool = True) -> list[tuple[int, int]]:
        """Find the pieces of samples at the encoder's rate, as `pieces_to_transcribe` does."""
        return pieces_to_transcribe(samples, self.rate, self.window_seconds, self.finder, cut_short)

    def segments(self, samples: np.ndarray, pieces: list[tuple[int, int]]) -> Iterator[list[Segment]]:
        """Transcribe pieces of a recording.

        Yields:
            The segments of each batch, in order.
        """
        for first in range(0, len(pieces), self.batch_size):
            batch = pieces[first : first + self.batch_size]
            results = self.transcribe([np.array(samples[start:stop]) for start, stop in batch])
            yield [
                Segment(start / self.rate, stop / self.rate, *result)
                for (start, stop), result in zip(batch, results, strict=True)
            ]

    def transcribe(self, clips: list[np.ndarray]) -> list[tuple[str, float, str]]:
        """Transcribe clips together.

        A transcript that repeats itself (`repeats_itself`) is generated once more under `NO_REPEAT_NGRAM`; its
        log-probability is then that of the restricted choice.

        Returns:
            Text, mean log-probability of its tokens by the language model, and finish reason of each.
        """
        results = self._generate(clips)
        looped = [place for place, (text, *_) in enumerate(results) if repeats_itself(text)]
        if looped:
            again = self._generate([clips[place] for place in looped], no_repeat_ngram_size=NO_REPEAT_NGRAM)
            for place, result in zip(looped, again, strict=True):
                results[place] = result
        return results

    def _generate(self, clips: list[np.ndarray], **rules: Any) -> list[tuple[str, float, str]]:
        """Return what `transcribe` does, of one generation under further rules of `generate`."""
        inputs = dict(self.processor.apply_transcription_request(clips).to(self.model.device))
        scorer: JointDecoding | _ChosenLogProbs = _ChosenLogProbs()
        if self._joint:
            scorer = self._joint.for_audio(self._joint.project(inputs))
            rules["renormalize_logits"] = False
        if self.beams > 1:
            self._read_prompt_once(inputs)
            rules |= {"length_penalty": 0.0, "early_stopping": False, "cache_implementation": None}
        generated = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=self.beams,
            **rules,
            logits_processor=LogitsProcessorList([scorer]),
            stopping_criteria=self.stopping,
        )[:, inputs["input_ids"].shape[1] :]
        is_end = torch.isin(generated, generated.new_tensor(end_ids(self.model)))
        results = []
        for clip, (row, ended) in enumerate(zip(generated, is_end, strict=True)):
            length = int(ended.int().argmax()) + 1 if ended.any() else len(row)
            text = self.processor.decode(row[:length], skip_special_tokens=True).strip()
            # Rounded, since further digits depend on what else is in the batch and on the threads.
            mean = round(scorer.log_prob(clip, tuple(row[:length].tolist())) / length, 4)
            results.append((text, mean, "stop" if ended.any() else "length"))
        return results

    @torch.no_grad()
    def _read_prompt_once(self, inputs: dict[str, Any]) -> None:
        """Replace the audio of a generation's inputs by a cache of the prompt; `generate` reads it for each beam."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)  # as `generate` counts them
        read = self.model.model(
            ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            mm_encoder_outputs=inputs.pop("mm_encoder_outputs"),
            use_cache=True,
        )
        cache = read[CACHE_SINCE_5_24]
        cache.batch_repeat_interleave(self.beams)
        inputs[CACHE_SINCE_5_24] = cache


def repeats_itself(text: str) -> bool:
    """Tell whether a text of `SHORTEST_LOOP` bytes or more is repetition: zlib shortens it over `LOOP_RATIO` times."""
    encoded = text.encode()
    return len(encoded) >= SHORTEST_LOOP and len(encoded) > LOOP_RATIO * len(zlib.compress(encoded))


class _ChosenLogProbs(LogitsProcessor):
    """Records the log-probability of the token that greedy decoding chooses at each step."""

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        self._steps.append(scores.float().log_softmax(-1).amax(-1).cpu())
        return scores

    def log_prob(self, clip: int, text: tuple[int, ...]) -> float:
        """Return the log-probability of a clip's text, as `JointDecoding.log_prob` does."""
        return sum(float(step[clip]) for step in self._steps[: len(text)])


def _processor_digest(processor: Any) -> str:
    """A digest of all that a processor saves: settings, chat template, tokenizer."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="llaso-processor-") as folder:
        processor.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
