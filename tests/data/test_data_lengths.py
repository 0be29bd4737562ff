"""The `length` column: the tokens a row really has, filled by the named processor, read by the trainer."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
from support.tiny_corpus import SOURCE, VOICES, write_recordings
from support.tiny_llaso import tiny_processor

from dataset_scripts.build import build
from dataset_scripts.release_import import import_release
from dataset_scripts.sources.base import Fact, Item, Note
from llaso.cli import main
from modeling_llaso.processing_llaso import LlasoProcessor

SETTINGS = {"voices": VOICES, "rows_per_shard": 10, "eval_rows": 8, "validation_rows": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_processor(audio_padding="trim", projector_stride=2).save_pretrained(folder)
    return folder


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]


def tokens(row: dict, processor: LlasoProcessor) -> int:
    """Tokens of a row as a model gets it, its audio heard."""
    messages = [
        {"role": m["role"], "content": [{k: v for k, v in part.items() if v is not None} for part in m["content"]]}
        for m in row["messages"]
    ]
    clips = [soundfile.read(io.BytesIO(clip["bytes"]), dtype="float32")[0] for clip in row["audio"]]
    inputs = processor.apply_chat_template(messages, audio=clips, tokenize=True, return_dict=True)
    return inputs["input_ids"].shape[-1]


def test_lengths_are_those_of_the_processor(checkpoint: Path, tmp_path: Path):
    from llaso.training.recipe.recipe import DataChoice
    from llaso.training.rows.corpora import open_corpus

    source = SOURCE.at(write_recordings(tmp_path / "tiny", 20), recordings=20, notes=8, questions=4)
    chosen = {**SETTINGS, "processor": str(checkpoint), "clips": tmp_path / "clips"}
    out = build("instruct", [source], tmp_path / "out", workers=2, **chosen)
    processor = LlasoProcessor.from_pretrained(checkpoint)
    rows = rows_of(out)
    assert {row["modality"] for row in rows} == {"text_audio", "audio_text", "audio"}
    assert [row["length"] for row in rows] == [tokens(row, processor) for row in rows]
    assert json.loads((out / "build.json").read_text())["processor"] == str(checkpoint)
    corpus = open_corpus(DataChoice(path=str(out)))
    by_id = {row["id"]: row["length"] for row in rows}
    assert corpus.lengths.tolist() == [by_id[row["id"]] for row in corpus] and len(corpus.lengths)
    without = build("instruct", [source], tmp_path / "without", clips=tmp_path / "clips", **SETTINGS)
    assert {row["length"] for row in rows_of(without)} == {0}
    with pytest.raises(ValueError, match="holds another build"):
        build("instruct", [source], tmp_path / "without", **chosen)


def test_rows_that_the_processor_refuses_are_set_aside(checkpoint: Path, tmp_path: Path):
    def read(root: Path) -> Iterator[Item]:
        for n, answer in enumerate(("fine", "typed <|eot_id|> here")):
            yield Item(f"{n}", (Fact("AQA", answer, modality="text_audio"),), (Note("organ", 60, 75),), split="train")

    source = replace(SOURCE, needs=(), tasks=("AQA",), read=read)
    out = build("instruct", [source], tmp_path / "out", processor=str(checkpoint), **SETTINGS)
    assert [row["target"] for row in rows_of(out)] == ["fine"]
    reject = json.loads((out / "rejects.jsonl").read_text())
    assert reject["where"] == "tiny/1/AQA" and "special token '<|eot_id|>'" in reject["reason"]


def test_processors_that_cannot_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from transformers import WhisperFeatureExtractor

    source = SOURCE.at(write_recordings(tmp_path / "tiny", 1))
    with pytest.raises(ValueError, match="no processor to count lengths with"):
        build("align", [source], tmp_path / "out", processor=str(tmp_path), **SETTINGS)
    WhisperFeatureExtractor(feature_size=16).save_pretrained(tmp_path / "whisper")
    with pytest.raises(ValueError, match="WhisperFeatureExtractor, does not say how long"):
        build("align", [source], tmp_path / "out", processor=str(tmp_path / "whisper"), **SETTINGS)
    assert not (tmp_path / "out").exists()
    (tmp_path / "s.yaml").write_text("sources: {tiny: tiny}\n")
    assert main(["data", "build", "align", "--sources", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 2


def test_imported_rows_are_counted_too(checkpoint: Path, tmp_path: Path):
    write_recordings(tmp_path / "audio", 2)
    turns = [{"from": "human", "value": "What is heard?<audio>"}, {"from": "gpt", "value": "A tone."}]
    released = [{"voice": f"{n:03d}.wav", "conversations": turns} for n in range(2)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "asr.json").write_text(json.dumps(released))
    import_release(tmp_path / "in", tmp_path / "out", audio_root=tmp_path / "audio", processor=str(checkpoint))
    processor = LlasoProcessor.from_pretrained(checkpoint)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 2 and all(row["length"] == tokens(row, processor) for row in rows)
