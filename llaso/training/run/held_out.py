"""Measures the word error rate on held-out speech by generating transcripts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from llaso.alignment.alignment import Alignment, best_paths
from llaso_common.schema import Row, clean_messages, clip_bytes
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from ..rows.corpora import decode_audio
from ..rows.encoder_cache import EncoderCache, audio_tokens_of, clip_key, kept_audio

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 16
SPARE_TOKENS = 16
"""Tokens that a transcription may have beyond twice its reference; a longer one counts as wrong anyway."""

normalize = BasicTextNormalizer()
"""Lower case, no punctuation, single spaces: Whisper's language-free rule."""


def word_errors(prediction: str, reference: str) -> tuple[int, int]:
    """Count the substituted, inserted and deleted words after normalization, and the reference's words.

    Args:
        prediction: the model's transcript.
        reference: the corpus's transcript.
    """
    heard, said = normalize(prediction).split(), normalize(reference).split()
    row = list(range(len(said) + 1))
    for i, word in enumerate(heard, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1], len(said)


class HeldOut:
    """Held-out ASR rows, transcribed on demand; those without a transcript are left out, with a warning.

    Args:
        rows: of the validation split.
        processor: writes the prompts.
        cache: the frozen encoder's output, if it is kept.
        sharded: the weights are split over processes, which then generate in step, without the cache.
        skip_bad_rows: leave out rows that cannot be read as well, instead of raising.
        alignment: read the best path of the audio's alignment in place of an answer of the LLM, which is not yet
            trained for it.

    Raises:
        ValueError: a row cannot be read.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        processor: LlasoProcessor,
        cache: EncoderCache | None = None,
        sharded: bool = False,
        skip_bad_rows: bool = False,
        alignment: Alignment | None = None,
    ) -> None:
        self.rows = [row for row in rows if normalize(row.get("target") or "").split()]
        if untold := len(rows) - len(self.rows):
            logger.warning("%d held-out rows have no transcript and are left out", untold)
        self.rows = [row for row in self.rows if self._readable(row, processor, skip_bad_rows)]
        self.processor, self.sharded, self.alignment = processor, sharded, alignment
        self.cache = None if sharded else cache

    @staticmethod
    def _readable(row: Row, processor: LlasoProcessor, skip: bool) -> bool:
        try:
            if not decode_audio(row, processor.feature_extractor.sampling_rate):
                raise ValueError("it has no audio")
            clean_messages(row)
        except ValueError as error:
            if not skip:
                raise ValueError(
                    f"held-out row {row['id']}: {error} (set data.bad_rows=skip to leave such rows out)"
                ) from error
            logger.warning("left out: held-out row %s: %s", row["id"], error)
            return False
        return True

    def evaluate(
        self,
        model: LlasoForConditionalGeneration,
        rows: int,
        rank: int = 0,
        world: int = 1,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any] | None:
        """Transcribe the first `rows` rows, or this process's share of them, without an effect on the training.

        If weights are sharded, all processes generate equally many batches in step; a process without rows repeats one
        that does not count.

        Args:
            model: transcribes.
            rows: number of rows, over all processes.
            rank: of this process.
            world: number of processes.
            stop: called before every batch by all processes; True ends the evaluation.

        Returns:
            `errors`, `words`, `rows`, `seconds`, and `samples`, a few (reference, transcription) pairs; None if it was
            stopped.
        """
        start = time.perf_counter()
        chosen = sorted(self.rows[:rows], key=lambda row: row.get("duration") or 0.0)
        mine = chosen[rank::world]
        batches = -(-len(chosen) // (world * ROWS_AT_ONCE))
        errors = words = 0
        samples = []
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            for number in range(batches):
                if stop():
                    return None
                batch = mine[number::batches]
                if not batch and not self.sharded:
                    continue
                for row, text in zip(batch, self._transcribe(model, batch or chosen[:1]), strict=False):
                    wrong, said = word_errors(text, row["target"])
                    errors, words = errors + wrong, words + said
                    samples.append((row["target"], text))
        finally:
            for module, mode in modes.items():
                module.training = mode
        return {
            "errors": errors,
            "words": words,
            "rows": len(mine),
            "seconds": time.perf_counter() - start,
            "samples": samples[:3],
        }

    def _transcribe(self, model: LlasoForConditionalGeneration, rows: Sequence[Row]) -> list[str]:
        """Generate the rows' greedy answers, or read their alignment.

        Encoder output comes from the cache if it holds all their clips.
        """
        prompts = [clean_messages(row)[:-1] for row in rows]
        keys = [clip_key(clip_bytes(clip)) for row in rows for clip in row["audio"]]
        processor = self.processor
        if self.cache is not None and all(key in self.cache for key in keys):
            clips = [self.cache.get(key) for key in keys]
            counts = [audio_tokens_of(clip, processor.projector_stride) for clip in clips]
            texts = processor.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
            inputs = processor.tokenizer(processor.expand_text(texts, counts), padding=True, return_tensors="pt")
            inputs["mm_encoder_outputs"] = {
                "audio": kept_audio([window.to(model.device) for clip in clips for window in clip])
            }
        else:
            rate = processor.feature_extractor.sampling_rate
            inputs = processor.apply_chat_template(
                prompts,
                audio=[clip for row in rows for clip in decode_audio(row, rate)],
                tokenize=True,
                return_dict=True,
                add_generation_prompt=True,
            )
        inputs = inputs.to(model.device)
        if self.alignment is not None:
            return best_paths(self.alignment, model, processor, inputs)
        longest = max(len(processor.tokenizer(row["target"])["input_ids"]) for row in rows)
        written: torch.Tensor = model.generate(  # type: ignore[misc, assignment]
            **inputs, max_new_tokens=2 * longest + SPARE_TOKENS, do_sample=False, synced_gpus=self.sharded
        )
        answers = written[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]
