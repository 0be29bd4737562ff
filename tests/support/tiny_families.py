"""Tiny models of each language-model family that the export knows, with tokenizers that split text as the family's do.

Each tokenizer is a BPE trained on a few sentences; each model has random weights, large enough that differences show.
"""

from __future__ import annotations

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

from llaso.exporting.gguf_vocabulary import LLAMA_3_PATTERN, QWEN_2_PATTERN, TEKKEN_PATTERN
from modeling_llaso.configuration_llaso import LlasoConfig
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import SYSTEM_PROMPT, LlasoProcessor, add_audio_tokens
from support.tiny_llaso import ask, question, text_config, whisper_config

LLAMA_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    # family: (model_type, begin of text, end of text, turn marks)
    "llama3": ("llama", "<|begin_of_text|>", "<|end_of_text|>", LLAMA_MARKS),
    "smollm2": ("llama", None, "<|endoftext|>", CHATML_MARKS),
    "qwen2": ("qwen2", None, "<|endoftext|>", CHATML_MARKS),
    "qwen3": ("qwen3", None, "<|endoftext|>", CHATML_MARKS),
    "mistral": ("mistral", "<s>", "</s>", ("[INST]", "[/INST]")),
}
SENTENCES = [
    SYSTEM_PROMPT,
    "Transcribe the spoken words from the following audio clip.",
    "What is said? It's the 21st of 2026, isn't it: 12345 + 678 = 13023!",
    "Der Zug fährt über die Brücke. Où est la gare? ¿Dónde está? Чей это голос? 这是谁的声音？ 音声です。",
    "user assistant system\n\nlines,\n\ttabs   and  blanks \r\n don't WE'LL they've HTTPServer iPhone",
]
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A BPE trained on `SENTENCES` with a family's pre-tokenizer and special tokens."""
    _, begin, end, marks = FAMILIES[family]
    inner = Tokenizer(models.BPE(ignore_merges=family == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family == "smollm2")
    pattern = {"llama3": LLAMA_3_PATTERN, "mistral": TEKKEN_PATTERN}.get(family, QWEN_2_PATTERN)
    first = (
        pre_tokenizers.Digits(individual_digits=True)
        if family == "smollm2"
        else pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    if family.startswith("qwen"):
        inner.normalizer = normalizers.NFC()
    inner.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in (begin, end, *marks) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special,
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES * 3, trainer)
    if begin:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, inner.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=begin, eos_token=end)


def family_llaso(
    family: str, *, spare_rows: int = 0, seed: int = 0, text: dict | None = None, **settings
) -> tuple[LlasoForConditionalGeneration, LlasoProcessor]:
    """A model of a family and its processor, both in `full` unless told otherwise.

    Args:
        family: a key of `FAMILIES`.
        spare_rows: rows of the embeddings beyond the last token; with some, the placeholder has a row.
        seed: of the weights.
        text: fields of the language model's configuration.
        **settings: of `LlasoConfig`.
    """
    tokenizer = family_tokenizer(family)
    add_audio_tokens(tokenizer)
    settings = {"audio_padding": "full", "projector_stride": 50, **settings}
    processor = LlasoProcessor(
        WhisperFeatureExtractor(),
        tokenizer,
        audio_padding=settings["audio_padding"],
        projector_stride=settings["projector_stride"],
    )
    model_type, _, end, marks = FAMILIES[family]
    fields = {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "tie_word_embeddings": family != "mistral",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "eos_token_id": tokenizer.convert_tokens_to_ids(end), "bos_token_id": None,
    }  # fmt: skip
    if family == "qwen2":
        fields["head_dim"] = 16  # its class derives it
    if family == "qwen3":
        fields["head_dim"] = 128  # the only one that transformers' reader of GGUF expects of it
    if family == "llama3":
        fields["rope_parameters"] = LLAMA_3_ROPE
    if family == "mistral":
        fields["sliding_window"] = None
    rows = processor.audio_token_id + spare_rows
    config = LlasoConfig(
        audio_config=whisper_config(d_model=64, encoder_ffn_dim=96, num_mel_bins=80).to_dict(),
        text_config=text_config(model_type, vocab_size=rows, **(fields | (text or {}))).to_dict(),
        audio_token_id=processor.audio_token_id,
        **settings,
    )
    torch.manual_seed(seed)
    model = LlasoForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(0, 0.1)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    close = marks[-1] if family != "mistral" else end
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(token) for token in {end: 0, close: 0}]
    return model, processor


@torch.no_grad()
def raise_placeholder(model: LlasoForConditionalGeneration, processor: LlasoProcessor, text: str, clip) -> None:
    """Give the placeholder, which has a row, the largest logit of the answer's first token to a question."""
    inputs = ask(processor, question(text), [clip])
    inputs.pop("num_audio_tokens", None)
    state = model.model(**inputs).last_hidden_state[0, -1]
    model.lm_head.weight[processor.audio_token_id] = 50 * state / state.norm()
