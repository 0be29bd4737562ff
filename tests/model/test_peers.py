"""What the README says of transformers' own audio models, seen on tiny ones beside ours with five seconds of sound.

How many mel frames a processor sends to the encoder, and for how many positions a training step computes logits.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from support import tiny_eval
from support.tiny_llaso import tiny_llaso, tone
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    GlmAsrConfig,
    GlmAsrForConditionalGeneration,
    GlmAsrProcessor,
)

SECONDS, FRAMES, WINDOW = 5.0, 500, 3000
ANSWER = 3  # tokens
ENCODER = {
    "num_mel_bins": 80,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


class Subject(NamedTuple):
    model: torch.nn.Module
    processor: object


def glm_asr() -> Subject:
    return _of(GlmAsrConfig, GlmAsrForConditionalGeneration, GlmAsrProcessor, "glmasr_encoder", "llama", "<|pad|>")


def audio_flamingo_3() -> Subject:
    return _of(
        AudioFlamingo3Config,
        AudioFlamingo3ForConditionalGeneration,
        AudioFlamingo3Processor,
        "audioflamingo3_encoder",
        "qwen2",
        "<sound>",
    )


def _of(config, model, processor, encoder: str, text: str, token: str) -> Subject:
    tokenizer = tiny_eval._byte_tokenizer([token])
    settings = config(
        audio_config={"model_type": encoder, **ENCODER},
        text_config={"model_type": text, **tiny_eval.TEXT},
        audio_token_id=tokenizer.convert_tokens_to_ids(token),
    )
    template = tiny_eval._chat_template(token)
    return Subject(model(settings), processor(tiny_eval._features(), tokenizer, chat_template=template))


def llaso(padding: str):
    return lambda: Subject(*tiny_llaso(padding))


@pytest.mark.parametrize(
    ("make", "frames", "answers_only"),
    [
        pytest.param(llaso("trim"), FRAMES, True, id="LLaSO trim"),
        pytest.param(llaso("full"), WINDOW, True, id="LLaSO full"),
        pytest.param(audio_flamingo_3, WINDOW, False, id="Audio Flamingo 3"),
        pytest.param(glm_asr, WINDOW, False, id="GLM-ASR"),
    ],
)
def test_frames_encoded_and_logits_computed(make, frames: int, answers_only: bool):
    model, processor = make()
    message = {
        "role": "user",
        "content": [{"type": "audio", "audio": tone(SECONDS)}, {"type": "text", "text": "Who?"}],
    }
    inputs = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["input_features"].shape[-1] == frames
    labels = inputs["input_ids"].clone()
    labels[:, :-ANSWER] = -100
    outputs = model.train()(**inputs, labels=labels)
    assert outputs.logits.flatten(0, -2).shape[0] == labels.numel()
    if answers_only:  # as our trainer asks
        shift_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        answers = shift_labels != -100
        kept = model(**inputs, labels=labels, shift_labels=shift_labels[answers], logits_to_keep=answers)
        assert kept.logits.flatten(0, -2).shape[0] == ANSWER
        torch.testing.assert_close(kept.loss, outputs.loss)
