"""Tiny Whispers, language models and LLaSOs for the model tests: real classes, real files, a few thousand weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from modeling_llaso.configuration_llaso import LlasoConfig
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import AUDIO_TAGS, LlasoProcessor, add_audio_tokens

RATE = 16_000
FAMILIES = {
    # model_type: (begin of text, end of text, turn marks)
    "llama": ("<|begin_of_text|>", "<|end_of_text|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "qwen2": (None, "<|endoftext|>", ("<|im_start|>", "<|im_end|>")),
    "qwen3": (None, "<|endoftext|>", ("<|im_start|>", "<|im_end|>")),
    "mistral": ("<s>", "</s>", ("[INST]", "[/INST]")),
    "gemma2": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "gemma3_text": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
}


def tone(seconds: float, pitch: float = 220.0, seed: int = 0) -> np.ndarray:
    """Return a noisy tone at 16 kHz, mono."""
    samples = round(seconds * RATE)
    noise = np.random.default_rng(seed).normal(0, 0.02, samples)
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(samples) / RATE) + noise).astype(np.float32)


def tiny_tokenizer(family: str = "llama") -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a family's special tokens; it prepends the family's begin of text, if any."""
    begin, end, marks = FAMILIES[family]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([token for token in (begin, end, *marks) if token])
    if begin:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, inner.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=begin, eos_token=end)


def whisper_config(**overrides) -> WhisperConfig:
    fields = {
        "vocab_size": 50,
        "num_mel_bins": 16,
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "max_target_positions": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    return WhisperConfig(**{**fields, **overrides})


def text_config(family: str = "llama", vocab_size: int = 270, **overrides):
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": None,
    }
    return AutoConfig.for_model(family, **{**fields, **overrides})


def tiny_processor(
    family: str = "llama", vocab_size: int | None = None, rows_are_fixed: bool = False, **settings
) -> LlasoProcessor:
    """Return a processor of a tokenizer with so many tokens before the placeholder; by default as few as can be."""
    tokenizer = tiny_tokenizer(family)
    if vocab_size is not None:
        begun = len(tokenizer) + (tokenizer.pad_token is None) + len(AUDIO_TAGS)
        tokenizer.add_tokens([f"[filler {number}]" for number in range(begun, vocab_size)])
    add_audio_tokens(tokenizer, rows_are_fixed)
    return LlasoProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer, **settings)


def tiny_llaso(
    audio_padding: str = "trim", family: str = "llama", seed: int = 0, **settings
) -> tuple[LlasoForConditionalGeneration, LlasoProcessor]:
    """Return a model with weights large enough that differences show, and its processor."""
    stride = settings.get("projector_stride", 1)
    processor = tiny_processor(family, audio_padding=audio_padding, projector_stride=stride)
    config = LlasoConfig(
        audio_config=whisper_config().to_dict(),
        text_config=text_config(family, vocab_size=processor.audio_token_id).to_dict(),
        audio_token_id=processor.audio_token_id,
        audio_padding=audio_padding,
        **settings,
    )
    return with_drawn_weights(config, processor, seed), processor


def with_drawn_weights(config: LlasoConfig, processor: LlasoProcessor, seed: int = 0) -> LlasoForConditionalGeneration:
    """Return a model with weights large enough that differences show, whose answers do not end by themselves."""
    torch.manual_seed(seed)
    model = LlasoForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                parameter.normal_(0, 0.2)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = None
    return model


def aligned_llaso() -> tuple[LlasoForConditionalGeneration, LlasoProcessor]:
    """Return a model whose audio may say the letters a to h and spaces, and whose answers end; and its processor."""
    model, processor = tiny_llaso("trim", seed=3)
    letters = processor.tokenizer("abcdefgh ", add_special_tokens=False)["input_ids"]
    blank = processor.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    competing = sorted([*letters, blank])
    model.config.ctc_alignment = {"token_ids": competing, "blank_id": blank, "merges": None, "scale": 2.0}
    model.generation_config.eos_token_id = 257
    return model, processor


def save_parts(folder: Path, family: str = "llama", spare_rows: int = 0, **overrides) -> tuple[Path, Path]:
    """Save a Whisper and a language model with its tokenizer as their own folders."""
    torch.manual_seed(0)
    encoder, llm = folder / "encoder", folder / family
    WhisperModel(whisper_config()).save_pretrained(encoder)
    WhisperFeatureExtractor(feature_size=16).save_pretrained(encoder)
    tokenizer = tiny_tokenizer(family)
    tokenizer.save_pretrained(llm)
    AutoModelForCausalLM.from_config(
        text_config(family, vocab_size=len(tokenizer) + spare_rows, **overrides)
    ).save_pretrained(llm)
    return encoder, llm


def question(text: str, clips: int = 1) -> list[dict]:
    """Return one user message: text, then so many audios."""
    return [{"role": "user", "content": [{"type": "text", "text": text}, *({"type": "audio"} for _ in range(clips))]}]


def answer_only(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return arguments of the forward pass that ask for logits at the positions that predict a label only."""
    shift_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    is_answer = shift_labels != -100
    return {"logits_to_keep": is_answer, "shift_labels": shift_labels[is_answer]}


def ask(processor: LlasoProcessor, conversations, audio, **kwargs):
    """Return generation inputs for a batch of conversations and the audio they ask about."""
    return processor.apply_chat_template(
        conversations, audio=audio, tokenize=True, return_dict=True, add_generation_prompt=True, **kwargs
    )
