"""A person's own data in every shape that a block of `sources.yaml` reads: manifests, Kaldi's, lhotse's, folders."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.paths import shared_fixture
from support.tiny_corpus import VOICES

from dataset_scripts import joined_clips, sources_file
from dataset_scripts.build import build
from dataset_scripts.corpus_plan import corpora_of, keys_of, sentence_key
from dataset_scripts.sources.base import Item, Recording, Reject, Source, Speech
from dataset_scripts.validate import validate
from llaso.cli import main
from llaso_common.audio import PAUSE_S
from llaso_common.schema import SPLITS

WORDS = "amber birch cedar delta ember fjord grove haven inlet jetty knoll lagoon".split()
SPEAKERS = 6
GENDERS = {"m": "male", "f": "female"}


def clips(root: Path, count: int = 24) -> list[dict[str, Any]]:
    """Tones of different pitch as FLAC files, and a row for each: text, speaker, gender."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in range(count):
        tone = 0.3 * np.sin(np.arange(3200 + 160 * n) * (0.05 + 0.01 * n))
        soundfile.write(root / f"{n:03d}.flac", tone, 16_000)
        said = f"{WORDS[n % 12]} {WORDS[n // 12]} {n}"
        gender = "mf"[n % SPEAKERS % 2]
        rows.append({"audio": f"{n:03d}.flac", "text": said, "speaker": f"s{n % SPEAKERS}", "gender": gender})
    return rows


def json_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def sources(folder: Path, settings: dict[str, Any] | None = None, **blocks: Any) -> sources_file.SourcesFile:
    """A sources file of these blocks, read."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sources.yaml"
    file.write_text(yaml.safe_dump({"sources": blocks, "eval_rows": 6, "validation_rows": 4, **(settings or {})}))
    return sources_file.read(file)


def only(folder: Path, /, **block: Any) -> Source:
    """The source of a single block, named `own`."""
    return sources(folder, own=block).sources[0]


def found(source: Source) -> tuple[list[Item], list[Reject]]:
    each = list(source.items())
    return [x for x in each if isinstance(x, Item)], [x for x in each if isinstance(x, Reject)]


def reasons(rejects: list[Reject], folder: Path) -> dict[str, str]:
    """Reason by place; of paths what is below the folder."""
    return {reject.where.replace(f"{folder}/", ""): reject.reason for reject in rejects}


def built_rows(corpus: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(corpus.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]


# --- the same rows in every shape ------------------------------------------------------------------------------------


def as_json_lines(folder: Path, audio: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"manifest": str(json_lines(folder / "train.jsonl", rows)), "audio_root": str(audio)}


def as_csv(folder: Path, audio: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["File", "Words", "Who", "Sex"])
        writer.writerows([audio / row["audio"], row["text"], row["speaker"], row["gender"]] for row in rows)
    columns = {"audio": "File", "text": "Words", "speaker": "Who", "gender": "Sex"}
    return {"manifest": str(folder / "train.csv"), "columns": columns}


def as_tsv(folder: Path, audio: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    lines = ["\t".join(rows[0])] + ["\t".join(row.values()) for row in rows]
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    return {"manifest": str(folder / "train.tsv"), "audio_root": str(audio)}


def as_nemo(folder: Path, audio: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One long file for every two clips, the second reached by its offset; NeMo's names of the columns."""
    entries = []
    for row in rows:
        seconds = soundfile.info(audio / row["audio"]).duration
        kept = {name: row[name] for name in ("text", "speaker", "gender")}
        entries.append({"audio_filepath": str(audio / row["audio"]), "duration": seconds, **kept})
    whole = np.concatenate([soundfile.read(audio / row["audio"])[0] for row in rows[:2]])
    soundfile.write(folder / "long.flac", whole, 16_000)
    for entry, offset in zip(entries, (0.0, entries[0]["duration"]), strict=False):
        entry |= {"audio_filepath": "long.flac", "offset": offset}
    return {"manifest": str(json_lines(folder / "manifest.json", entries))}


