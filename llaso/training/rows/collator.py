"""Turns rows into one batch, padded or packed.

The processor writes the prompt, cuts and transforms the audio and counts its tokens; labels come from its chat
template's assistant mask, so prompt text and audio formulas are not repeated here. Rows without audio, with one clip
and with several may share a batch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.utils.chat_template_utils import render_jinja_template

from llaso.alignment.alignment import TRANSCRIBED, blank_of, is_transcribed
from llaso.alignment.short_pieces import ShortPieces
from llaso_common.schema import Clip, Row, clean_messages, clip_bytes
from modeling_llaso.processing_llaso import LlasoProcessor, stack_windows

from .corpora import TrainingRow, log_mels
from .encoder_cache import EncoderCache, audio_tokens_of, clip_key, kept_audio
from .packing import Packed, end_to_end, shifted
from .shared_prefix import shared_prefix_of

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of tokens that are not learned."""


@dataclass(frozen=True)
class Example:
    """One row, ready to be padded.

    Attributes:
        id: the row's id.
        task: the code of the row's task.
        input_ids: `(tokens,)`, audio expanded.
        labels: `(tokens,)`, `IGNORED` outside the answers.
        windows: the audio, window after window: log-mel `(mels, frames)`, or, if `encoded`, the encoder's output
            `(positions, width)`.
        encoded: whether `windows` hold the encoder's output.
        transcript: `(tokens or pieces,)`, to be aligned with the audio; None if the row is not aligned.
    """

    id: str
    task: str
    input_ids: torch.Tensor
    labels: torch.Tensor
    windows: list[torch.Tensor]
    encoded: bool = False
    transcript: torch.Tensor | None = None


