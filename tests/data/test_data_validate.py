"""Validation: every fault a row can have, what rows may not share, and a corpus that stays whole whatever happens."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_corpus import DYING, SOURCE, VOICES, read, write_recordings

from dataset_scripts import validate as validation
from dataset_scripts.build import build
from dataset_scripts.checks import faults_of
from dataset_scripts.validate import _each
from llaso.cli import main
from llaso_common.folder_lock import FolderBusy
from llaso_common.schema import FEATURES

SETTINGS = {"voices": VOICES, "rows_per_shard": 20, "eval_rows": 30, "validation_rows": 10}


def validate(folder: Path, *, set_aside: bool = True, **options: Any) -> dict[str, Any]:
    """Check a corpus and, unless told otherwise, take its bad rows out."""
    return validation.validate(folder, set_aside=set_aside, **options)


def encoded(samples: np.ndarray, form: str, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form)
    return buffer.getvalue()


def flac(samples: np.ndarray, rate: int = 16_000) -> bytes:
    return encoded(samples, "FLAC", rate)


TONE = 0.3 * np.sin(np.arange(16_000) * 0.1)
SQUARE = np.sign(TONE)


def good_row(id: str = "tiny/rec-1/SGC", clip: bytes | None = None, **changes) -> dict:
    """A row without a fault, one second long; a clip given comes with its hash."""
    clip = flac(TONE) if clip is None else clip
    asked = [{"type": "text", "text": "Who speaks, female or male?"}, {"type": "audio", "text": None}]
    row = {
        "id": id,
        "corpus": "instruct",
        "task": "SGC",
        "category": "paralinguistic",
        "modality": "text_audio",
        "source": "tiny",
        "split": "train",
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": "male"}]},
        ],
        "audio": [{"bytes": clip, "path": "a.flac"}],
        "target": "male",
        "choices": ["female", "male"],
        "template_id": "SGC/01",
        "style": "standardised",
        "voice": "",
        "speaker": "",
        "duration": 1.0,
        "length": 0,
        "license": "CC0-1.0",
        "sha256": sha256(clip).hexdigest(),
    }
    return {**row, **changes}


def answered(target: str, prompt: str = "What?", audio: int = 1) -> dict:
    """Messages and target."""
    asked = [{"type": "text", "text": prompt}, *[{"type": "audio", "text": None}] * audio]
    return {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": target}]},
        ],
        "target": target,
    }


def with_clip(data: bytes, seconds: float = 1.0) -> dict:
    return {"audio": [{"bytes": data, "path": "x"}], "sha256": sha256(data).hexdigest(), "duration": seconds}


def promising(clip: bytes, samples: int) -> bytes:
    """A FLAC file whose header (36 bits from byte 21) promises other samples than follow."""
    bits = int.from_bytes(clip[18:26], "big") >> 36 << 36 | samples
    return clip[:18] + bits.to_bytes(8, "big") + clip[26:]


NUMBER = {"task": "PP", "choices": [], "template_id": "PP/01"}
BLANK = {"role": "user", "content": [{"type": "text", "text": " "}]}
BREAKS = {
    "missing value: target": {"target": None},
    "missing value: messages": {"messages": [None]},
    "missing value: messages.content": {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
    "missing value: audio": {"audio": [None]},
    "missing value: choices": {"choices": ["male", None]},
    "missing value: duration": {"duration": None},
    "unknown task: 'XYZ'": {"task": "XYZ"},
    "unknown modality: 'video'": {"modality": "video"},
    "unknown split: 'dev'": {"split": "dev"},
    "category: SGC is paralinguistic, not 'semantic'": {"category": "semantic"},
    "unknown source: 'other'": {"source": "other"},
    "licence: 'MIT' is not that of tiny": {"license": "MIT"},
    "in the wrong file: text_audio, test, paralinguistic": {"split": "test"},
    "unknown role: 'robot'": {"messages": [{"role": "robot", "content": BLANK["content"] * 0 + [
        {"type": "audio", "text": None}]}, good_row()["messages"][1]]},
    "empty text": {"messages": [good_row()["messages"][0], BLANK, good_row()["messages"][1]]},
    "unknown part: 'image'": {"messages": [{"role": "user", "content": [
        {"type": "image", "text": None}, {"type": "audio", "text": None}, {"type": "text", "text": "?"}]},
        good_row()["messages"][1]]},
    "text holds <audio>": answered("male", "Who is <audio>?"),
    "audio count: 2 placeholders for 1 clips": answered("male", audio=2),
    "target is not the last answer": {"target": "female"},
    "target not among choices: 'either'": answered("either"),
    "no choices for a closed set": {"choices": []},
    "target not a number from 0 to 127: '128'": {**NUMBER, **answered("128")},
    "target not a number from 18 to 80: 'old'": {"task": "AR", "choices": [], **answered("old")},
    "no audio: a.flac": {"audio": [{"bytes": None, "path": "a.flac"}]},
    "undecodable audio: ": with_clip(b"fLaC broken"),
    "undecodable audio: not readable as audio: Error : flac decoder lost sync": with_clip(flac(TONE)[:-6000]),
    "undecodable audio: the file is cut off: the last 1.00 of 2.00 s": with_clip(promising(flac(TONE), 32_000)),
    "undecodable audio: the file is cut off": with_clip(encoded(TONE, "WAV")[:-6000]),
    "audio format: 8000 Hz, 1 channels": with_clip(flac(TONE, 8_000), 2.0),
    "audio format: 16000 Hz, 2 channels": with_clip(flac(np.stack([TONE, TONE], axis=1))),
    "silent audio": with_clip(flac(0 * TONE)),
    "clipped audio": with_clip(flac(SQUARE)),
    "duration: 99.0 s stated, 1.000 s heard": {"duration": 99.0},
    "duration: nan s stated": {"duration": float("nan")},
    "sha256: not that of the audio": {"sha256": "0" * 64},
}  # fmt: skip


@pytest.mark.parametrize("fault", BREAKS)
def test_a_row_that_breaks_one_thing(fault: str):
    """And no other: a good row has no fault."""
    sources = {"tiny": {"license": "CC0-1.0"}}
    shard = "text_audio.train-paralinguistic-00000-of-00001"
    assert list(faults_of(good_row(), shard=shard, sources=sources)) == []
    row = good_row(**BREAKS[fault])
    found = list(faults_of(row, shard=shard if "wrong file" in fault else "", sources=sources))
    assert any(one.startswith(fault) for one in found), found
    assert len(found) == 1 + fault.startswith("duration: nan"), found  # which is not what is heard, either


def test_an_empty_target_is_a_fault():
    assert list(faults_of(good_row(choices=[], template_id="", **answered(" ")))) == ["empty text", "empty target"]


def test_audio_in_a_manifest_is_a_fault():
    """A manifest is published without asking whether audio may be: there must be none."""
    assert list(faults_of(good_row(), manifest=True)) == ["audio in a manifest: a.flac"]
    assert list(faults_of(good_row(audio=[{"bytes": None, "path": "a.flac"}]), manifest=True)) == []


def test_a_header_that_promises_too_much_fills_no_memory():
    """A FLAC header may promise 2^36 samples: 256 GiB as floats."""
    row = good_row(**with_clip(promising(flac(TONE), (1 << 36) - 1)))
    assert [fault.split(":")[0] for fault in faults_of(row)] == ["undecodable audio"]


def or_null(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | values


WORD = or_null(st.text(max_size=3) | st.sampled_from(["text", "audio", "user", "assistant", "train", "SGC", "tiny"]))
PART = or_null(st.fixed_dictionaries({"type": WORD, "text": WORD}))
MESSAGE = or_null(st.fixed_dictionaries({"role": WORD, "content": or_null(st.lists(PART, max_size=2))}))
CLIP = or_null(st.fixed_dictionaries({"bytes": or_null(st.binary(max_size=9)), "path": WORD}))
COLUMN = {
    "messages": or_null(st.lists(MESSAGE, max_size=2)),
    "audio": or_null(st.lists(CLIP, max_size=2)),
    "choices": or_null(st.lists(WORD, max_size=2)),
    "duration": or_null(st.floats()),
    "length": or_null(st.integers(-9, 9)),
}
CHANGE = st.one_of([st.tuples(st.just(name), COLUMN.get(name, WORD)) for name in FEATURES])
ANY_ROW = st.lists(CHANGE, max_size=2).map(lambda changes: good_row(**dict(changes)))


@settings(max_examples=12, deadline=None)
@given(rows=st.lists(ANY_ROW, min_size=20, max_size=40))
def test_no_row_ends_a_run(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]):
    """Whatever stands in the columns: it is good, or bad with a reason; and what is left is good."""
    folder = write_corpus(tmp_path_factory.mktemp("any"), {"text_audio.train-paralinguistic": rows})
    report = validate(folder)
    assert report["rows"] + report["set_aside"] == len(rows) == len(rows_of(folder)) + len(listed(folder))
    assert all(entry["reasons"] for entry in listed(folder))
    assert validate(folder)["found"] == 0
    shutil.rmtree(folder)


# --- whole corpora ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaSO-Instruct of the tiny source, not to be changed."""
    root = tmp_path_factory.mktemp("built")
    source = SOURCE.at(write_recordings(root / "tiny"), notes=12, questions=6)
    return build("instruct", [source], root / "llaso-instruct", clips=root / "clips", **SETTINGS)


