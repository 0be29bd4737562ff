"""A tiny LLaSO whose answers differ and are readable, and its answers without the demo."""

from __future__ import annotations

import numpy as np
import torch

from support.tiny_llaso import ask, tiny_llaso

LETTERS = "ab "


def talking_llaso(audio_padding: str = "trim"):
    """Return a model that writes words of a few letters, others for another question; and its processor."""
    model, processor = tiny_llaso(audio_padding)
    with torch.no_grad():
        for parameter in model.model.language_model.layers.parameters():
            if parameter.ndim > 1:
                parameter *= 3  # the question outweighs the last token
    allowed = set(processor.tokenizer(LETTERS, add_special_tokens=False)["input_ids"])
    model.generation_config.suppress_tokens = [
        token for token in range(model.config.text_config.vocab_size) if token not in allowed
    ]
    model.generation_config.no_repeat_ngram_size = 3  # so that a space comes soon, which ends a piece of the stream
    return model, processor


def direct_answer(model, processor, content: list[dict], clip: np.ndarray, max_new_tokens: int) -> str:
    """Return the answer to a message of these parts, from one call of `generate`."""
    inputs = ask(processor, [{"role": "user", "content": content}], [clip])
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