class RowEncoder:
    """Encodes one row at a time by the processor.

    Args:
        processor: writes prompts, cuts and transforms audio, and counts tokens.
        max_length: tokens of text, counting each clip as one; what goes beyond is cut off the end.
        cache: the frozen encoder's output, used for a row if it has every clip of it.
        align: which rows are also aligned by CTC. `no`: none; `some`: those that can be; `all`: every row, and one
            that cannot be is refused.
        pieces: splits the tokens of transcripts to be aligned; by default they stay whole.
    """

    def __init__(
        self,
        processor: LlasoProcessor,
        max_length: int,
        cache: EncoderCache | None = None,
        align: Literal["no", "some", "all"] = "no",
        pieces: ShortPieces | None = None,
    ) -> None:
        self.processor, self.max_length, self.cache = processor, max_length, cache
        self.align, self.pieces = align, pieces
        self._not_aligned = torch.tensor([*processor.tokenizer.all_special_ids, blank_of(processor)])

    def __call__(self, row: Row) -> Example:
        """Return tokens, labels and audio of a row.

        A row that is too long at its `speed`, or too short to be aligned, is played as it is.

        Raises:
            ValueError: the row cannot be learned from; the message names it.
        """
        if (speed := cast(TrainingRow, row).get("speed", 1.0)) != 1:
            with contextlib.suppress(ValueError):  # what is not due to the speed is raised below
                return self._encode(row, speed)
        try:
            return self._encode(row)
        except ValueError as error:
            raise ValueError(f"row {row['id']}: {error}") from error

    def _encode(self, row: Row, speed: float = 1.0) -> Example:
        for name in ("id", "task"):
            if row[name] is None:
                raise ValueError(f"its `{name}` is null")
        messages = clean_messages(row)
        if messages[-1]["role"] != "assistant":
            raise ValueError("its last message is no answer, so there is nothing to learn")
        input_ids, answer = self.tokenize(messages)
        is_audio = input_ids == self.processor.audio_token_id
        clips = row["audio"] or []
        if int(is_audio.sum()) != len(clips):
            raise ValueError(
                f"its messages have {int(is_audio.sum())} places for audio, but it has {len(clips)} clips"
            )
        if is_audio[self.max_length :].any():
            raise ValueError(
                f"its text is longer than data.max_length={self.max_length} tokens before its last clip, and audio is "
                "never cut"
            )
        input_ids, answer, is_audio = (t[: self.max_length] for t in (input_ids, answer, is_audio))
        if not answer.any():
            raise ValueError(f"nothing of its answer is within data.max_length={self.max_length}")

        encoded = self.cache is not None and all(clip_key(clip_bytes(clip)) in self.cache for clip in clips)
        windows_of_clips = self._encoded(clips) if encoded else log_mels(row, self.processor, speed)
        repeats = torch.ones_like(input_ids)
        repeats[is_audio] = torch.tensor([count for count, _ in windows_of_clips], dtype=torch.long)
        labels = input_ids.masked_fill(~answer, IGNORED)
        vectors = sum(count for count, _ in windows_of_clips)
        return Example(
            id=row["id"],
            task=row["task"],
            input_ids=input_ids.repeat_interleave(repeats),
            labels=labels.repeat_interleave(repeats),
            windows=[window for _, windows in windows_of_clips for window in windows],
            encoded=encoded and bool(clips),
            transcript=None
            if self.align == "no"
            else self._transcript(row, labels[answer], vectors, required=self.align == "all" or speed != 1),
        )

    def _transcript(self, row: Row, answer: torch.Tensor, vectors: int, required: bool) -> torch.Tensor | None:
        """Return the tokens of a row's transcript, or their pieces; None if it cannot be aligned.

        Tokens that end the turn are left out, and so are line breaks, which are the blank. CTC needs a vector for each
        token, and one more between two equal ones.

        Raises:
            ValueError: it cannot be aligned, and `required` is set.
        """
        if not is_transcribed(row["task"], row["modality"]) or not vectors:
            reason = f"it is not the transcript of one recording (task {row['task']}, format {row['modality']})"
        else:
            tokens = answer if self.pieces is None else self.pieces.split(answer)
            tokens = tokens[~torch.isin(tokens, self._not_aligned)]
            needed = len(tokens) + int((tokens[1:] == tokens[:-1]).sum())
            if 0 < needed <= vectors:
                return tokens
            reason = (
                f"its transcript needs {needed} audio tokens, but it has {vectors} (a smaller model.projector_stride "
                "gives more, and a larger optimizer.ctc_merges needs fewer)"
            )
            if not required:
                logger.warning("row %s is not aligned by CTC: %s", row["id"], reason)
        if required:
            raise ValueError(f"{reason}, so nothing is learned from it with optimizer.ctc_weight=1")
        return None

    def tokenize(self, messages: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a conversation's tokens, each clip as one placeholder, and a mask of those that the assistant wrote.

        What `processor.apply_chat_template(…, return_assistant_tokens_mask=True)` gives, before audio is expanded: so
        a row whose encoder output is kept needs no audio at all.
        """
        tokenizer = self.processor.tokenizer
        self.processor.check_messages([messages])
        template = self.processor.chat_template
        assert isinstance(template, str)
        rendered: Any = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
        prompts, spans = rendered
        begins = tokenizer.bos_token is not None and prompts[0].startswith(tokenizer.bos_token)
        tokens = tokenizer(prompts[0], add_special_tokens=not begins, return_offsets_mapping=True)
        offsets = torch.tensor(tokens["offset_mapping"])  # (tokens, 2): first character, and the one after the last
        written = torch.zeros(len(offsets), dtype=torch.bool)
        for first, end in torch.tensor(spans[0]):
            written |= (offsets[:, 0] < end) & (offsets[:, 1] > first)
        return torch.tensor(tokens["input_ids"]), written

    def _encoded(self, clips: Sequence[Clip]) -> list[tuple[int, list[torch.Tensor]]]:
        """Return, for each clip, its number of tokens and its windows of cached encoder output."""
        assert self.cache is not None
        kept = [self.cache.get(clip_key(clip_bytes(clip))) for clip in clips]
        return [(audio_tokens_of(windows, self.processor.projector_stride), windows) for windows in kept]


@dataclass
class Collator:
    """Turns rows into a batch.

    The batch holds `input_ids`, `attention_mask`, `shift_labels` (the label of each token's successor), the rows'
    `ids` and `tasks`, and the audio of all rows, window after window. Rows whose encoder output is kept come first:
    theirs is in `mm_encoder_outputs`, that of the other rows in `input_features` with `input_features_mask`. For a
    packed batch see `pack`. Rows to be aligned have their `transcripts`, one after another, and `transcript_sizes`,
    0 for the other rows.

    Attributes:
        encode: turns a row into an example.
        skip_bad_rows: leave a row that cannot be learned from out, with a warning, instead of raising.
        extra_inputs: called with the batch's rows; returns more inputs, e.g. the teacher's.
        packing: lay rows end to end instead of padding them.
        share_prefix: add `shared_prefix`, how many tokens all rows begin with; see `SharedPrefix`.
    """

    encode: RowEncoder
    skip_bad_rows: bool = False
    extra_inputs: Callable[[Sequence[Row]], dict[str, Any]] | None = None
    packing: bool = False
    share_prefix: bool = False

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        examples, skipped = [], []
        for row in rows:
            try:
                examples.append((row, self.encode(row)))
            except ValueError as error:
                if not self.skip_bad_rows:
                    raise ValueError(f"{error} (set data.bad_rows=skip to leave such rows out)") from error
                logger.warning("left out: %s", error)
                skipped.append(row["id"])
        examples.sort(key=lambda example: not example[1].encoded)
        lay = pack if self.packing else pad
        batch = lay([example for _, example in examples], self.encode.processor.tokenizer.pad_token_id)
        if self.share_prefix and len(examples) > 1:
            tokens = [example.input_ids for _, example in examples]
            batch["shared_prefix"] = shared_prefix_of(tokens, self.encode.processor.audio_token_id)
        batch["skipped"] = skipped
        return batch | self.extra_inputs([row for row, _ in examples]) if self.extra_inputs is not None else batch


def pad(examples: Sequence[Example], pad_token_id: int) -> dict[str, Any]:
    """Pad examples on the right into one batch; no examples give one row of padding that teaches nothing."""
    examples = examples or [nothing_to_learn(pad_token_id)]
    input_ids = pad_sequence([e.input_ids for e in examples], batch_first=True, padding_value=pad_token_id)
    labels = pad_sequence([e.labels for e in examples], batch_first=True, padding_value=IGNORED)
    sizes = torch.tensor([len(e.input_ids) for e in examples])
    batch: dict[str, Any] = {
        "ids": [e.id for e in examples],
        "tasks": [e.task for e in examples],
        "input_ids": input_ids,
        "attention_mask": (torch.arange(input_ids.shape[1]) < sizes[:, None]).long(),
        "shift_labels": torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED),
    }
    if any(e.transcript is not None for e in examples):
        transcripts = [input_ids.new_empty(0) if e.transcript is None else e.transcript for e in examples]
        batch["transcripts"] = torch.cat(transcripts)
        batch["transcript_sizes"] = torch.tensor([len(transcript) for transcript in transcripts])
    if kept := [window for e in examples if e.encoded for window in e.windows]:
        batch["mm_encoder_outputs"] = {"audio": kept_audio(kept)}
    if mels := [window for e in examples if not e.encoded for window in e.windows]:
        batch["input_features"], batch["input_features_mask"] = stack_windows(mels)
    return batch


def pack(examples: Sequence[Example], pad_token_id: int) -> dict[str, Any]:
    """Lay examples end to end into one batch; no examples give one row that teaches nothing.

    `input_ids` and `shift_labels` are `(1, tokens)`. `packed` says where the rows end and holds the audio; windows of
    equal length stay in `input_features`, since they need no padding.
    """
    examples = examples or [nothing_to_learn(pad_token_id)]
    packed = Packed(row_lengths=[len(e.input_ids) for e in examples])
    batch: dict[str, Any] = {
        "ids": [e.id for e in examples],
        "tasks": [e.task for e in examples],
        "input_ids": torch.cat([e.input_ids for e in examples])[None],
        "shift_labels": shifted([e.labels for e in examples], IGNORED),
        "packed": packed,
    }
    if kept := [window for e in examples if e.encoded for window in e.windows]:
        packed["kept"], packed["kept_vectors"] = torch.cat(kept), [len(window) for window in kept]
    if mels := [window for e in examples if not e.encoded for window in e.windows]:
        frames = [window.shape[1] for window in mels]
        if len(set(frames)) == 1:
            batch["input_features"], batch["input_features_mask"] = stack_windows(mels)
        else:
            packed["features"], packed["window_frames"] = end_to_end(mels), frames
    return batch


def nothing_to_learn(pad_token_id: int) -> Example:
    """Return a row of padding that teaches nothing."""
    return Example("", "", torch.full((2,), pad_token_id), torch.full((2,), IGNORED), windows=[])


class TeacherCollator:
    """Builds the teacher's inputs: the transcribed rows of a batch, with the transcript in place of the audio.

    Args:
        encode: the student's encoder of rows, whose template and length limit it shares.
        packing: lay rows end to end instead of padding them.
    """

    def __init__(self, encode: RowEncoder, packing: bool = False) -> None:
        self.encode, self.packing = encode, packing

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the tokens of the transcribed rows.

        Returns:
            `teacher_rows`, their places in the batch; `teacher_ids` and `teacher_mask`, `(rows, tokens)`; and
            `teacher_answers`, true for tokens that predict one of the answer. Packed, `teacher_ids` is `(1, tokens)`,
            and `teacher_lengths`, the tokens of each row, replaces the mask.
        """
        places, sequences, answers = [], [], []
        for place, row in enumerate(rows):
            if row["task"] not in TRANSCRIBED or not row["audio"] or not row["target"]:
                continue
            input_ids, answer = self.encode.tokenize(transcribed(row))
            if len(input_ids) <= self.encode.max_length:
                places.append(place)
                sequences.append(input_ids)
                answers.append(torch.nn.functional.pad(answer[1:], (0, 1), value=False))
        if not places:
            return {}
        if self.packing:
            return {
                "teacher_rows": torch.tensor(places),
                "teacher_ids": torch.cat(sequences)[None],
                "teacher_lengths": [len(sequence) for sequence in sequences],
                "teacher_answers": torch.cat(answers)[None],
            }
        pad_id = self.encode.processor.tokenizer.pad_token_id
        ids = pad_sequence(sequences, batch_first=True, padding_value=pad_id)
        sizes = torch.tensor([len(sequence) for sequence in sequences])
        return {
            "teacher_rows": torch.tensor(places),
            "teacher_ids": ids,
            "teacher_mask": (torch.arange(ids.shape[1]) < sizes[:, None]).long(),
            "teacher_answers": pad_sequence(answers, batch_first=True, padding_value=False),
        }


def transcribed(row: Row) -> list[dict[str, Any]]:
    """Return a row's messages with its transcript in place of the audio."""
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "text", "text": f"\n{row['target']}\n"} if part["type"] == "audio" else part
                for part in message["content"]
            ],
        }
        for message in clean_messages(row)
    ]