@pytest.fixture
def corpus(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / built.name))


def write_corpus(folder: Path, shards: dict[str, list[dict]], **sources: dict) -> Path:
    """A corpus of shards as they are, with a record that names them."""
    record = {
        "fingerprint": "f" * 64, "corpus": "instruct", "seed": 0, "speech": "espeak", "rejects": {}, "dropped": {},
        "held_back": {}, "rows": 0, "hours": 0.0, "counts": {}, "shards": {},
        "sources": {"tiny": {"title": "Tiny", "license": "CC0-1.0", "redistributable": True, "homepage": "x"}},
    }  # fmt: skip
    record["sources"].update(sources)
    for name, rows in shards.items():
        modality, rest = name.split(".", 1)
        file = folder / "data" / modality / f"{rest}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), file)
        record["shards"][f"{name}-00000-of-00001"] = {"sha256": "", "bytes": 0}
    (folder / "build.json").write_text(json.dumps(record))
    return folder


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]


def listed(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "bad_rows.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the lock, in which its last holder stands."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_good_corpus_is_good(corpus: Path):
    before = {f: f.read_bytes() for f in [*corpus.glob("data/*/*"), corpus / "build.json", corpus / "README.md"]}
    assert main(["data", "validate", str(corpus), "--examples", "3"]) == 0
    report = json.loads((corpus / "validation.json").read_text())
    assert report["rows"] == len(rows_of(corpus)) and not (report["bad"] or report["set_aside"] or report["reasons"])
    assert sum(report["seconds"].values()) == sum(report["formats"].values()) == report["rows"]
    assert sum(count for labels in report["labels"].values() for count in labels.values()) == report["rows"]
    page = (corpus / "validation.html").read_text()
    assert page.count("<audio ") == 3 and "http" not in page and "Hours per source" in page
    pitches = Counter(int(row["target"]) // 10 for row in rows_of(corpus) if row["task"] == "PP")
    assert list(report["labels"]["PP"].items()) == [(f"{t}0 to {t}9", pitches[t]) for t in sorted(pitches)]
    assert {f: f.read_bytes() for f in before} == before
    assert str(corpus.parent) not in json.dumps(report)  # it is published: no folder of this machine stands in it


def test_bad_rows_are_set_aside_with_their_reasons(corpus: Path):
    """The corpus, its record and its card say what is left; a second run changes nothing; the rest loads."""
    card = (corpus / "README.md").read_text()
    file = sorted(corpus.glob("data/text_audio/train-paralinguistic-*.parquet"))[0]
    good = pq.read_table(file).to_pylist()
    bad = [
        {**good[0], "id": "bad/silent", **with_clip(flac(0 * TONE))},
        {**good[0], "id": "bad/null", "messages": None},
        good[0],
        {**good[1], "id": "bad/again"},
    ]
    pq.write_table(pa.Table.from_pylist([bad[0], *good, *bad[1:]], schema=FEATURES.arrow_schema), file)
    emptied = sorted(corpus.glob("data/*/validation-*.parquet"))[0]
    rows = pq.read_table(emptied).to_pylist()
    pq.write_table(
        pa.Table.from_pylist([{**row, "target": ""} for row in rows], schema=FEATURES.arrow_schema), emptied
    )
    before = contents(corpus)
    assert main(["data", "validate", str(corpus)]) == 1
    assert {name: data for name, data in contents(corpus).items() if name in before} == before
    assert [entry["set_aside"] for entry in listed(corpus)] == [False] * (4 + len(rows))
    assert main(["data", "validate", str(corpus), "--set-aside"]) == 1
    place = str(file.relative_to(corpus))
    kinds = {
        (e["row"], e["id"]): [r.split(":")[0] for r in e["reasons"]] for e in listed(corpus) if e["file"] == place
    }
    page = (corpus / "validation.html").read_text()
    assert "data/text_audio/" in page and "silent audio" in page and "bad/silent" in page
    last = len(good)
    assert kinds == {
        (0, "bad/silent"): ["silent audio"],
        (last + 1, "bad/null"): ["missing value"],
        (last + 2, good[0]["id"]): ["duplicate id", "duplicate audio"],
        (last + 3, "bad/again"): ["duplicate audio"],
    }
    assert pq.read_table(file).to_pylist() == good
    assert pq.read_table(corpus / ".build/set_aside/text_audio" / file.name).to_pylist() == bad
    assert pq.read_schema(file).metadata == FEATURES.arrow_schema.metadata
    record = json.loads((corpus / "build.json").read_text())
    assert record["rows"] == len(rows_of(corpus)) == sum(entry["rows"] for entry in record["counts"].values())
    for name, shard in record["shards"].items():
        modality, rest = name.split(".", 1)
        assert sha256((corpus / "data" / modality / f"{rest}.parquet").read_bytes()).hexdigest() == shard["sha256"]
    assert f"{4 + len(rows)} rows were set aside by validation" in (corpus / "README.md").read_text() != card
    first = contents(corpus)
    assert main(["data", "validate", str(corpus)]) == 0
    assert contents(corpus) == first
    # What is set aside later is added to what was.
    changed = pq.read_table(file).to_pylist()
    changed[0]["target"] = ""
    pq.write_table(pa.Table.from_pylist(changed, schema=FEATURES.arrow_schema), file)
    assert validate(corpus)["set_aside"] == 5 + len(rows)
    assert len(listed(corpus)) == 5 + len(rows)
    assert len(pq.read_table(corpus / ".build/set_aside/text_audio" / file.name)) == 5
    # A split of which a shard is empty still loads, plain and streamed.
    for name, config in {"text_audio": "text_audio", "default": "default"}.items():
        wanted = sum(row["split"] == "train" and config in ("default", row["modality"]) for row in rows_of(corpus))
        plain = load_dataset(str(corpus), name, split="train", cache_dir=str(corpus / "cache"))
        assert len(plain) == wanted == sum(1 for _ in load_dataset(str(corpus), name, split="train", streaming=True))


def test_a_bad_row_is_neither_shown_nor_kept(tmp_path: Path):
    """Its clip is in no shard and on no page, set aside or only listed."""
    import base64

    clip = flac(SQUARE)
    rows = [good_row(), good_row("b", **with_clip(clip))]
    for name, options in (("dry", {"set_aside": False}), ("wet", {})):
        folder = write_corpus(tmp_path / name, {"text_audio.train-paralinguistic": rows})
        validate(folder, **options)
        page = (folder / "validation.html").read_text()
        assert page.count("<audio ") == 1 and base64.b64encode(clip).decode()[:400] not in page
        kept = [row["audio"][0]["bytes"] for row in rows_of(folder)]
        assert (clip in kept) is (name == "dry")


def test_the_page_escapes_every_text(tmp_path: Path):
    evil = '<script>alert("1")</script>\'"&'
    rows = [good_row(evil, choices=[evil, "b"], source=evil, license=evil, **answered(evil, evil))]
    rows.append({**rows[0], "target": evil * 2})
    source = {"title": evil, "license": evil, "redistributable": False, "homepage": evil}
    folder = write_corpus(tmp_path / "<b>&", {"text_audio.train-paralinguistic": rows}, **{evil: source})
    report = validate(folder)
    assert report["rows"] == report["found"] == 1
    page = (folder / "validation.html").read_text()
    assert "<script" not in page and "<b>" not in page.split("<body>")[1].split("<article>")[0]
    assert page.count("&lt;script&gt;") >= 8


def test_a_corpus_whose_rows_are_all_bad(tmp_path: Path):
    folder = write_corpus(tmp_path / "c", {"text_audio.train-paralinguistic": [good_row(**with_clip(b"no"))]})
    report = validate(folder)
    assert (report["rows"], report["set_aside"], report["hours"]) == (0, 1, {})
    assert "0 rows are good" in (folder / "validation.html").read_text()
    assert validate(folder)["found"] == 0


def test_a_split_without_rows(tmp_path: Path):
    """It leaves the card's configs: datasets would load none of them."""
    rows = split_rows()
    rows["text_audio.validation-paralinguistic"][0]["duration"] = 9.0
    folder = write_corpus(tmp_path / "c", rows)
    assert validate(folder)["found"] == 1
    for config in ("default", "text_audio", "paralinguistic"):
        found = load_dataset(str(folder), config, cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in found.items()} == {"train": 2}


def test_labels_that_begin_with_a_number_and_lengths_without_end(tmp_path: Path):
    """VCTK's ages; and a manifest may state any duration."""
    ages = ("15-19", "20-24", "30+")
    rows = [
        good_row(f"r{n}", task="AR", choices=list(ages), speaker=f"s{n}", **answered(age), audio=[
            {"bytes": None, "path": f"{n}.flac"}], sha256="", duration=10.0**n * 5)
        for n, age in enumerate(("30+", "15-19", "20-24", "15-19"))
    ]  # fmt: skip
    folder = write_corpus(tmp_path / "c", {"text_audio.train-paralinguistic": rows})
    record = json.loads((folder / "build.json").read_text())
    (folder / "build.json").write_text(json.dumps({**record, "manifest": True}))
    report = validate(folder)
    assert report["rows"] == 4 and list(report["labels"]["AR"]) == list(ages)
    assert len(report["seconds"]) == 61 and report["seconds"]["60 or more"] == 2


def test_a_record_that_counts_wrongly_is_corrected(corpus: Path):
    """By its counts publishing knows whose audio there is."""
    record = json.loads((corpus / "build.json").read_text())
    wrong = {name: entry for name, entry in record["counts"].items() if "/PP/" not in name}
    (corpus / "build.json").write_text(json.dumps({**record, "counts": wrong}))
    validate(corpus)
    assert json.loads((corpus / "build.json").read_text())["counts"].keys() == record["counts"].keys()


def test_one_missing_clip_makes_no_manifest(tmp_path: Path):
    rows = [good_row("a", audio=[{"bytes": None, "path": "x"}]), good_row("b", **with_clip(flac(0 * TONE)))]
    report = validate(write_corpus(tmp_path / "c", {"text_audio.train-paralinguistic": rows}))
    assert report["reasons"] == {"no audio": 1, "silent audio": 1} and not any(
        "manifest" in n for n in report["notes"]
    )


def test_text_that_is_not_utf8_is_set_aside(tmp_path: Path):
    folder = write_corpus(tmp_path / "c", {"text_audio.train-paralinguistic": [good_row(), good_row("b" * 40)]})
    file = next(folder.glob("data/*/*"))
    table = pq.read_table(file)
    names = pa.StringArray.from_buffers(2, *(pa.py_buffer(b) for b in (np.int32([0, 3, 5]).tobytes(), b"one\xff\xfe")))
    pq.write_table(table.set_column(0, table.schema.field("id"), names), file)
    report = validate(folder)
    assert report["reasons"] == {"text is not UTF-8": 1} and report["rows"] == 1
    assert listed(folder)[0]["row"] == 1 and validate(folder)["found"] == 0


def test_half_a_build_is_no_corpus(corpus: Path, tmp_path: Path):
    """Neither it nor what is compared with it is said to be good."""
    half = Path(shutil.copytree(corpus, tmp_path / "half"))
    (half / "build.json").unlink()
    for folder, against in ((half, []), (corpus, [half])):
        with pytest.raises(ValueError, match="half is not built to its end: give its `llaso data build`"):
            validate(folder, against=against)
        assert not (folder / "validation.json").exists()


def test_validation_needs_a_whole_corpus(corpus: Path, tmp_path: Path):
    def refused(match: str) -> None:
        before = contents(corpus)
        with pytest.raises(ValueError, match=match):
            validate(corpus)
        assert contents(corpus) == before

    with pytest.raises(ValueError, match="holds no corpus"):
        validate(tmp_path / "nowhere")
    shards = sorted(corpus.glob("data/*/*"))
    stray = shards[0].with_name("train-old-00000-of-00001.parquet")
    stray.write_bytes(shards[0].read_bytes())
    refused(rf"{stray.name} is no part of this corpus")
    stray.unlink()
    (corpus / "bad_rows.jsonl").write_text('{"set_aside": true')
    refused("bad_rows.jsonl:1: not JSON")
    (corpus / "bad_rows.jsonl").unlink()
    whole = shards[1].read_bytes()
    for broken in (b"", b"PAR1 not", whole[:-9], whole[:400] + b"\0" * 4000 + whole[4400:]):
        shards[1].write_bytes(broken)
        refused(rf"{shards[1].name} is no shard of this schema")
    pq.write_table(pq.read_table(shards[0]).drop_columns(["target"]), shards[1])
    refused("column target is missing")
    shards[1].unlink()
    refused(rf"{shards[1].name} is missing")
    for wrong in ({"examples": -1}, {"workers": 0}):
        with pytest.raises(ValueError, match="give 0 or more examples and 1 or more workers"):
            validate(corpus, **wrong)


# --- what rows may not share --------------------------------------------------------------------------------------


def test_what_is_a_duplicate_and_what_is_not(tmp_path: Path):
    """One clip may be asked several tasks, label sets and questions; a spoken instruction may serve many inputs."""
    spoken = {"task": "IP", "choices": [], "template_id": "IP/01", "modality": "audio_text"}
    question = {"task": "AQA", "category": "semantic", "choices": [], "template_id": ""}
    rows = [
        good_row("a"),
        good_row("b", task="ER", choices=["female", "male"]),
        good_row("c", choices=["male", "female", "child"]),
        good_row("again", **answered("male", "Other wording of an instruction?")),
    ]
    inputs = [good_row(f"i{n}", **spoken, **answered("alarm", f"wake me at {n // 2}")) for n in (1, 2, 3)]
    asked = [good_row(f"q{n}", **question, **answered("yes", f"Is it {n // 2}?")) for n in (1, 2, 3)]
    folder = write_corpus(
        tmp_path / "c",
        {
            "text_audio.train-paralinguistic": rows,
            "audio_text.train-paralinguistic": inputs,
            "text_audio.train-semantic": asked,
        },
    )
    assert validate(folder)["reasons"] == {"duplicate audio": 3}
    assert {entry["id"] for entry in listed(folder)} == {"again", "i3", "q3"}
    assert [row["id"] for row in rows_of(folder)] == ["i1", "i2", "a", "b", "c", "q1", "q2"]


def test_a_good_row_outlives_its_bad_double(tmp_path: Path):
    rows = [good_row("a", **answered("?")), good_row("a")]
    folder = write_corpus(tmp_path / "c", {"text_audio.train-paralinguistic": rows})
    assert validate(folder)["reasons"] == {"target not among choices": 1}
    assert [row["target"] for row in rows_of(folder)] == ["male"]


CLIPS = [flac(0.3 * np.sin(np.arange(16_000) * step)) for step in (0.05, 0.06, 0.07, 0.08)]


def split_rows(**train) -> dict[str, list[dict]]:
    """A training row that is changed and one that is not, and a held-out row."""
    return {
        "text_audio.train-paralinguistic": [
            good_row("a", CLIPS[0], **{"speaker": "tiny:a", "voice": "v1", **train}),
            good_row("b", CLIPS[1], speaker="tiny:b", voice="v1"),
        ],
        "text_audio.validation-paralinguistic": [
            good_row("h", CLIPS[2], split="validation", speaker="tiny:h", voice="v2 v3")
        ],
    }


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"speaker": "tiny:h"}, "speaker"),
        ({"voice": "v1 v3"}, "voice"),
        ({"audio": [{"bytes": CLIPS[2], "path": "x"}], "sha256": sha256(CLIPS[2]).hexdigest(), "task": "ER"}, "audio"),
    ],
)
def test_training_rows_give_way_to_held_out_ones(tmp_path: Path, change: dict, kind: str):
    folder = write_corpus(tmp_path / "c", split_rows(**change))
    assert validate(folder)["reasons"] == {f"{kind} also held out": 1}
    assert [row["id"] for row in rows_of(folder)] == ["b", "h"]


