"""Compares what exported parts answer with the model's own answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

from .exported_model import ExportedLlaso
from .own_answers import FORMS, compared_ids, message_parts, own_answer, own_inputs

CLOSE = 1e-3
"""Between logits, at most: both compute in single precision, and add in another order."""


@dataclass(frozen=True)
class PartsComparison:
    """One clip's answer, by the model and by the exported files.

    Attributes:
        prompt_tokens: tokens of the prompt with its audio.
        ours: ids of the answer, with the token that ends it.
        theirs: the same, by the files.
        gap: between logits, the widest, over all tokens as long as the ids before were equal.
    """

    prompt_tokens: int
    ours: list[int]
    theirs: list[int]
    gap: float

    @property
    def equal(self) -> bool:
        """Return whether the ids are the same and the logits close."""
        return self.ours == self.theirs and self.gap <= CLOSE

    def described(self) -> str:
        """Say what is equal and what is not."""
        ids = compared_ids(self.ours, self.theirs)
        return f"{self.prompt_tokens} prompt tokens; {ids}; logits within {self.gap:.1e}"


def compare_prompts(files: ExportedLlaso, processor: LlasoProcessor, question: str) -> dict[str, bool]:
    """Tell for each of `FORMS` whether the files' prompt has the processor's token ids."""
    rate = processor.feature_extractor.sampling_rate
    clip = np.sin(np.arange(rate, dtype=np.float32))
    equal = {}
    for form in FORMS:
        kinds = form.split(", ")
        clips = [clip] * kinds.count("audio")
        theirs = files.processor([{"role": "user", "content": message_parts(question, kinds)}], clips)
        ours = own_inputs(processor, question, kinds, clips)
        equal[form] = ours["input_ids"].tolist() == theirs.input_ids.tolist()
    return equal


def compare_clip(
    files: ExportedLlaso,
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    clip: np.ndarray,
    question: str,
    max_new_tokens: int,
) -> PartsComparison:
    """Ask both about a clip, greedily.

    Args:
        files: the exported ones.
        model: what they were exported from, in single precision.
        processor: the model's.
        clip: mono samples at 16 kHz, of any length.
        question: the text before the audio.
        max_new_tokens: length of an answer at most.

    Raises:
        ValueError: the model has another vocabulary.
    """
    own = own_answer(model, processor, clip, question, max_new_tokens)
    messages = [{"role": "user", "content": message_parts(question, ["text", "audio"])}]
    steps = list(files.steps(files.processor(messages, [clip]), max_new_tokens))
    theirs = [number for number, _ in steps]
    if (width := len(steps[0][1])) != own.logits.shape[1]:
        raise ValueError(
            f"the files have logits of {width} tokens, and the model of {own.logits.shape[1]}: they were made of "
            "another model"
        )
    gaps = [
        float(np.abs(logits - ours).max())
        for step, ((_, logits), ours) in enumerate(zip(steps, own.logits.cpu().numpy(), strict=False))
        if theirs[:step] == own.ids[:step]
    ]
    return PartsComparison(prompt_tokens=own.prompt_tokens, ours=own.ids, theirs=theirs, gap=max(gaps))
