"""The model's own prompts and greedy answers, with which those of exported files are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modeling_llaso.loading import end_ids
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

FORMS = ("text, audio", "audio, text", "audio", "text, audio, audio")
"""Orders of parts in which prompts are compared."""


@dataclass(frozen=True)
class OwnAnswer:
    """A greedy answer.

    Attributes:
        prompt_tokens: tokens of the prompt with its audio.
        ids: of the answer, with the token that ended it.
        logits: `(len(ids), vocab_size)`, each id's.
        ended: whether it ended by itself.
    """

    prompt_tokens: int
    ids: list[int]
    logits: torch.Tensor
    ended: bool

    @property
    def said(self) -> list[int]:
        """Its ids without the token that ended it."""
        return self.ids[:-1] if self.ended else self.ids


def own_answer(
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    clip: np.ndarray,
    question: str,
    max_new_tokens: int,
) -> OwnAnswer:
    """Ask the model about a clip, the question first."""
    inputs = own_inputs(processor, question, ["text", "audio"], [clip]).to(model.device)
    length = inputs["input_ids"].shape[1]
    generated: Any = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = generated.sequences[0, length:].tolist()
    return OwnAnswer(
        prompt_tokens=length,
        ids=ids,
        logits=torch.stack(generated.logits)[:, 0].float(),
        ended=bool(ids) and ids[-1] in end_ids(model),
    )


def own_inputs(processor: LlasoProcessor, question: str, kinds: Sequence[str], clips: Sequence[np.ndarray]) -> Any:
    """The processor's inputs for one user's message.

    Args:
        processor: the model's.
        question: the text of each part that is one.
        kinds: the parts in order, `"text"` or `"audio"`.
        clips: samples, one for each audio.
    """
    return processor.apply_chat_template(
        [{"role": "user", "content": message_parts(question, kinds)}],
        audio=clips,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )


def message_parts(question: str, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of a message, in the order of `kinds`; see `own_inputs`."""
    return [{"type": "text", "text": question} if kind == "text" else {"type": "audio"} for kind in kinds]


def compared_ids(ours: Sequence[int], theirs: Sequence[int]) -> str:
    """Say whether two answers have the same ids, and show them if not."""
    if ours != theirs:
        return f"DIFFERENT ids, {ours} and {theirs}"
    return f"{len(ours)} equal answer token{'s' if len(ours) > 1 else ''}" if ours else "no answer by either"
