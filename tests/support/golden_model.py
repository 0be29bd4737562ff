"""A checkpoint in the released format, recordings and questions, drawn from a seed, and what a model makes of them.

`tests/model/golden/make_golden.py` writes down what our model makes of them; `tests/model/test_golden_numerics.py`
compares. The checkpoint is written by hand, not by `to_official`, so that a mistake in both directions of the
conversion shows.

Every number is drawn from `numpy.random.RandomState`, whose streams numpy promises never to change, and is uniform:
no logarithm or sine, which may differ in the last bit from one machine to the next.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from llaso_common.audio import read_audio

MELS, WIDTH, FEED_FORWARD, ENCODER_LAYERS, ENCODER_HEADS, POSITIONS = 128, 32, 64, 2, 4, 1500
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KEY_VALUE_HEADS = 48, 96, 2, 4, 2
LLAMA_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
RELEASED_SPECIALS = ("<unk>", "<Audio>", "</Audio>", "<audio_start>", "<audio_end>")
"""The tokens that the released code adds, in its order."""
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = {token: number for number, token in enumerate((*ALPHABET, *LLAMA_SPECIALS, *RELEASED_SPECIALS))}
NEW_TOKENS = 8
"""Greedy tokens of each answer."""

RECORDINGS: dict[str, tuple[float, int, int]] = {
    # seconds, sampling rate, channels
    "short": (3.0, 16_000, 1),
    "other": (1.7, 22_050, 1),
    "stereo": (2.2, 44_100, 2),
    "long": (45.0, 16_000, 1),  # two windows, one sample lost between them
}
CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    # the question with its recordings' places, the recordings, the answer
    "text then audio": ("Transcribe the audio.<audio>", ("short",), "After his nap"),
    "audio then text": ("<audio>Who is speaking?\n\nAnswer in a word.", ("other",), "Timothy."),
    "audio alone": ("<audio>", ("stereo",), "Calendar set"),
    "two windows": ("  What is meant here?<audio> ", ("long",), " Joy.\n"),
    "two recordings": ("<audio><audio>Is it the same speaker?", ("short", "other"), "No."),
}
BATCH = ("text then audio", "audio then text")
"""The rows of the training batch."""


def _drawn(name: str, *shape: int) -> np.ndarray:
    """Return numbers between -1 and 1 that depend on their name and shape alone."""
    return np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape) * 2 - 1


# ---- The checkpoint ----


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of the released format's tensors. The head is tied, so it is not among them."""
    tower = "model.audio_tower.audio_tower"
    yield from {f"{tower}.conv1.weight": (WIDTH, MELS, 3), f"{tower}.conv1.bias": (WIDTH,)}.items()
    yield from {f"{tower}.conv2.weight": (WIDTH, WIDTH, 3), f"{tower}.conv2.bias": (WIDTH,)}.items()
    yield f"{tower}.embed_positions.weight", (POSITIONS, WIDTH)
    for layer in range(ENCODER_LAYERS):
        here = f"{tower}.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{here}.self_attn.{projection}.weight", (WIDTH, WIDTH)
            if projection != "k_proj":  # Whisper's keys have no bias
                yield f"{here}.self_attn.{projection}.bias", (WIDTH,)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            yield from {f"{here}.{norm}.weight": (WIDTH,), f"{here}.{norm}.bias": (WIDTH,)}.items()
        yield from {f"{here}.fc1.weight": (FEED_FORWARD, WIDTH), f"{here}.fc1.bias": (FEED_FORWARD,)}.items()
        yield from {f"{here}.fc2.weight": (WIDTH, FEED_FORWARD), f"{here}.fc2.bias": (WIDTH,)}.items()
    yield from {f"{tower}.layer_norm.weight": (WIDTH,), f"{tower}.layer_norm.bias": (WIDTH,)}.items()
    aligner = "model.mm_audio_aligner.projector"
    yield from {f"{aligner}.0.weight": (HIDDEN, WIDTH), f"{aligner}.0.bias": (HIDDEN,)}.items()
    yield from {f"{aligner}.2.weight": (HIDDEN, HIDDEN), f"{aligner}.2.bias": (HIDDEN,)}.items()
    yield "model.embed_tokens.weight", (len(TOKENS), HIDDEN)
    grouped = HIDDEN // HEADS * KEY_VALUE_HEADS
    for layer in range(LAYERS):
        here = f"model.layers.{layer}"
        for name, rows in (("q_proj", HIDDEN), ("k_proj", grouped), ("v_proj", grouped), ("o_proj", HIDDEN)):
            yield f"{here}.self_attn.{name}.weight", (rows, HIDDEN)
        yield f"{here}.mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{here}.mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{here}.mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
        yield from {f"{here}.input_layernorm.weight": (HIDDEN,)}.items()
        yield from {f"{here}.post_attention_layernorm.weight": (HIDDEN,)}.items()
    yield "model.norm.weight", (HIDDEN,)


