"""The models that are measured, all of one size, and one batch for each: the same audio, prompt and answer.

Medium size: a Whisper encoder 384 wide with 4 layers, a Llama 512 wide with 8 layers and a vocabulary of 128,261,
fp32. Peers pool their audio harder than the released model does, so they read fewer tokens of the same audio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    GlmAsrConfig,
    GlmAsrForConditionalGeneration,
    LlamaConfig,
    PreTrainedModel,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperConfig,
)

from modeling_llaso.configuration_llaso import LlasoConfig
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

VOCABULARY = 128_261
PROMPT, ANSWER, NEW_TOKENS = 96, 40, 64
BATCH = 4
FRAMES, WHOLE = 500, 3000
"""Mel frames of five seconds, and of the 30 s window they are padded to."""
IGNORED = -100


def text_config() -> dict[str, Any]:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=None,
    ).to_dict()


def llaso(audio_padding: str, stride: int = 1) -> PreTrainedModel:
    encoder = WhisperConfig(
        num_mel_bins=128, d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536
    )
    return LlasoForConditionalGeneration(
        LlasoConfig(
            audio_config=encoder.to_dict(),
            text_config=text_config(),
            audio_token_id=VOCABULARY,
            audio_padding=audio_padding,
            projector_stride=stride,
        )
    )


def peer(model_class: type[PreTrainedModel], config_class: type, encoder: str) -> PreTrainedModel:
    audio = {
        "model_type": encoder,
        "num_mel_bins": 128,
        "hidden_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
    }
    config = config_class(audio_config=audio, text_config=text_config(), audio_token_id=VOCABULARY - 1)
    config.tie_word_embeddings = True
    return model_class(config)


@dataclass(frozen=True)
class Subject:
    """One line of the table.

    Attributes:
        build: makes the model, untrained.
        frames: mel frames its processor gives it for five seconds of audio.
        real: how many of them its mask calls real; None where it takes no mask.
        peer: whether it is one of transformers' own.
    """

    build: Callable[[], PreTrainedModel]
    frames: int
    real: int | None
    peer: bool = False


SUBJECTS = {
    "LLaSO full": Subject(lambda: llaso("full"), WHOLE, WHOLE),
    "LLaSO trim": Subject(lambda: llaso("trim"), FRAMES, FRAMES),
    "LLaSO full, 4 to 1": Subject(lambda: llaso("full", stride=4), WHOLE, WHOLE),
    "LLaSO trim, 4 to 1": Subject(lambda: llaso("trim", stride=4), FRAMES, FRAMES),
    "AudioFlamingo3": Subject(
        lambda: peer(AudioFlamingo3ForConditionalGeneration, AudioFlamingo3Config, "audioflamingo3_encoder"),
        WHOLE,
        FRAMES,
        peer=True,
    ),
    "GLM-ASR": Subject(
        lambda: peer(GlmAsrForConditionalGeneration, GlmAsrConfig, "glmasr_encoder"), FRAMES, FRAMES, peer=True
    ),
    "Voxtral": Subject(
        lambda: peer(VoxtralForConditionalGeneration, VoxtralConfig, "voxtral_encoder"), WHOLE, None, peer=True
    ),
}


def batch_of(subject: Subject, model: PreTrainedModel, rows: int, answers: bool) -> dict[str, torch.Tensor]:
    """The prompt with the audio in its middle, and the answer where it is trained on.

    Args:
        subject: says how the audio comes.
        model: tells, by encoding it once, how many tokens the audio becomes.
        rows: of the batch.
        answers: whether to add answers and `labels`.
    """
    draw = torch.Generator().manual_seed(0)
    audio = {"input_features": torch.randn(rows, 128, subject.frames, generator=draw)}
    if subject.real is not None:
        mask = torch.zeros(rows, subject.frames, dtype=torch.long)
        mask[:, : subject.real] = 1
        audio["input_features_mask"] = mask
    with torch.no_grad():
        vectors = model.get_audio_features(**audio).pooler_output.shape[0] // rows
    text = torch.randint(10, 1000, (rows, PROMPT + (ANSWER if answers else 0)), generator=draw)
    places = torch.full((rows, vectors), model.config.audio_token_id)
    input_ids = torch.cat([text[:, : PROMPT // 2], places, text[:, PROMPT // 2 :]], dim=1)
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **audio}
    if answers:
        batch["labels"] = input_ids.clone()
        batch["labels"][:, :-ANSWER] = IGNORED
    return batch
