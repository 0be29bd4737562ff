"""Distils the text LLM into the speech model: the teacher's input has the transcript, the student's the audio."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

from .model_setup import cast_frozen
from .packed_attention import packed_inputs


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
        self, student: torch.Tensor, answer_rows: torch.Tensor, teacher_inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the KL divergence of the student from the teacher at every answer token of the taught rows.

        Args:
            student: `(answer tokens, vocabulary)` logits of the whole batch, row after row.
            answer_rows: `(answer tokens,)`, the row of each.
            teacher_inputs: from `TeacherCollator`.

        Returns:
            The divergence, `(taught tokens,)`, times the squared temperature; and which of the student's tokens were
            taught, `(answer tokens,)`.
        """
        ids = teacher_inputs["teacher_ids"]
        with torch.no_grad():
            apart = (
                packed_inputs(self.language_model.config, teacher_inputs["teacher_lengths"], ids.device)
                if "teacher_lengths" in teacher_inputs
                else {"attention_mask": teacher_inputs["teacher_mask"]}
            )
            self.head.to(student.device)
            hidden = (
                self.language_model.to(student.device)
                .eval()(input_ids=ids, use_cache=False, **apart)
                .last_hidden_state
            )
            wanted = self.head(hidden[teacher_inputs["teacher_answers"]]).float() / self.temperature
        taught = torch.isin(answer_rows, teacher_inputs["teacher_rows"])
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