def weights() -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors: matrices that keep the size of their inputs, norms around 1, small biases."""
    tensors = {}
    for name, shape in _shapes():
        numbers = _drawn(name, *shape)
        if name.endswith("norm.weight"):
            numbers = 1 + 0.2 * numbers
        elif len(shape) == 1:
            numbers = 0.2 * numbers
        elif "embed" in name:
            numbers = 0.5 * numbers
        else:
            numbers = numbers * (3 / np.prod(shape[1:])) ** 0.5  # a variance of 1 / inputs
        tensors[name] = torch.from_numpy(numbers.astype(np.float32))
    return tensors


def _tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer that prepends one begin of text, as Llama's does."""
    tokenizer = Tokenizer(models.BPE(vocab={letter: TOKENS[letter] for letter in ALPHABET}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = (*LLAMA_SPECIALS, *RELEASED_SPECIALS)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    begin = LLAMA_SPECIALS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, TOKENS[begin])]
    )
    return tokenizer


def write_checkpoint(folder: Path) -> Path:
    """Write the checkpoint in the released format, with the encoder's folder inside; return `folder`."""
    encoder = folder / "whisper"
    encoder.mkdir(parents=True)
    save_file(weights(), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer().save(str(folder / "tokenizer.json"))
    configurations: dict[Path, dict[str, Any]] = {
        folder / "config.json": {
            "architectures": ["LlavaLlamaForCausalLM"],
            "model_type": "llava_llama",
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "max_position_embeddings": 131_072,
            "tie_word_embeddings": True,
            "vocab_size": len(TOKENS),
            "bos_token_id": TOKENS["<|begin_of_text|>"],
            "eos_token_id": [TOKENS["<|end_of_text|>"], TOKENS["<|eot_id|>"]],
            "torch_dtype": "float32",
            "audio_projector_type": "mlp2x_gelu",
            "mm_audio_hidden_size": WIDTH,
            "mm_audio_select_feature": "patch",
            "mm_audio_select_layer": -1,
            "mm_audio_tower": "whisper",
            "use_mm_proj": True,
        },
        folder / "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<unk>",
            "unk_token": "<unk>",
            "model_max_length": 2048,
            "padding_side": "right",
        },
        encoder / "config.json": {
            "architectures": ["WhisperModel"],
            "model_type": "whisper",
            "d_model": WIDTH,
            "num_mel_bins": MELS,
            "encoder_layers": ENCODER_LAYERS,
            "encoder_attention_heads": ENCODER_HEADS,
            "encoder_ffn_dim": FEED_FORWARD,
            "max_source_positions": POSITIONS,
            "decoder_layers": 1,
            "decoder_attention_heads": ENCODER_HEADS,
            "decoder_ffn_dim": FEED_FORWARD,
            "activation_function": "gelu",
        },
        encoder / "preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": MELS,
            "sampling_rate": 16_000,
            "hop_length": 160,
            "n_fft": 400,
            "chunk_length": 30,
            "padding_value": 0.0,
            "return_attention_mask": False,
        },
    }
    for file, fields in configurations.items():
        file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return folder


# ---- Recordings and questions ----