def as_kaldi(folder: Path, audio: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    ids = [f"{row['speaker']}-{n:03d}" for n, row in enumerate(rows)]
    of = list(zip(ids, rows, strict=True))
    (folder / "wav.scp").write_text("".join(f"{id} {audio / row['audio']}\n" for id, row in of))
    (folder / "text").write_text("".join(f"{id} {row['text']}\n" for id, row in of))
    (folder / "utt2spk").write_text("".join(f"{id} {row['speaker']}\n" for id, row in of))
    (folder / "spk2gender").write_text("".join({f"{row['speaker']} {row['gender']}\n": 0 for row in rows}))
    return {"manifest": str(folder)}


def as_kaldi_segments(folder: Path, audio: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    block, end = as_kaldi(folder, audio, rows), 0.0
    soundfile.write(folder / "all.flac", np.concatenate([soundfile.read(audio / r["audio"])[0] for r in rows]), 16_000)
    (folder / "wav.scp").write_text("whole all.flac\n")
    with (folder / "segments").open("w") as file:
        for n, row in enumerate(rows):
            start, end = end, end + soundfile.info(audio / row["audio"]).duration
            file.write(f"{row['speaker']}-{n:03d} whole {start:.4f} {end:.4f}\n")
    return block


def as_lhotse(folder: Path, audio: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    cuts = []
    for n, row in enumerate(rows):
        seconds = soundfile.info(audio / row["audio"]).duration
        said = {"id": f"sup-{n}", "recording_id": f"rec-{n}", "start": 0.0, "duration": seconds, "channel": 0}
        said |= {"text": row["text"], "speaker": row["speaker"], "gender": row["gender"], "language": "English"}
        source = {"type": "file", "channels": [0], "source": str(audio / row["audio"])}
        recording = {"id": f"rec-{n}", "sources": [source], "sampling_rate": 16_000, "duration": seconds}
        cuts.append({"id": f"cut-{n}", "start": 0.0, "duration": seconds, "channel": 0, "supervisions": [said],
                     "recording": recording, "type": "MonoCut"})  # fmt: skip
    return {"manifest": str(json_lines(folder / "cuts.jsonl.gz", cuts))}


def as_folder(folder: Path, audio: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Folders by speaker and gender, which the column `folder` names."""
    for row in rows:
        place = folder / "recordings" / f"{row['speaker']} {row['gender']}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(audio / row["audio"], place)
        (place / row["audio"]).with_suffix(".txt").write_text(row["text"] + "\n")
    people = {f"{row['speaker']} {row['gender']}": GENDERS.get(row["gender"], row["gender"]) for row in rows}
    columns = {"speaker": "folder", "gender": "folder"}
    return {"folder": str(folder / "recordings"), "columns": columns, "values": {"gender": people}}


SHAPES: list[Callable[..., dict[str, Any]]] = [
    as_json_lines, as_csv, as_tsv, as_nemo, as_kaldi, as_kaldi_segments, as_lhotse, as_folder
]  # fmt: skip


def in_every_shape(folder: Path, audio: Path, rows: list[dict[str, Any]]) -> None:
    """Build the rows from every shape and compare; all of them in training, so that nothing is drawn."""
    seen, asked = {}, {}
    for shape in SHAPES:
        place = folder / shape.__name__
        place.mkdir()
        block = shape(place, audio, rows)
        kind = "folder" if "folder" in block else "manifest"
        block |= {kind: {"train": block[kind]}, "tasks": {"ASR": "text", "SGC": "gender"}, "license": "cc-by-4.0"}
        chosen = sources(place, own=block)
        out = build("align", chosen.sources, place / "align", voices=VOICES, eval_rows=0, validation_rows=0)
        record = json.loads((out / "build.json").read_text())
        assert record["sources"]["own"]["license"] == "CC-BY-4.0" and not record["rejects"], shape
        assert not any(record["dropped"].values()) and record["rows"] == len(rows), shape
        seen[shape.__name__] = sorted((row["sha256"], row["target"], row["speaker"]) for row in built_rows(out))
        items = found(chosen.sources[0])[0]
        asked[shape.__name__] = sorted((fact.task, fact.target) for item in items for fact in item.facts)
    assert len(seen["as_json_lines"]) == len(rows) and len(asked["as_json_lines"]) == 2 * len(rows)
    for name in seen:
        assert seen[name] == seen["as_json_lines"] or name == "as_folder", name
        assert asked[name] == asked["as_json_lines"], name
    # A folder knows its speakers by its own names.
    assert [row[:2] for row in seen["as_folder"]] == [row[:2] for row in seen["as_json_lines"]]


def test_the_same_rows_in_every_shape_give_the_same_audio_and_targets(tmp_path: Path):
    in_every_shape(tmp_path, tmp_path / "audio", clips(tmp_path / "audio", 12))


def test_real_speech_in_every_shape_gives_the_same_audio_and_targets(tmp_path: Path):
    root = shared_fixture("real_speech")
    rows = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()[540:5000:600]]
    kept = [{name: str(row.get(name, "")) for name in ("audio", "text", "speaker", "gender")} for row in rows]
    # Kaldi's ids and speakers hold no space.
    flat = [row | {"audio": f"{n:03d}.ogg", "speaker": row["speaker"].replace(" ", "_")} for n, row in enumerate(kept)]
    (tmp_path / "audio").mkdir()
    for row, there in zip(flat, kept, strict=True):
        shutil.copy(root / there["audio"], tmp_path / "audio" / row["audio"])
    in_every_shape(tmp_path, tmp_path / "audio", flat)


def test_people_reading_aloud_from_a_ten_line_file_to_a_dry_run(tmp_path: Path, capsys, monkeypatch):
    """Plan, build, validate, load_dataset and the dry run of a training, by the commands."""
    root = shared_fixture("real_speech")
    monkeypatch.chdir(tmp_path)
    Path("sources.yaml").write_text(f"""
sources:
  people:
    manifest: {{test: {root}/dev.jsonl, train: {root}/train.jsonl}}
    tasks: {{ASR: text, SGC: gender}}
    license: CC-BY-4.0
eval_rows: 8
validation_rows: 0
voices: {{train: [en-us+f1], validation: [en-us+f2], test: [en+f4]}}
""")
    asked = ["--sources", "sources.yaml", "--limit", "40"]
    assert main(["data", "plan", "align", *asked]) == 0
    assert main(["data", "build", "align", *asked, "--out", "align"]) == 0
    assert main(["data", "build", "eval", *asked, "--out", "eval", "--against", "align"]) == 0
    assert main(["data", "validate", "align"]) == 0
    assert main(["data", "validate", "eval", "--against", "align"]) == 0
    row = next(iter(load_dataset("align", "text_audio", split="train", streaming=True)))
    assert row["task"] == "ASR" and row["audio"][0]["bytes"][:4] == b"fLaC" and row["speaker"].startswith("people:")
    capsys.readouterr()
    assert main(["train", "stage1_align", "--set", "data.path=align", "--dry-run"]) == 0
    assert "steps" in capsys.readouterr().out


# --- what is in a row ------------------------------------------------------------------------------------------------


def test_segments_labels_nested_columns_and_splits(tmp_path: Path):
    clips(tmp_path, 2)
    rows = [
        {"file": {"path": "000.flac"}, "at": 0.05, "long": 0.1, "meta": {"mood": "ang"}, "part": "dev", "n": 31},
        {"file": {"path": "000.flac"}, "at": "0.02", "long": "0.03", "meta": {"mood": "hap"}, "part": "test", "n": 17},
        {"file": {"path": "001.flac"}, "meta": {"mood": "sad"}, "part": "elsewhere", "n": 30},
        {"file": {"path": "001.flac"}, "at": 0.3, "long": -1, "meta": {"mood": "sad"}, "n": 30},
        {"file": {"path": "001.flac"}, "meta": {"mood": "hap"}, "part": "holdout", "n": 30.0},
    ]
    source = only(
        tmp_path,
        manifest=str(json_lines(tmp_path / "rows.jsonl", rows)),
        columns={"audio": "file.path", "start": "at", "duration": "long", "mood": "meta.mood", "split": "part"},
        tasks={"ER": "mood", "AR": "n"},
        values={"mood": {"ang": "angry", "hap": "happy"}, "split": {"holdout": "test"}},
    )
    items, rejects = found(source)
    assert source.license == "unknown" and not source.redistributable
    assert [(item.split, [(f.task, f.target, f.choices, f.granularity) for f in item.facts]) for item in items] == [
        ("validation", [("AR", "31", (), "number"), ("ER", "angry", ("angry", "happy"), "")]),
        ("test", [("ER", "happy", ("angry", "happy"), "")]),
        ("test", [("AR", "30", (), "number"), ("ER", "happy", ("angry", "happy"), "")]),
    ]
    cut = [(part.start, part.end) for item in items for part in item.sound if isinstance(part, Recording)]
    assert cut == [(0.05, pytest.approx(0.15)), (0.02, pytest.approx(0.05)), (0.0, None)]
    assert reasons(rejects, tmp_path) == {
        "rows.jsonl:2 (17)": "AR: not a number from 18 to 80",
        "rows.jsonl:3 (elsewhere)": "split is none of train, validation, test: say which under `values: {split: …}`",
        "rows.jsonl:4": "duration is not a number of seconds",
    }


def test_questions_and_whole_conversations_with_several_clips(tmp_path: Path):
    clips(tmp_path, 3)
    chat = [
        {"role": "user", "content": "<audio><audio>Who is louder?"},
        {"role": "assistant", "content": "The second."},
    ]
    parts = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "audio", "audio": "002.flac"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A tone."}]},
        {"role": "user", "content": "Higher than <audio>?"},
        {"role": "assistant", "content": "Yes."},
    ]
    gpt = [{"from": "human", "value": "And this?"}, {"from": "gpt", "value": "A tone."}]
    rows = [
        {"messages": chat, "audio": ["000.flac", "001.flac"]},
        {"messages": parts, "audio": "001.flac"},
        {"messages": gpt, "audio": "001.flac"},
        {"messages": chat, "audio": "001.flac"},
        {"messages": gpt, "audio": ["000.flac", "001.flac"]},
        {"messages": gpt[:1], "audio": "001.flac"},
        {"messages": "hello", "audio": "001.flac"},
        {"messages": gpt},
        {"messages": gpt, "audio": "009.flac"},
    ]
    manifest = str(json_lines(tmp_path / "chat.jsonl", rows))
    chosen = sources(tmp_path, own={"manifest": {"train": manifest}, "tasks": {"AQA": "messages"}})
    items, rejects = found(chosen.sources[0])
    assert [len(item.sound) for item in items] == [2, 2, 1, 0]
    assert reasons(rejects, tmp_path) == {
        "chat.jsonl:4": "messages have more places for audio than there are clips",
        "chat.jsonl:5": "messages have fewer places for audio than there are clips",
        "chat.jsonl:6": "messages have no answer of the assistant at the end",
        "chat.jsonl:7": "messages are no list of {role, content}",
        "chat.jsonl:9 (009.flac)": "no such file",
    }
    out = build("instruct", chosen.sources, tmp_path / "out", voices=VOICES, eval_rows=0, validation_rows=0)
    assert not validate(out)["bad"]
    record = json.loads((out / "build.json").read_text())
    assert record["rejects"].pop("AQA: a conversation without audio") == 1 and sum(record["rejects"].values()) == 5
    by_clips = {len(row["audio"]): row for row in built_rows(out) if len(row["messages"]) < 5}
    long = next(row for row in built_rows(out) if len(row["messages"]) == 5)
    places = [[part["type"] for part in message["content"]] for message in long["messages"]]
    assert places == [["text"], ["audio", "text"], ["text"], ["text", "audio", "text"], ["text"]]
    assert (long["target"], long["modality"], long["template_id"], len(long["audio"])) == ("Yes.", "text_audio", "", 2)
    samples = [soundfile.read(io.BytesIO(clip["bytes"]), dtype="int16")[0] for clip in long["audio"]]
    wanted = [soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("002.flac", "001.flac")]
    assert all(np.array_equal(one, other) for one, other in zip(samples, wanted, strict=True))
    assert by_clips[2]["target"] == "The second." and by_clips[1]["messages"][0]["content"][0]["type"] == "audio"


def test_a_block_says_how_much_of_each_task_is_in_instruct(tmp_path: Path):
    json_lines(tmp_path / "rows.jsonl", clips(tmp_path, 144))
    tasks = {"ASR": "text", "SGC": "gender"}
    by_default, asked = (
        only(tmp_path / name, manifest="../rows.jsonl", audio_root="..", tasks=tasks, **more)
        for name, more in (("usual", {}), ("asked", {"in_instruct": {"ASR": 1.0, "SGC": 0.25}}))
    )

    def rows_of(source: Source) -> dict[str, list[str]]:
        corpora: dict[str, list[str]] = defaultdict(list)
        for item in found(source)[0]:
            for fact in item.facts:
                for corpus in corpora_of(source, item, fact, seed=0):
                    corpora[f"{corpus} {fact.task}"].append(item.id)
        return corpora

    usual, wanted = rows_of(by_default), rows_of(asked)
    for name in ("align ASR", "eval ASR", "eval SGC"):
        assert len(wanted[name]) == 144 and wanted[name] == usual[name]
    assert len(usual["instruct ASR"]) < 40 and len(usual["instruct SGC"]) == 144
    assert len(wanted["instruct ASR"]) == 144 and 20 <= len(wanted["instruct SGC"]) <= 52


def test_questions_about_recordings_and_questions_to_be_spoken(tmp_path: Path):
    clips(tmp_path, 2)
    heard = [{"audio": "000.flac", "q": "What is it?", "a": "A tone"}, {"audio": "", "q": "What?", "a": "A tone"}]
    asked = [{"q": "Add", "more": "1 and 2", "a": 3}, {"q": "", "more": "", "a": "x"}, {"q": "Why", "a": ""}]
    columns = {"question": "q", "answer": "a"}
    blocks = {
        "heard": {"manifest": str(json_lines(tmp_path / "heard.jsonl", heard)), "columns": columns},
        "asked": {
            "manifest": str(json_lines(tmp_path / "asked.jsonl", asked)),
            "columns": {**columns, "input": "more"},
        },
    }
    chosen = sources(tmp_path, **{name: {**block, "tasks": {"AQA": "answer"}} for name, block in blocks.items()})
    (items, rejects), (spoken, silent) = map(found, sorted(chosen.sources, key=lambda source: source.name)[::-1])
    assert [(i.facts[0].instruction, i.facts[0].input, i.facts[0].target, len(i.sound)) for i in items + spoken] == [
        ("What is it?", "", "A tone", 1), ("Add", "1 and 2", "3", 0)
    ]  # fmt: skip
    assert reasons(rejects + silent, tmp_path) == {
        "heard.jsonl:2": "no audio", "asked.jsonl:2": "AQA: no question", "asked.jsonl:3": "AQA: no answer"
    }  # fmt: skip


def test_ids_follow_the_row_and_not_its_place(tmp_path: Path):
    rows = clips(tmp_path, 6)
    of_rows = lambda name, given: found(only(tmp_path, manifest=str(json_lines(tmp_path / name, given))))[0]  # noqa: E731
    assert {item.id for item in of_rows("a.jsonl", rows)} == {item.id for item in of_rows("b.jsonl", rows[::-1])}
    given = ["a/c", "甲", "乙", "a b", "a_b", "é1", "ü1"]
    ids = [item.id for item in of_rows("c.jsonl", [rows[0] | {"id": id} for id in given])]
    assert len(set(ids)) == len(given) and ids[0] == "a/c" and all(re.fullmatch(r"[\w./-]+", id, re.A) for id in ids)


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_rejects_with_file_and_line(tmp_path: Path):
    rows = clips(tmp_path, 2)
    broken = ["{not json", "[1]", '{"audio": "000.flac", "text": "caf\xe9"'.encode("latin-1")]
    lines = [json.dumps(row).encode() for row in (
        rows[0] | {"text": " "}, rows[0] | {"audio": "no.flac"}, rows[0] | {"audio": "https://x.org/a.wav"},
        rows[0] | {"audio": None}, rows[0] | {"gender": "robot"}, rows[0] | {"text": ["a"]}, {"audio": 3, "text": "x"},
        rows[0] | {"gender": None}, rows[0] | {"text": math.nan}, rows[0] | {"audio": {"stored": 3}},
        rows[0] | {"id": [1]}, rows[0] | {"id": "x"}, rows[1] | {"id": "x"},
    )]  # fmt: skip
    raw = b"\n".join([*(text.encode() if isinstance(text, str) else text for text in broken), *lines])
    (tmp_path / "rows.jsonl").write_bytes(raw)
    (tmp_path / "rows.tsv").write_text("audio\ttext\tgender\n000.flac\tgood\tf\n000.flac\tbad\n\n001.flac\t\tm\n")
    block = {"manifest": ["rows.jsonl", "rows.tsv"], "tasks": {"ASR": "text", "SGC": "gender"}}
    items, rejects = found(only(tmp_path, **block))
    assert reasons(rejects, tmp_path) == {
        "rows.jsonl:1": "not JSON: Expecting property name enclosed in double quotes",
        "rows.jsonl:2": "not a JSON object",
        "rows.jsonl:3": "text is not UTF-8",
        "rows.jsonl:4": "ASR: no transcript",
        "rows.jsonl:5 (no.flac)": "no such file",
        "rows.jsonl:6 (https://x.org/a.wav)": "audio is an address: download it and name the file",
        "rows.jsonl:7": "no audio",
        "rows.jsonl:8 (robot)": "SGC: label is not among female, male",
        "rows.jsonl:9": "a value that should be text is a list or has columns of its own",
        "rows.jsonl:10": "audio is no path",
        "rows.jsonl:11": "SGC: no label",
        "rows.jsonl:12": "ASR: no transcript",
        "rows.jsonl:13": "audio is no path",
        "rows.jsonl:14": "id: a value that should be text is a list or has columns of its own",
        "rows.jsonl:16": "duplicate id",
        "rows.tsv:3": "not as many cells as the header has",
        "rows.tsv:5": "ASR: no transcript",
    }
    assert [[fact.task for fact in item.facts] for item in items] == [
        ["SGC"],
        ["ASR"],
        ["ASR"],
        ["SGC"],
        ["ASR", "SGC"],
        ["ASR", "SGC"],
        ["SGC"],
    ]


def test_kaldi_lhotse_and_folders_that_do_not_fit_together(tmp_path: Path):
    clips(tmp_path / "a", 3)
    kaldi = tmp_path / "kaldi"
    kaldi.mkdir()
    (kaldi / "wav.scp").write_text("u1 ../a/000.flac\nu2 sph2pipe x |\nu3 ../a/002.flac\nu3 ../a/001.flac\nu5 a b\n")
    (kaldi / "text").write_text("u1 one\nu2 two\nu3\nu4 four\nu1 again\n")
    items, rejects = found(only(tmp_path, manifest="kaldi"))
    assert [item.id for item in items] == ["u1"] and reasons(rejects, tmp_path) == {
        "kaldi/wav.scp:4": "an id of an earlier line",
        "kaldi/text:2": "the recording is a command or lies in an archive: write it to a file",
        "kaldi/text:3": "ASR: no transcript",
        "kaldi/text:4": "no recording",
        "kaldi/text:5": "an id of an earlier line",
        "kaldi: u5": "recording without a transcript",
    }
    (kaldi / "segments").write_text("u1 u1 0.0 0.1\nu3 u3 0.1\n")
    assert "kaldi/segments: u3" in reasons(found(only(tmp_path, manifest="kaldi"))[1], tmp_path)
    recording = {"sources": [{"type": "file", "channels": [0], "source": "a/000.flac"}], "duration": 2}
    said = {"start": 0, "duration": 1, "text": "x"}
    cut = {"type": "MonoCut", "start": 0, "duration": 1, "supervisions": [said], "recording": recording}
    source = {"type": "command", "channels": [0], "source": "sox"}
    cuts = [cut, {"type": "MixedCut", "tracks": []}, cut | {"recording": {"sources": [source], "duration": 1}},
            cut | {"supervisions": []}, cut | {"supervisions": [{"text": "x"}]}]  # fmt: skip
    json_lines(tmp_path / "cuts.jsonl.gz", cuts)
    items, rejects = found(only(tmp_path, manifest="cuts.jsonl.gz"))
    assert [(part.start, part.end) for item in items for part in item.sound] == [(0.0, 1.0)]
    assert [reject.where.rsplit(":")[-1] for reject in rejects] == ["2", "3", "4", "5"]
    (tmp_path / "a/000.txt").write_text("zero\n")
    (tmp_path / "a/001.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a/lonely.txt").write_text("nobody says it")
    items, rejects = found(only(tmp_path, folder="a"))
    assert [item.facts[0].target for item in items] == ["zero"] and reasons(rejects, tmp_path) == {
        "a/001.txt": "text is not UTF-8",
        "a/lonely.txt": "text without a recording",
        "a/002.flac": "ASR: no transcript",
    }


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"manifest": "rows.jsonl", "columns": {"text": "txt"}}, "no column 'txt' .for text.; did you mean text?"),
        (
            {"manifest": "rows.jsonl", "columns": {"speeker": "speaker"}},
            "no task asks for speeker; did you mean speak",
        ),
        ({"manifest": "rows.jsonl", "columns": {"speaker": "who.name"}}, "no column 'who.name'"),
        ({"manifest": "rows.jsonl", "colums": {}}, "unknown option colums; did you mean columns?"),
        ({"manifest": "rows.jsonl", "tasks": {"ASS": "text"}}, "tasks: no task 'ASS'; did you mean "),
        ({"manifest": "rows.jsonl", "tasks": {"EIE": "text"}}, "say which variant of EIE"),
        ({"manifest": "rows.jsonl", "tasks": {"ER": "gender"}}, "tasks: ER: say its labels, as `values: .gender:"),
        ({"manifest": "rows.jsonl", "tasks": {"AQA": "text"}}, "no column 'question'"),
        ({"manifest": "rows.jsonl", "values": {"gendr": ["a"]}}, "values: gendr is no column"),
        (
            {"manifest": "rows.jsonl", "values": {"text": {True: "a"}}},
            "values: text: True is not text: put it in quot",
        ),
        ({"manifest": "rows.jsonl", "license": 4}, "license: 4 is not text"),
        ({"manifest": "rows.jsonl", "shared": ["voice"]}, "shared: 'voice' is neither sentence nor speaker"),
        ({"manifest": "rows.jsonl", "eval_share": 2}, "eval_share: 2 is not between 0 and 1"),
        ({"manifest": "rows.jsonl", "in_instruct": {"ASR": 2}}, "in_instruct: ASR: 2 is no share; give a number"),
        ({"manifest": "rows.jsonl", "in_instruct": {"SGC": 1}}, "in_instruct: 'SGC' is none of the tasks ASR"),
        ({"manifest": "rows.jsonl", "joined": 2}, "joined: 2 is no share; give a number between 0 and 1"),
        ({"manifest": "rows.jsonl", "joined": 0.5, "tasks": {"SGC": "gender"}}, "joined: clips are joined with their"),
        ({"manifest": "rows.jsonl", "spoken": 1}, "spoken: 1 is not true or false"),
        ({"folder": "a", "spoken": True}, "spoken: a `folder:` holds recordings; write the texts in a manifest"),
        (
            {"manifest": "rows.jsonl", "spoken": True, "audio_root": "a"},
            "audio_root: texts that are to be spoken have",
        ),
        (
            {"manifest": "rows.jsonl", "spoken": True, "tasks": {"SGC": "gender"}},
            "tasks: SGC asks about a voice or a sound, and a text that is to be spoken has none",
        ),
        ({"manifest": "rows.jsonl", "spoken": True, "columns": {"text": "txt"}}, "no column 'txt' .for text."),
        ({"manifest": "rows.jsonl", "folder": "."}, "manifest and folder: a block reads one of them"),
        ({"manifest": {"dev": "rows.jsonl"}}, "manifest: no split 'dev'"),
        ({"manifest": {3: "rows.jsonl"}}, "manifest: no split 3; there are train"),
        ({"manifest": {None: "rows.jsonl"}}, "manifest: no split None; there are train"),
        ({"manifest": {}}, "manifest: say a path, a list of paths"),
        ({"manifest": {"train": "rows.jsonl", "test": "./rows.jsonl"}}, "manifest: rows.jsonl is named twice"),
        ({"manifest": "rows.txt"}, "rows.txt is no manifest: its name ends in none of"),
        ({"manifest": "other.jsonl"}, "no such file: .*other.jsonl"),
        ({"manifest": "."}, "a folder without wav.scp and text, so not Kaldi's. For audio beside texts say `folder"),
        ({"folder": "nowhere"}, "no such folder: .*nowhere"),
        ({"manifest": "rows.jsonl.gz"}, "rows.jsonl.gz is not a whole gzip file"),
    ],
)
def test_a_block_that_cannot_be_read_is_one_line_with_the_remedy(tmp_path: Path, capsys, block, said):
    json_lines(tmp_path / "rows.jsonl", clips(tmp_path, 1))
    (tmp_path / "rows.txt").write_text("")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 99)[:-9])
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"sources": {"own": block}}))
    assert main(["data", "plan", "align", "--sources", str(tmp_path / "sources.yaml")]) == 2
    error = capsys.readouterr().err
    assert re.search(f"sources.yaml: sources: own: .*{said}", error) and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("a.csv", 'audio,text\n000.flac,"one\n000.flac,two\n', "a.csv:3: unexpected end of data; write a quote"),
        ("a.csv", 'audio,text\n000.flac,"one\n000.flac,"two\n', "a.csv:3: .*; write a quote within a cell twice"),
        ("a.csv", "audio;text\n000.flac;one\n", "a.csv: its first line has ';' between columns; write .csv with comm"),
        ("a.tsv", "audio,text\n000.flac,one\n", "a.tsv: its first line has ',' between columns; write .tsv with tabs"),
        ("a.csv", "000.flac,one\n000.flac,two\n", "a.csv: its first line holds the recording 000.flac; write a line"),
    ],
)
def test_a_table_that_would_lose_rows_is_refused(tmp_path: Path, capsys, name: str, rows: str, said: str):
    clips(tmp_path, 1)
    (tmp_path / name).write_text(rows)
    (tmp_path / "sources.yaml").write_text(f"sources: {{own: {{manifest: {name}}}}}")
    for command in (["plan", "align", "--sources", str(tmp_path / "sources.yaml")],
                    ["sources", "--inspect", str(tmp_path / name)]):  # fmt: skip
        assert main(["data", *command]) == 2
        assert re.search(said, capsys.readouterr().err)


def test_a_folder_without_data_is_named(tmp_path: Path, capsys):
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "readme.md").write_text("x")
    assert main(["data", "sources", "--inspect", str(tmp_path / "junk")]) == 2
    assert "junk: no files that load_dataset reads" in capsys.readouterr().err


def test_an_inspected_block_holds_nothing_that_the_rows_say(tmp_path: Path, capsys):
    pairs = zip(clips(tmp_path, 2), ("a\nevil: 1", "b\rworse: 2"), strict=True)
    rows = [row | {"mood\nx": label} for row, label in pairs]
    json_lines(tmp_path / "rows.jsonl", rows)
    assert main(["data", "sources", "--inspect", str(tmp_path / "rows.jsonl")]) == 0
    assert list(yaml.safe_load(capsys.readouterr().out)) == ["sources"]


# --- counted ---------------------------------------------------------------------------------------------------------

PATHS = st.sampled_from(["000.flac", "001.flac", "short.flac", "silent.flac", "no.flac", "text.flac", "", None, 7])
TEXTS = st.one_of(st.sampled_from(["amber birch", "Amber, birch!", "", " ", None]), st.text(max_size=8), st.integers())
SECONDS = st.one_of(st.none(), st.floats(), st.sampled_from([0, 0.05, "0.1", "x", -1, 99]))
ROWS = st.one_of(
    st.fixed_dictionaries(
        {"audio": PATHS, "text": TEXTS},
        optional={
            "speaker": st.sampled_from(["ann", "bob", "cid", None, 4]),
            "gender": st.sampled_from(["m", "Female", "robot", "", None]),
            "start": SECONDS,
            "end": SECONDS,
            "duration": SECONDS,
            "split": st.sampled_from(["train", "dev", "test", "", "other"]),
            "id": st.sampled_from(["a", "b", "c/d", "é", ""]),
        },
    ),
    st.sampled_from(["{", "[]", "null", '{"audio": "000.flac", "text": "\\ud800"}', ""]),
)


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings good and bad; the last good one is for a row that every build has, and drawn for no other."""
    folder = tmp_path_factory.mktemp("heard")
    clips(folder, 3)
    soundfile.write(folder / "short.flac", np.zeros(0), 16_000)
    soundfile.write(folder / "silent.flac", np.zeros(1600), 16_000)
    (folder / "text.flac").write_text("no audio")
    return folder


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=30), eval_rows=st.integers(0, 8), limit=st.sampled_from([None, 4]))
def test_every_row_of_a_manifest_is_accounted_for(heard: Path, tmp_path_factory, rows, eval_rows, limit):
    """Offered = built + rejected + dropped + held back (+ left out by the limit), whatever the manifest holds."""
    folder = tmp_path_factory.mktemp("rows")
    good = {"audio": "002.flac", "text": "always here", "speaker": "zed", "gender": "f", "split": "train"}
    manifest = str(json_lines(folder / "rows.jsonl", [*rows, good]))
    block = {"manifest": manifest, "audio_root": str(heard), "tasks": {"ASR": "text", "SGC": "gender"}}
    chosen = sources(folder, own=block)
    items = list(chosen.sources[0].items())
    numbers = {int(item.where.split(" ")[0].rsplit(":", 1)[1]) for item in items}
    lines = Path(manifest).read_text().split("\n")
    assert numbers == {number for number, line in enumerate(lines, start=1) if line.strip()}
    options = {"eval_rows": eval_rows, "validation_rows": 2, "voices": VOICES, "limit": limit}
    out = build("align", chosen.sources, folder / "out", **options)
    record = json.loads((out / "build.json").read_text())
    left_out = sum(sum(record[name].values()) for name in ("rejects", "dropped", "held_back"))
    assert record["offered"] == record["rows"] + left_out + record["beyond_limit"]
    asked = sum(isinstance(item, Reject) or any(fact.task == "ASR" for fact in item.facts) for item in items)
    assert record["offered"] == asked or limit
    listed = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert len(listed) == sum(record["rejects"].values()) and all(entry["where"] for entry in listed)
    assert json.loads((out / "leakage.json").read_text())["clean"]
    shutil.rmtree(folder)


def test_short_clips_of_one_speaker_stand_in_longer_ones_as_well(tmp_path: Path):
    rows = [
        row | {"speaker": f"p{number % 3}" if number % 8 else None, "split": "test" if number % 4 == 1 else "train"}
        for number, row in enumerate(clips(tmp_path, 96))
    ]
    json_lines(tmp_path / "rows.jsonl", rows)
    seconds = {row["audio"]: soundfile.info(tmp_path / row["audio"]).duration for row in rows}
    by_clip = {row["audio"]: row for row in rows}
    source = only(tmp_path, manifest="rows.jsonl", joined=1.0, in_instruct={"ASR": 0.5})
    items, _ = found(source)
    joined = [item for item in items if len(item.sound) > 1]
    assert len(items) == 96 + len(joined) and len({item.id for item in items}) == len(items)
    used = []
    for item in joined:
        parts = [by_clip[Path(sound.path).name] for sound in item.sound]
        used += [part["audio"] for part in parts]
        assert {(item.speaker, item.split)} == {(part["speaker"], part["split"]) for part in parts}
        (fact,) = item.facts
        assert fact.target == " ".join(part["text"] for part in parts) and "eval" not in fact.corpora
        pauses = PAUSE_S * (len(parts) - 1)
        assert sum(seconds[part["audio"]] for part in parts) + pauses <= joined_clips.LONGEST_S
        keys = keys_of(source, item, "")
        assert {sentence_key(part["text"]) for part in parts} <= set(keys["sentence"])
        assert len(keys["recording"]) == len(parts)
    assert len(used) == len(set(used)) and set(used) <= {row["audio"] for row in rows if row["speaker"]}
    corpora = Counter(fact.corpora for item in joined for fact in item.facts)
    assert corpora.keys() == {("align",), ("align", "instruct")}
    assert found(source)[0] == items  # nothing is drawn anew
    half, _ = found(only(tmp_path / "half", manifest="../rows.jsonl", audio_root="..", joined=0.5))
    assert 0 < sum(len(item.sound) for item in half if len(item.sound) > 1) < len(used)


def test_a_joined_clip_is_its_recordings_with_short_pauses(tmp_path: Path):
    rows = [row | {"speaker": "p", "split": "train"} for row in clips(tmp_path, 12)]
    json_lines(tmp_path / "rows.jsonl", rows)
    source = only(tmp_path, manifest="rows.jsonl", joined=1.0)
    out = build("align", [source], tmp_path / "out", voices=VOICES, eval_rows=0, validation_rows=0)
    assert not validate(out)["bad"]
    long = next(row for row in built_rows(out) if "-joined-" in row["id"])
    (item,) = [item for item in found(source)[0] if len(item.sound) > 1 and item.id in long["id"]]
    heard = soundfile.read(io.BytesIO(long["audio"][0]["bytes"]), dtype="int16")[0]
    first, last = (soundfile.read(item.sound[place].path, dtype="int16")[0] for place in (0, -1))
    assert np.array_equal(heard[: len(first)], first) and np.array_equal(heard[-len(last) :], last)
    pause = heard[len(first) : len(first) + round(PAUSE_S * 16_000)]
    assert len(pause) and not pause.any()


def test_the_build_speaks_texts_that_have_no_recording(tmp_path: Path):
    """In a voice, a rate and a pitch that are drawn by row; the transcript may be another column than the text."""
    rows = [{"text": f"{word.title()}, {n}!", "said": f"{word} {n}"} for n, word in enumerate(WORDS[:8] * 3)]
    json_lines(tmp_path / "texts.jsonl", [*rows, {"said": "no text"}, {"text": "Hi", "audio": "a.wav", "said": "hi"}])
    block = {"manifest": {"train": "texts.jsonl"}, "spoken": True, "tasks": {"ASR": "said"}, "joined": 1.0}
    undivided = only(tmp_path, **block | {"manifest": "texts.jsonl"})
    assert not [item for item in found(undivided)[0] if len(item.sound) > 1]  # each text may get another split
    source = only(tmp_path, **block)
    items, rejects = found(source)
    assert reasons(rejects, tmp_path) == {
        "texts.jsonl:25": "no text",
        "texts.jsonl:26": "audio of a text that is to be spoken: write such rows in a block without `spoken`",
    }
    joined = [item for item in items if len(item.sound) > 1]
    assert [sound for item in items[:1] for sound in item.sound] == [Speech("Amber, 0!")] and joined
    settings: dict[str, Any] = {"voices": {"train": ["en-us+f1", "en+m2"]}, "eval_rows": 0, "validation_rows": 0}
    out = build("align", [source], tmp_path / "out", **settings)
    assert not validate(out)["bad"] and json.loads((out / "build.json").read_text())["sources"]["own"]["synthetic"]
    built = built_rows(out)
    assert len(built) == len(items)
    assert {row["target"] for row in built} >= {row["said"] for row in rows}
    assert {row["voice"] for row in built} == {"en-us+f1", "en+m2"} and {row["speaker"] for row in built} == {""}
    assert len({len(row["audio"][0]["bytes"]) for row in built}) > len(rows) / 2
    long = next(row for row in built if "-joined-" in row["id"])
    (item,) = [item for item in joined if item.id in long["id"]]
    said = " ".join(sound.text.lower() for sound in item.sound if isinstance(sound, Speech))
    assert long["target"].split() == re.findall(r"\w+", said)
    again = build("align", [only(tmp_path, **block)], tmp_path / "again", **settings)
    assert built_rows(again) == built


def test_spoken_texts_can_have_tasks_about_their_words(tmp_path: Path):
    """An intent, and a closed task of one's own, which counts as paralinguistic unless it says otherwise."""
    json_lines(tmp_path / "texts.jsonl", [{"text": "call me at once", "intent": "call", "urgency": "high"}])
    (tmp_path / "urgency.txt").write_text("How urgent is it, {choices}?\n")
    urgency = {"kind": "closed", "labels": ["low", "high"], "instructions": "urgency.txt"}
    tasks = {"IP": "intent", "URGENCY": "urgency"}
    block = {"manifest": {"train": "texts.jsonl"}, "spoken": True, "tasks": tasks}
    source = sources(tmp_path, {"tasks": {"URGENCY": urgency}}, own=block).sources[0]
    (item,) = found(source)[0]
    assert [(fact.task, fact.target) for fact in item.facts] == [("IP", "call"), ("URGENCY", "high")]
    assert item.sound == (Speech("call me at once"),)


def test_texts_without_recordings_are_told_how_to_be_spoken(tmp_path: Path, capsys):
    json_lines(tmp_path / "texts.jsonl", [{"text": "her spirits rose"}])
    with pytest.raises(ValueError, match="no column 'audio' .*; for texts without recordings say `spoken: true`"):
        only(tmp_path, manifest="texts.jsonl")
    assert main(["data", "sources", "--inspect", str(tmp_path / "texts.jsonl")]) == 0
    assert "no column names recordings; with `spoken: true` the build speaks the texts" in capsys.readouterr().out


def test_texts_that_cannot_be_built_are_listed_by_file_and_line(tmp_path: Path):
    """Those that only building shows, too: a text that is spoken too long, or in which nothing is said."""
    texts = ["one sentence", "<audio> is a mark", "\ud800", "on and on " * 200, "...", "another sentence"]
    rows = [{"text": text} for text in texts] + [{"text": "twice", "id": "k", "split": split} for split in SPLITS]
    json_lines(tmp_path / "texts.jsonl", rows)
    source = only(tmp_path, manifest="texts.jsonl", spoken=True, joined=1.0)
    voices = {"train": ["en-us+f1"], "validation": ["en+m2"], "test": ["en+m3"]}
    settings: dict[str, Any] = {"voices": voices, "eval_rows": 0, "validation_rows": 0}
    out = build("align", [source], tmp_path / "out", **settings)
    listed = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert {one["where"]: one["reason"] for one in listed} == {
        "texts.jsonl:2": "text holds <audio>, which stands for a recording",
        "texts.jsonl:3": "text is not Unicode",
        "texts.jsonl:4": "longer than 30 s",
        "texts.jsonl:5": "the recording is silent",
        "texts.jsonl:8": "duplicate id",
        "texts.jsonl:9": "duplicate id",
    }
    assert not validate(out)["bad"]


def test_a_build_whose_rows_are_all_bad_names_the_first(tmp_path: Path):
    json_lines(tmp_path / "texts.jsonl", [{"text": "hi", "speaker": "p"}] * 2)
    source = only(tmp_path, manifest="texts.jsonl", spoken=True)
    with pytest.raises(ValueError, match=r"; 2 rejected, the first at .*texts\.jsonl:1: speaker of a text"):
        build("align", [source], tmp_path / "out", voices={"train": ["en-us+f1"]})


def test_a_manifest_that_has_changed_is_not_built_into_the_same_folder(tmp_path: Path):
    """Its new rows would be left out in silence, and the three corpora could differ."""
    rows = [{"text": f"{word} spoke"} for word in WORDS[:4]]
    json_lines(tmp_path / "texts.jsonl", rows)
    block: dict[str, Any] = {"manifest": {"train": "texts.jsonl"}, "spoken": True}
    settings: dict[str, Any] = {"voices": {"train": ["en-us+f1"]}, "eval_rows": 0, "validation_rows": 0}
    out = build("align", [only(tmp_path, **block)], tmp_path / "out", **settings)
    assert build("align", [only(tmp_path, **block)], tmp_path / "out", **settings) == out
    json_lines(tmp_path / "texts.jsonl", [*rows, {"text": "one more"}])
    with pytest.raises(ValueError, match=r"texts\.jsonl is not as it was when .* was planned: choose another"):
        build("align", [only(tmp_path, **block)], tmp_path / "out", **settings)


def test_two_variants_of_one_task_in_a_row_are_no_duplicates(tmp_path: Path):
    rows = [row | {"accent": "Telugu", "region": "South Asia"} for row in clips(tmp_path, 2)]
    tasks = {"AC.fine": "accent", "AC.coarse": "region"}
    values = {"accent": ["Telugu", "Tamil"], "region": ["South Asia", "East Asia"]}
    manifest = str(json_lines(tmp_path / "rows.jsonl", rows))
    items, rejects = found(only(tmp_path, manifest=manifest, tasks=tasks, values=values))
    assert not rejects and [{fact.granularity for fact in item.facts} for item in items] == [{"fine", "coarse"}] * 2


def test_the_tables_of_a_kaldi_folder_are_its_manifests_and_other_files_are_not(tmp_path: Path):
    rows = clips(tmp_path / "audio", 4)
    block = as_kaldi(tmp_path, tmp_path / "audio", rows)
    folder = tmp_path / str(block["manifest"])
    listed = {path.name for path in only(tmp_path, **block).manifests}
    assert {"wav.scp", "text"} <= listed
    (folder / "notes.txt").write_text("mine")
    assert {path.name for path in only(tmp_path, **block).manifests} == listed
    (folder / "spk2gender").unlink()
    fewer = only(tmp_path, **block | {"tasks": {"ASR": "text"}})
    assert {path.name for path in fewer.manifests} == listed - {"spk2gender"}


def test_json_lines_may_begin_with_a_list(tmp_path: Path):
    rows = clips(tmp_path, 1)
    items, rejects = found(only(tmp_path, manifest=str(json_lines(tmp_path / "rows.jsonl", ["[1]", *rows]))))
    assert len(items) == 1 and reasons(rejects, tmp_path) == {"rows.jsonl:1": "not a JSON object"}
