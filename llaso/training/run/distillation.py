"""Distillation from the text LLM: the teacher reads the transcript, the student hears the speech, and both answer.

Only rows whose transcript is known can be taught in this way: those of `TRANSCRIBED` tasks, whose target it is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from llaso_common.schema import Row, clean_messages
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

from ..rows.collator import RowEncoder
from .model_parts import cast_frozen

TRANSCRIBED = ("ASR",)


class TeacherCollator:
    """The transcribed rows of a batch as the teacher reads them.

    Args:
        encode: the student's encoder of rows, whose template and length limit it shares.
    """

    def __init__(self, encode: RowEncoder) -> None:
        self.encode = encode

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return the tokens of the transcribed rows.

        Returns:
            `teacher_rows`, their places in the batch; `teacher_ids` and `teacher_mask`, `(rows, tokens)`; and
            `teacher_answers`, true for tokens that predict one of the answer.
        """
        places, sequences, answers = [], [], []
        for place, row in enumerate(rows):
            if row["task"] not in TRANSCRIBED or not row["audio"] or not row["target"]:
                continue
            input_ids, answer = self.encode.tokenize(transcribed(row))
            if len(input_ids) <= self.encode.max_length:
                places.append(place)
                sequences.append(input_ids)
                answers.append(nn.functional.pad(answer[1:], (0, 1), value=False))
        if not places:
            return {}
        pad_id = self.encode.processor.tokenizer.pad_token_id
        ids = pad_sequence(sequences, batch_first=True, padding_value=pad_id)
        sizes = torch.tensor([len(sequence) for sequence in sequences])
        return {
            "teacher_rows": torch.tensor(places),
            "teacher_ids": ids,
            "teacher_mask": (torch.arange(ids.shape[1]) < sizes[:, None]).long(),
            "teacher_answers": pad_sequence(answers, batch_first=True, padding_value=False),
        }


class Teacher:
    """The text LLM as it was before training.

    Args:
        model: the student. If its LLM is frozen, the LLM itself teaches; if it learns, a copy does.
        temperature: flattens both distributions; the gradient keeps its size.
        copies: make a copy even of a frozen LLM, which teaches outside the model's forward pass: sharded weights
            are not whole there.
    """

    def __init__(self, model: LlasoForConditionalGeneration, temperature: float, copies: bool = False) -> None:
        parts = [model.model.language_model, model.lm_head]
        if copies or any(parameter.requires_grad for part in parts for parameter in part.parameters()):
            parts = copy.deepcopy(parts)  # together, so that tied weights stay tied
            for part in parts:
                part.requires_grad_(False)
        self.language_model, self.head = parts
        self.temperature = temperature

    def hold_in(self, dtype: torch.dtype) -> None:
        """Hold the teacher's weights in another type, in place."""
        for part in (self.language_model, self.head):
            cast_frozen(part, dtype)

    def divergence(
        self, student: torch.Tensor, is_answer: torch.Tensor, teacher_inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the KL divergence of the student from the teacher at every answer token of the taught rows.

        Args:
            student: `(answer tokens, vocabulary)` logits of the whole batch, row after row.
            is_answer: `(rows, tokens)`, the positions they were taken from.
            teacher_inputs: from `TeacherCollator`.

        Returns:
            The divergence, `(taught tokens,)`, times the squared temperature; and which of the student's tokens were
            taught, `(answer tokens,)`.
        """
        rows = teacher_inputs["teacher_rows"]
        with torch.no_grad():
            self.head.to(student.device)
            hidden = (
                self.language_model.to(student.device)
                .eval()(
                    input_ids=teacher_inputs["teacher_ids"],
                    attention_mask=teacher_inputs["teacher_mask"],
                    use_cache=False,
                )
                .last_hidden_state
            )
            wanted = self.head(hidden[teacher_inputs["teacher_answers"]]).float() / self.temperature
        taught = torch.isin(is_answer.nonzero()[:, 0], rows)
        heard = student[taught].float() / self.temperature
        if len(heard) != len(wanted):
            raise ValueError(
                f"teacher and student answer with {len(wanted)} and {len(heard)} tokens: data.max_length cuts one of "
                "them; raise it"
            )
        divergence = nn.functional.kl_div(
            heard.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none"
        )
        return divergence.sum(-1) * self.temperature**2, taught


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