def write_recordings(folder: Path) -> Path:
    """Write the recordings as 16-bit WAV, sawtooth tones and noise; return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (duration, rate, channels) in RECORDINGS.items():
        samples = round(duration * rate)
        syllables = samples * 5 // rate + 1  # one every 200 ms
        heights = (100 + 100 * (1 + _drawn(f"{name} heights", syllables))).repeat(rate // 5)[:samples]
        loudness = (0.25 + 0.2 * _drawn(f"{name} loudness", syllables)).repeat(rate // 5)[:samples]
        tone = loudness * (2 * ((heights * np.arange(samples) / rate) % 1) - 1)
        noise = 0.05 * _drawn(f"{name} noise", samples, channels)
        soundfile.write(folder / f"{name}.wav", tone[:, None] + noise, rate, subtype="PCM_16")
    return folder


def conversation(case: str, answered: bool) -> list[dict[str, Any]]:
    """Return a case as messages, with its answer or without."""
    question, _, answer = CASES[case]
    content: list[dict[str, str]] = []
    for number, text in enumerate(question.split("<audio>")):
        content += [{"type": "audio"}] if number else []
        content += [{"type": "text", "text": text}] if text else []
    messages = [{"role": "user", "content": content}]
    return messages + ([{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answered else [])


# ---- The model's outputs ----


def read_recordings(folder: Path) -> dict[str, np.ndarray]:
    """Read the recordings as the model's samples, by name."""
    return {name: read_audio(folder / f"{name}.wav") for name in RECORDINGS}


def measure_question(model, processor, clips, case: str) -> tuple[dict[str, torch.Tensor], Any]:
    """Record the model's outputs for a case's question, before it answers.

    Args:
        model: a LLaSO in float32 on the CPU.
        processor: its processor.
        clips: the samples of `read_recordings`.
        case: a key of `CASES`.

    Returns:
        Mel frames, projected vectors and logits, of which every so many are kept; and the model's inputs.
    """
    inputs = processor.apply_chat_template(
        [conversation(case, answered=False)],
        audio=[clips[name] for name in CASES[case][1]],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )
    with torch.no_grad():
        outputs = model(**inputs)
    windows, _ = model.model.cut_windows(inputs["input_features"], inputs["input_features_mask"])
    at_text = (inputs["input_ids"][0] != processor.audio_token_id).nonzero().flatten()
    return {
        "mel": windows[:, :, ::100].clone(),
        "projected": outputs.audio_hidden_states[::100].clone(),
        "logits": outputs.logits[0, at_text[-40::4]].clone(),
    }, inputs


def measure_answer(model, processor, clips, case: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Record what `measure_question` does, and the answer: its logits and ids, and the prompt's texts and ids."""
    tensors, inputs = measure_question(model, processor, clips, case)
    generated = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    answer = generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return tensors | {"generated logits": torch.cat(generated.logits)}, {
        "prompt": processor.apply_chat_template(conversation(case, answered=False), add_generation_prompt=True),
        "ids": _runs(inputs["input_ids"][0].tolist()),
        "windows": list(model.model.cut_windows(inputs["input_features"])[0].shape),
        "generated": answer,
        "decoded": processor.decode(answer, skip_special_tokens=True).strip(),
    }


def measure_training(model, processor, clips) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Record one batch of two rows: the logits that predict its labels, the labels, losses and gradient norms."""
    inputs = processor.apply_chat_template(
        [conversation(case, answered=True) for case in BATCH],
        audio=[clips[name] for case in BATCH for name in CASES[case][1]],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding_side": "right"},
    )
    labels = torch.where(inputs.pop("assistant_masks").bool(), inputs["input_ids"], -100)
    with torch.no_grad():
        logits = model(**inputs).logits
    predicting = labels.roll(-1, dims=1) != -100
    tensors = {"logits": logits[predicting]}
    found: dict[str, Any] = {"labels": [_runs(row) for row in labels.tolist()]}
    for stage, parts in ((1, ("multi_modal_projector",)), (2, ("multi_modal_projector", "language_model"))):
        model.requires_grad_(False)
        for part in parts:
            getattr(model.model, part).requires_grad_(True)
        model.train()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
        found[f"stage {stage}"] = {"loss": loss.item(), "gradient norms": norms}
        model.zero_grad(set_to_none=True)
        model.eval()
    return tensors, found


def _runs(ids: list[int]) -> list[list[int]]:
    """Return ids as [id, how often in a row], since audio tokens and ignored labels come by the thousand."""
    runs: list[list[int]] = []
    for number in ids:
        if runs and runs[-1][0] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return runs
