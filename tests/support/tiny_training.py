"""A tiny model and a tiny corpus for the training tests: real classes and real files, a few thousand parameters.

Words are tones, so that a projector and a small LLM can learn to read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from datasets import Audio, Features, List, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from llaso.training.run.history import History

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
MARKS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FEATURES = Features(
    {
        "id": Value("string"),
        "task": Value("string"),
        "modality": Value("string"),
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "audio": List(Audio(sampling_rate=16_000, decode=False)),
        "target": Value("string"),
        "duration": Value("float64"),
        "length": Value("int32"),
    }
)


def save_backbones(folder: Path, hidden: int = 32, layers: int = 2, encoder_layers: int = 1) -> tuple[Path, Path]:
    """Save a Whisper-architecture encoder and a Llama with Llama 3's turn marks, as folders."""
    torch.manual_seed(0)
    encoder, llm = folder / "encoder", folder / "llm"
    WhisperModel(
        WhisperConfig(
            vocab_size=64,
            num_mel_bins=16,
            d_model=24,
            encoder_layers=encoder_layers,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_source_positions=1500,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    ).save_pretrained(encoder)
    WhisperFeatureExtractor(feature_size=16).save_pretrained(encoder)

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    text = [*WORDS, "Transcribe the spoken words.", "How many words are said?", "user assistant system"]
    bpe.train_from_iterator(
        text * 20, trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=MARKS[0], eos_token=MARKS[4])
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    tokenizer.save_pretrained(llm)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(llm)
    return encoder, llm


def tones(words: list[str], random: np.random.Generator) -> bytes:
    """Return a FLAC clip in which every word is a tone of its own pitch."""
    pieces = []
    for word in words:
        seconds = np.arange(int(16_000 * random.uniform(0.10, 0.16))) / 16_000
        pieces.append(0.5 * np.sin(2 * np.pi * 220 * 1.4 ** WORDS.index(word) * seconds))
    samples = np.concatenate(pieces) + 0.002 * random.standard_normal(sum(map(len, pieces)))
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), 16_000, format="FLAC")
    return file.getvalue()


def row(number: int, seed: int = 0, task: str = "ASR", clips: int = 1) -> dict[str, Any]:
    """Return one row of the schema, a function of its number alone."""
    random = np.random.default_rng([seed, number])
    said = [[str(random.choice(WORDS)) for _ in range(int(random.integers(1, 9)))] for _ in range(clips)]
    contents = [tones(words, random) for words in said]
    words = [word for clip in said for word in clip]
    instruction, target = {
        "ASR": ("Transcribe the spoken words.", " ".join(words)),
        "IP": ("How many words are said?", str(len(words))),
        "AQA": ("Say the word six.", "six"),
    }[task]
    audio_parts = [{"type": "audio", "text": None} for _ in range(clips)]
    durations = [soundfile.info(io.BytesIO(content)).duration for content in contents]
    return {
        "id": f"{task.lower()}-{seed}-{number:04}",
        "task": task,
        "modality": "text_audio",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": instruction}, *audio_parts]},
            {"role": "assistant", "content": [{"type": "text", "text": target}]},
        ],
        "audio": [{"bytes": content, "path": f"{number}-{k}.flac"} for k, content in enumerate(contents)],
        "target": target,
        "duration": sum(durations),
        "length": 0,
    }


def save_corpus(folder: Path, rows: dict[str, list[dict[str, Any]]], group: int = 7) -> Path:
    """Save rows by split, as a corpus folder that `load_dataset` reads, in row groups of `group` rows.

    There is a column `speaker` if any row has one.
    """
    (folder / "data").mkdir(parents=True)
    told = any("speaker" in one for of_split in rows.values() for one in of_split)
    features = Features(FEATURES | {"speaker": Value("string")}) if told else FEATURES
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, of_split in rows.items():
        table = pa.Table.from_pylist(of_split, schema=features.arrow_schema)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet", row_group_size=group)
        lines += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return folder


def tiny_recipe(root: Path, out: str, **changes: Any) -> dict[str, Any]:
    """Return a Stage-1 recipe over the tiny backbones and corpus below `root`; `changes` have `__` for dots."""
    recipe: dict[str, Any] = {
        "model": {"encoder": str(root / "encoder"), "llm": str(root / "llm"), "audio_padding": "trim"},
        "train": ["projector"],
        "data": {"path": str(root / "corpus")},
        "batch": {"per_device": 4, "accumulation": 2, "window": 4},
        "optimizer": {"learning_rate": 3e-3, "max_steps": 6, "warmup_ratio": 0.1},
        "compute": {"precision": "fp32"},
        "watch": {"log_every": 1, "save_every": 2, "evaluate_rows": 2, "final_rows": 4, "reporters": ["none"]},
        "out": str(root / out),
        "seed": 7,
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            recipe.setdefault(section, {})[key] = value
        else:
            recipe[section] = value
    return recipe


@contextlib.contextmanager
def interrupted_after(step: int) -> Iterator[None]:
    """Interrupt a training run in this block as soon as it has recorded a step, and expect that it ends with that."""
    add = History.add

    def then_interrupt(self: History, record: dict[str, Any]) -> None:
        add(self, record)
        if record["kind"] == "step" and record["step"] == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(History, "add", then_interrupt)
        yield


def curve(out: Path) -> list[tuple[Any, ...]]:
    """Return what a run's history says of every step that must not depend on kills or workers."""
    records = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"], r["grad_norm"], r["rows"]) for r in records if r["kind"] == "step"]


def weights_digest(out: Path) -> str:
    """Digest the finished model's weights."""
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
