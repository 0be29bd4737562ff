"""The models that are measured, all of one size, and one batch for each: the same audio, prompt and answer.

`LLaSO, the released way` is our own model, told to do what the released code does: whole windows, and logits of every
position in training and prefill. `4 to 1` pools four encoder vectors into one token; the peers pool as hard or harder,
so they read fewer tokens of the same audio than a model that pools nothing.
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

MELS = 128
FRAMES, WHOLE = 500, 3000
"""Mel frames of five seconds, and of the 30 s window they are padded to."""
IGNORED = -100


@dataclass(frozen=True)
class Size:
    """How large the models and the batch are.

    Args:
        width, layers, heads: of the encoder; its feed-forward layers are four times as wide.
        hidden, intermediate, text_layers, text_heads, kv_heads, vocabulary: of the language model.
        rows: of a batch, each with one audio.
        prompt, answer: tokens of a row's text.
        new_tokens: of an answer that is generated.
    """

    width: int = 384
    layers: int = 4
    heads: int = 6
    hidden: int = 512
    intermediate: int = 1408
    text_layers: int = 8
    text_heads: int = 8
    kv_heads: int = 2
    vocabulary: int = 128_261
    rows: int = 4
    prompt: int = 96
    answer: int = 40
    new_tokens: int = 64


SIZES = {
    "medium": Size(),
    "small": Size(192, 4, 4, 256, 704, 6, 4, 2, vocabulary=32_000),
    "tiny": Size(32, 2, 2, 32, 64, 2, 2, 1, vocabulary=300, rows=2, prompt=8, answer=4, new_tokens=3),
}


def text_config(size: Size) -> dict[str, Any]:
    return LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=None,
    ).to_dict()


def llaso(audio_padding: str, stride: int = 1) -> Callable[[Size], PreTrainedModel]:
    def build(size: Size) -> PreTrainedModel:
        encoder = WhisperConfig(
            num_mel_bins=MELS,
            d_model=size.width,
            encoder_layers=size.layers,
            encoder_attention_heads=size.heads,
            encoder_ffn_dim=4 * size.width,
        )
        return LlasoForConditionalGeneration(
            LlasoConfig(
                audio_config=encoder.to_dict(),
                text_config=text_config(size),
                audio_token_id=size.vocabulary,
                audio_padding=audio_padding,
                projector_stride=stride,
            )
        )

    return build


def peer(model_class: type[PreTrainedModel], config_class: type, encoder: str) -> Callable[[Size], PreTrainedModel]:
    def build(size: Size) -> PreTrainedModel:
        audio = {
            "model_type": encoder,
            "num_mel_bins": MELS,
            "hidden_size": size.width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "intermediate_size": 4 * size.width,
        }
        config = config_class(audio_config=audio, text_config=text_config(size), audio_token_id=size.vocabulary - 1)
        config.tie_word_embeddings = True
        return model_class(config)

    return build


@dataclass(frozen=True)
class Subject:
    """One line of the table.

    Args:
        build: makes the model, untrained.
        frames: mel frames its processor gives it for five seconds of audio.
        real: how many of them its mask calls real; None if it takes no mask.
        peer: whether it is one of transformers' own.
        every_logit: whether prompt and audio get logits too, in training and prefill.
    """

    build: Callable[[Size], PreTrainedModel]
    frames: int
    real: int | None
    peer: bool = False
    every_logit: bool = False


RELEASED_WAY = "LLaSO, the released way"
SUBJECTS = {
    RELEASED_WAY: Subject(llaso("full"), WHOLE, WHOLE, every_logit=True),
    "LLaSO full": Subject(llaso("full"), WHOLE, WHOLE),
    "LLaSO trim": Subject(llaso("trim"), FRAMES, FRAMES),
    "LLaSO full, 4 to 1": Subject(llaso("full", stride=4), WHOLE, WHOLE),
    "LLaSO trim, 4 to 1": Subject(llaso("trim", stride=4), FRAMES, FRAMES),
    "AudioFlamingo3": Subject(
        peer(AudioFlamingo3ForConditionalGeneration, AudioFlamingo3Config, "audioflamingo3_encoder"),
        WHOLE,
        FRAMES,
        peer=True,
    ),
    "GLM-ASR": Subject(peer(GlmAsrForConditionalGeneration, GlmAsrConfig, "glmasr_encoder"), WHOLE, FRAMES, peer=True),
    "Voxtral": Subject(
        peer(VoxtralForConditionalGeneration, VoxtralConfig, "voxtral_encoder"), WHOLE, None, peer=True
    ),
}
PEERS = tuple(name for name, subject in SUBJECTS.items() if subject.peer)


def batch_of(
    subject: Subject, model: PreTrainedModel, size: Size, rows: int, answers: bool
) -> dict[str, torch.Tensor]:
    """Return the prompt with the audio in its middle, and the answer if it is trained on.

    Args:
        subject: says how the audio comes.
        model: tells, by encoding one row, how many tokens the audio becomes.
        size: of the batch's texts.
        rows: of the batch.
        answers: whether to add answers and `labels`.
    """
    draw = torch.Generator().manual_seed(0)
    audio = {"input_features": torch.randn(rows, MELS, subject.frames, generator=draw)}
    if subject.real is not None:
        audio["input_features_mask"] = (torch.arange(subject.frames) < subject.real).long().repeat(rows, 1)
    with torch.no_grad():
        vectors = len(model.get_audio_features(**{name: part[:1] for name, part in audio.items()}).pooler_output)
    text = torch.randint(10, 250, (rows, size.prompt + (size.answer if answers else 0)), generator=draw)
    places = torch.full((rows, vectors), model.config.audio_token_id)
    input_ids = torch.cat([text[:, : size.prompt // 2], places, text[:, size.prompt // 2 :]], dim=1)
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **audio}
    if answers:
        batch["labels"] = input_ids.clone()
        batch["labels"][:, : -size.answer] = IGNORED
    return batch