def test_what_a_source_shares_by_nature_is_no_leak(tmp_path: Path):
    """Naming the speaker needs speakers that one knows (MELD), and LJSpeech has one."""
    source = {"title": "T", "license": "CC0-1.0", "redistributable": True, "homepage": "", "shared": ["speaker"]}
    folder = write_corpus(tmp_path / "c", split_rows(speaker="tiny:h"), tiny=source)
    assert validate(folder)["found"] == 0


def test_corpora_are_compared_with_one_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A row shares no audio, speaker or voice with rows of another split elsewhere; the other corpus stays whole."""
    other = write_corpus(tmp_path / "other", split_rows())
    test = {"split": "test", "choices": ["female", "male"]}
    rows = [
        good_row("clip", CLIPS[0], **test),
        good_row("speaker", CLIPS[3], speaker="tiny:h", **test),
        good_row("voice", CLIPS[3], voice="v9 v1", **{**test, "task": "ER"}),
        good_row("apart", CLIPS[3], voice="v9", **{**test, "task": "ER", "choices": ["male", "x"]}),
    ]
    folder = write_corpus(tmp_path / "eval", {"text_audio.test-paralinguistic": rows})
    before = contents(other)
    assert validate(folder)["found"] == 0
    assert main(["data", "validate", str(folder), "--set-aside", "--against", str(other), str(other)]) == 1
    said = capsys.readouterr().out
    assert "sentences and recordings of other are not known here" in said
    assert [(entry["id"], entry["reasons"]) for entry in listed(folder)] == [
        ("clip", [f"audio also elsewhere: {sha256(CLIPS[0]).hexdigest()} (train of other)"]),
        ("speaker", ["speaker also elsewhere: tiny:h (validation of other)"]),
        ("voice", ["voice also elsewhere: v1 (train of other)"]),
    ]
    assert contents(other) == before
    # The other way round, training rows give way to the held-out rows of another corpus.
    evaluation = write_corpus(tmp_path / "again", {"text_audio.test-paralinguistic": rows})
    assert validate(other, against=[evaluation])["reasons"] == {
        "voice also elsewhere": 2, "audio also elsewhere": 1, "speaker also elsewhere": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match="is the corpus itself"):
        validate(folder, against=[folder])


def of_strangers(root: Path, **options):
    return (replace(item, speaker=f"other:{item.speaker}") for item in read(root, **options))


def test_sentences_are_compared_where_the_build_left_them(tmp_path: Path):
    """A recording of the same sentence, built as training of one corpus and as evaluation of another."""
    root = write_recordings(tmp_path / "tiny", 12)
    options = {"recordings": 12, "notes": 0, "questions": 0}
    source = SOURCE.at(root, **options)
    align = build("align", [source], tmp_path / "align", **SETTINGS)
    apart = build("eval", [source], tmp_path / "eval", **SETTINGS, against=[align])
    assert validate(apart, against=[align])["found"] == 0
    assert json.loads((apart / "leakage.json").read_text())["clean"]
    # Other speakers (by another name) say the same sentences: another draw of the held-out ones.
    strangers = replace(SOURCE, name="other", read=of_strangers).at(root, **options)
    copied = build("eval", [strangers], tmp_path / "copied", **SETTINGS, seed=5)
    report = validate(copied, against=[align])
    assert report["reasons"]["sentence also elsewhere"] == report["found"] > 0
    assert report["reasons"]["recording also elsewhere"] == report["found"]
    proof = json.loads((copied / "leakage.json").read_text())
    assert proof["clean"] and proof["held_out"]["rows"] == report["rows"]  # of the rows that are left


# --- kills, disks and memory --------------------------------------------------------------------------------------


def spoil(corpus: Path) -> None:
    """One bad row in every training shard."""
    for file in corpus.glob("data/*/train-*.parquet"):
        rows = pq.read_table(file).to_pylist()
        if rows:
            rows[0]["target"] = ""
            pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), file)


KILL = """
{dying}
from dataset_scripts import validate
{patch}
validate.validate(Path(sys.argv[1]), set_aside=True)
"""


@pytest.mark.parametrize(
    ("patch", "untouched"),
    [
        ("validate._take_out = dying(validate._take_out, 1)", True),
        ("validate._Moves.decide = dying(validate._Moves.decide, 0)", True),
        ("Path.replace = dying(Path.replace, 9)", False),
    ],
)
def test_a_killed_run_leaves_the_corpus_as_it_was(corpus: Path, tmp_path: Path, patch: str, untouched: bool):
    """Or, killed while it moves what is made, the next one moves the rest."""
    spoil(corpus)
    twin = Path(shutil.copytree(corpus, tmp_path / "twin" / corpus.name))
    before = contents(corpus)
    done = subprocess.run([sys.executable, "-c", KILL.format(dying=DYING, patch=patch), str(corpus)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    now = contents(corpus)
    assert ({name: now[name] for name in before} == before) is untouched
    assert all(pq.read_table(file).num_rows for file in corpus.glob("data/*/train-*.parquet"))
    validate(corpus)
    validate(twin)
    assert contents(corpus) == contents(twin)


def test_the_result_is_the_same_with_any_number_of_workers(corpus: Path, tmp_path: Path):
    """The same report, page, shards and records."""
    spoil(corpus)
    twin = Path(shutil.copytree(corpus, tmp_path / "twin" / corpus.name))
    seen: list[tuple[int, int]] = []
    one = validate(corpus, examples=5, progress=lambda *now: seen.append(now))
    assert main(["data", "validate", str(twin), "--set-aside", "--examples", "5", "--workers", "2"]) == 1
    assert contents(corpus) == contents(twin)
    total = one["rows"] + one["found"]
    assert one["found"] > 2 and seen[-1] == (total, total)


def test_a_killed_validation_worker_is_reported(corpus: Path):
    """The kernel ends one that takes too much memory; the run says so and the corpus is as it was."""
    before = contents(corpus)
    with pytest.raises(OSError, match="a worker was lost"):
        list(_each(ends_its_process, sorted(corpus.glob("data/*/*")), workers=2))
    assert contents(corpus) == before


def ends_its_process(file: Path) -> dict[int, list[str]]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_second_validation_at_once_is_refused(corpus: Path, tmp_path: Path):
    """The second names the process that is at work, and touches nothing."""
    wait = "import sys, time; from pathlib import Path; from llaso_common.folder_lock import alone_in\n" \
        "with alone_in(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", wait, str(corpus)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        before = contents(corpus)
        with pytest.raises(FolderBusy, match=f"by process {other.pid}"):
            validate(corpus)
        assert contents(corpus) == before
        other.kill()


def test_a_disk_that_is_full_while_rows_are_taken_out(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    """The corpus is as it was, and the next run has no traces of it."""
    spoil(corpus)
    before = contents(corpus)

    class Full(pq.ParquetWriter):
        def write_batch(self, *arguments, **options) -> None:
            super().write_batch(*arguments, **options)
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dataset_scripts.validate.pq.ParquetWriter", Full)
        with pytest.raises(OSError, match="No space left"):
            validate(corpus)
    after = contents(corpus)
    assert {name: after[name] for name in before} == before
    validate(corpus)
    assert not (corpus / ".build/validation").exists() and not list(corpus.rglob("*.part"))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path):
    """Eight times the rows take the same memory, but for some bytes a row."""
    clip = flac(0.3 * np.random.default_rng(0).standard_normal(16_000).clip(-3, 3) / 3)

    def peak(shards: int) -> int:
        rows = {}
        for shard in range(shards):
            changes = {"template_id": ""} | with_clip(clip)
            rows[f"text_audio.train-paralinguistic-{shard}"] = [
                good_row(f"r{shard}-{n}", **{**changes, **answered("male", f"{shard}-{n}")}) for n in range(100)
            ]
        folder = write_corpus(tmp_path / str(shards), rows)
        tracemalloc.start()
        assert validate(folder)["found"] == 0
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(1), peak(8)
    assert many < 1.3 * few, (few, many)
