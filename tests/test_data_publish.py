"""Validation, publishing against a real HTTP server with the real client, and the authors' release both ways."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer, serve
from tiny_corpus import SOURCE, VOICES, write_recordings

from dataset_scripts.build import build
from dataset_scripts.release import export_release, import_release
from dataset_scripts.schema import FEATURES
from dataset_scripts.validate import faults_of, validate
from modeling_llaso.cli import main

SETTINGS = {"voices": VOICES, "rows_per_shard": 20, "eval_rows": 30, "validation_rows": 10}


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


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]


# --- validation -------------------------------------------------------------------------------------------------


def test_a_good_corpus_is_good(corpus: Path):
    before = {f: f.read_bytes() for f in corpus.glob("data/*/*")}
    assert main(["data", "validate", str(corpus), "--examples", "3"]) == 0
    report = json.loads((corpus / "validation.json").read_text())
    assert report["rows"] == len(rows_of(corpus)) and report["bad"] == 0 and not report["reasons"]
    assert sum(report["seconds"].values()) == report["rows"]
    assert sum(count for labels in report["labels"].values() for count in labels.values()) == report["rows"]
    page = (corpus / "validation.html").read_text()
    assert page.count("<audio ") == 3 and "http" not in page and "Hours per source" in page
    pitches = Counter(int(row["target"]) // 10 for row in rows_of(corpus) if row["task"] == "PP")
    assert list(report["labels"]["PP"].items()) == [(f"{t}0 to {t}9", pitches[t]) for t in sorted(pitches)]
    assert {f: f.read_bytes() for f in corpus.glob("data/*/*")} == before


def test_bad_rows_are_set_aside_with_their_reasons(corpus: Path):
    import io

    import numpy as np
    import soundfile

    def flac(samples, rate: int = 16_000) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format="FLAC")
        return buffer.getvalue()

    before = (corpus / "README.md").read_text()
    file = sorted(corpus.glob("data/text_audio/train-paralinguistic-*.parquet"))[0]
    good = pq.read_table(file).to_pylist()
    held = next(row for row in rows_of(corpus) if row["split"] == "validation" and row["speaker"])
    blank = {"role": "user", "content": [{"type": "text", "text": " "}]}
    square = np.sign(np.sin(np.arange(16_000) * 0.1))
    spoiled = {
        "undecodable audio": {"audio": [{"bytes": b"fLaC broken", "path": "x"}]},
        "silent audio": {"audio": [{"bytes": flac(np.zeros(16_000)), "path": "x"}], "duration": 1.0},
        "clipped audio": {"audio": [{"bytes": flac(square), "path": "x"}], "duration": 1.0},
        "audio format": {"audio": [{"bytes": flac(0.1 * square, 8_000), "path": "x"}], "duration": 2.0},
        "duration": {"duration": 99.0},
        "empty text": {"messages": [blank, good[0]["messages"][1]]},
        "target not among choices": {"choices": ["left", "right"]},
        "audio count": {"audio": []},
        "no audio": {"audio": [{"bytes": None, "path": "x"}]},
        "unknown task": {"task": "XYZ"},
        "target is not the last answer": {"target": "something else"},
        "empty target": {"target": ""},
        "speaker also held out": {"speaker": held["speaker"]},
    }
    rows = [*good]
    for n, change in enumerate(spoiled.values()):
        rows.append({**good[0], "id": f"bad/{n}/SGC", "sha256": f"{n}", **change})
    rows.append({**good[0]})
    rows.append({**good[1], "id": "bad/again/SGC"})
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), file)
    assert main(["data", "validate", str(corpus), "--dry-run"]) == 1
    assert len(pq.read_table(file)) == len(rows)
    report = validate(corpus)
    assert set(spoiled) | {"duplicate id", "duplicate audio"} <= set(report["reasons"])
    assert report["bad"] == len(spoiled) + 2
    listed = [json.loads(line) for line in (corpus / "set_aside.jsonl").read_text().splitlines()]
    assert len(listed) == report["bad"] and all(entry["reason"] for entry in listed)
    assert pq.read_table(file).to_pylist() == good
    assert len(pq.read_table(corpus / ".build/set_aside/text_audio" / file.name)) == report["bad"]
    # The record and the card say what is left, and name the new content.
    record = json.loads((corpus / "build.json").read_text())
    assert record["rows"] == len(rows_of(corpus)) == sum(entry["rows"] for entry in record["counts"].values())
    for name, shard in record["shards"].items():
        modality, rest = name.split(".", 1)
        assert sha256((corpus / "data" / modality / f"{rest}.parquet").read_bytes()).hexdigest() == shard["sha256"]
    card = (corpus / "README.md").read_text()
    assert f"{report['bad']} rows were set aside by validation" in card and card != before
    assert validate(corpus)["bad"] == 0 and (corpus / "README.md").read_text() == card


def test_a_disk_that_is_full_while_rows_are_taken_out(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    """The shard stays as it was, and nothing lies beside it."""
    file = sorted(corpus.glob("data/text_audio/train-*.parquet"))[0]
    rows = pq.read_table(file).to_pylist()
    rows[0]["target"] = ""
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), file)
    before, write = file.read_bytes(), pq.write_table

    def full(table: pa.Table, where: Path, **options) -> None:
        write(table, where, **options)
        if str(where).endswith(".part"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("dataset_scripts.validate.pq.write_table", full)
    with pytest.raises(OSError, match="No space left"):
        validate(corpus)
    assert file.read_bytes() == before and not list(corpus.rglob("*.part"))


def test_validation_needs_a_corpus(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no corpus"):
        validate(tmp_path)
    (tmp_path / "data/audio").mkdir(parents=True)
    (tmp_path / "data/audio/train-00000-of-00001.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ValueError, match="is no shard of this schema"):
        validate(tmp_path)


def test_every_built_row_is_sound(built: Path):
    assert [fault for row in rows_of(built) for fault in faults_of(row)] == []


# --- publishing ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path):
    with serve(tmp_path / "hub") as server:
        yield server


def llaso(hub: HubServer, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python or the command in a process of its own, whose Hub is the local one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {
        **kept, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_local", "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=180)


@pytest.mark.slow
def test_publish_is_cut_goes_on_and_is_read(corpus: Path, hub: HubServer, tmp_path: Path):
    command = ("-m", "modeling_llaso.cli", "data", "publish", str(corpus), "owner/llaso-instruct")
    hub.cut_after(2)
    first = llaso(hub, tmp_path, *command)
    assert first.returncode != 0, first.stdout
    assert len(hub.uploads) >= 2 and not hub.repos["datasets/owner/llaso-instruct"][-1]["files"]
    before = len(hub.uploads)
    hub.cut_after(None)
    second = llaso(hub, tmp_path, *command)
    assert second.returncode == 0, second.stderr
    assert "datasets/owner/llaso-instruct" in second.stdout
    # What had arrived is not sent again, and every large file arrived once.
    parquet = {str(f.relative_to(corpus)) for f in corpus.glob("data/*/*.parquet")}
    assert len(hub.uploads) > before and max(Counter(hub.uploads).values()) == 1
    files = hub.files("datasets/owner/llaso-instruct")
    assert parquet <= set(files) and {"README.md", "build.json", "leakage.json"} <= set(files)
    assert not any(path.startswith(".build") for path in files)
    assert b'load_dataset("owner/llaso-instruct", "text_audio"' in files["README.md"]
    assert all(files[path] == (corpus / path).read_bytes() for path in parquet)
    script = (
        "from datasets import load_dataset; "
        "rows = load_dataset('owner/llaso-instruct', 'text_audio', split='train', streaming=True); "
        "row, kind = next(iter(rows)), type(rows.features['audio'].feature).__name__; "
        "print(row['modality'], len(row['audio'][0]['bytes']), kind)"
    )
    read = llaso(hub, tmp_path, "-c", script)
    assert read.returncode == 0, read.stderr[-2000:]
    modality, size, kind = read.stdout.split()
    assert modality == "text_audio" and int(size) > 100 and kind == "Audio"


def test_closed_sources_are_refused(tmp_path: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]):
    source = replace(SOURCE, license="Not to be shared").at(write_recordings(tmp_path / "tiny"))
    closed = replace(source, options={"notes": 0, "questions": 0})
    out = build("align", [closed], tmp_path / "closed", **SETTINGS)
    assert main(["data", "publish", str(out), "owner/closed"]) == 2
    assert "tiny (Not to be shared)" in capsys.readouterr().err and not hub.repos
    command = ("-m", "modeling_llaso.cli", "data", "publish", str(out), "owner/closed")
    done = llaso(hub, tmp_path, *command, "--manifest-only", "--private")
    assert done.returncode == 0, done.stderr
    assert hub.private == {"datasets/owner/closed"}
    files = hub.files("datasets/owner/closed")
    assert b"manifest" in files["README.md"]
    published = [row for path, data in files.items() if path.endswith(".parquet") for row in _read(data)]
    original = rows_of(out)
    assert len(published) == len(original)
    assert all(clip["bytes"] is None and clip["path"] for row in published for clip in row["audio"])
    assert {row["sha256"] for row in published} == {row["sha256"] for row in original}


def _read(data: bytes) -> list[dict]:
    return pq.read_table(pa.BufferReader(data)).to_pylist()


def test_unfinished_corpora_are_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "publish", str(tmp_path), "owner/x"]) == 2
    assert "no finished corpus" in capsys.readouterr().err


# --- the release --------------------------------------------------------------------------------------------------


def turn(prompt: str, answer: str = "Yes.") -> list[dict]:
    return [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]


def test_release_round_trip_keeps_every_field(tmp_path: Path):
    files = {
        "text_audio/vctk_gender_classification.json": [
            {
                "voice": ["vctk\\p1\\a.flac"],
                "metadata": {"age": 24, "score": 1.5},
                "conversations": turn("Who?\n<audio>"),
            },
            {"voice": "b.wav", "conversations": turn("Which: a or b? <audio> ")},
        ],
        "audio_text/dolly.json": {
            "id": 3,
            "voice": ["c.wav"],
            "conversations": turn("<audio>the text"),
            "extra": None,
        },
        "pure_audio/asr.json": [
            {
                "voice": ["d.wav", "e.wav"],
                "conversations": [*turn("<audio><audio>", "One."), *turn("And then?", "Two.")],
                "meta-data": {"é": [1, {"x": False}]},
            }
        ],
    }
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(json.dumps(content))
    report = import_release(tmp_path / "in", tmp_path / "corpus", audio_root=None)
    assert report["rows"] == 4 and not report["rejects"]
    rows = {row["id"]: row for row in rows_of(tmp_path / "corpus")}
    row = rows["text_audio/vctk_gender_classification/00000001"]
    assert (row["task"], row["modality"], row["target"]) == ("SGC", "text_audio", "Yes.")
    assert row["audio"] == [{"bytes": None, "path": "vctk\\p1\\a.flac"}]
    assert [m["role"] for m in rows["pure_audio/asr/00000001"]["messages"]] == ["user", "assistant"] * 2
    checked = validate(tmp_path / "corpus")
    assert checked["bad"] == 0 and checked["notes"][0].startswith("a manifest")
    assert rows["audio_text/dolly/00000001"]["messages"][0]["content"][0]["type"] == "audio"
    assert export_release(tmp_path / "corpus", tmp_path / "back") == 4
    for name, content in files.items():
        back = json.loads((tmp_path / "back" / name).read_text())
        assert back == (content if isinstance(content, list) else [content])


def test_release_with_audio(tmp_path: Path):
    root = write_recordings(tmp_path / "audio/deep", 3).parent
    outside = write_recordings(tmp_path / "outside", 1)
    (root / "link.wav").symlink_to(outside / "000.wav")
    voices = [
        "deep\\000.wav", "deep/001.wav", "../outside/000.wav", "deep/../../outside/000.wav", str(outside / "000.wav"),
        "C:\\x.wav", "link.wav", "deep/009.wav", ["deep/000.wav", "deep/001.wav"], 7, None,
    ]  # fmt: skip
    rows = [{"voice": voice, "conversations": turn("What?<audio>")} for voice in voices]
    rows += [{"voice": "deep/002.wav"}, {"voice": "deep/002.wav", "conversations": turn("What?<audio>", " ")}]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/voxceleb_gender_test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{oops")
    report = import_release(tmp_path / "in", tmp_path / "corpus", audio_root=root)
    assert report["rejects"] == {
        "the path climbs out of the audio root": 5,
        "no such audio file": 1,
        "1 <audio> for 2 audio files": 1,
        "1 <audio> for 0 audio files": 2,
        "conversations are missing, or are no list of {from, value}": 1,
        "no answer": 1,
        next(reason for reason in report["rejects"] if reason.startswith("not JSON")): 1,
    }
    found = rows_of(tmp_path / "corpus")
    assert [row["split"] for row in found] == ["test", "test"] and all(row["duration"] == 0.2 for row in found)
    assert [fault for row in found for fault in faults_of(row)] == []


def test_our_rows_as_a_release_and_back(built: Path, tmp_path: Path):
    """Rows built here, exported with their audio and imported again, ask and answer the same."""
    count = export_release(built, tmp_path / "release")
    report = import_release(tmp_path / "release", tmp_path / "back", audio_root=tmp_path / "release/audio")
    assert report["rows"] == count == len(rows_of(built)) and not report["rejects"]

    def asked(rows: list[dict]) -> Counter:
        return Counter((json.dumps(row["messages"]), row["modality"], round(row["duration"], 3)) for row in rows)

    assert asked(rows_of(tmp_path / "back")) == asked(rows_of(built))


def test_released_outputs_round_trip(official_outputs: Path, tmp_path: Path):
    """Every row of LLaSO-Base's 44 published files comes back as it was."""
    folder = official_outputs / "LLaSO-Base"
    command = ["data", "import-release", str(folder), "--without-audio", "--corpus", "eval"]
    assert main([*command, "--out", str(tmp_path / "in")]) == 0
    export_release(tmp_path / "in", tmp_path / "back")
    files = sorted(folder.glob("*.json"))
    assert len(files) >= 44
    for file in files:
        assert json.loads((tmp_path / "back" / file.name).read_text()) == json.loads(file.read_text()), file.name
    tasks = {row["source"]: row["task"] for row in rows_of(tmp_path / "in")}
    manifest = json.loads((official_outputs.parent / "golden" / "eval_manifest.json").read_text())
    for name, entry in manifest.items():
        if name != "_meta":
            assert tasks[name.removesuffix("_test")] == entry["task"], name


def test_broken_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="no .json"):
        import_release(tmp_path / "in", tmp_path / "out", audio_root=None)
    whole = json.dumps([{"voice": "a", "conversations": turn("<audio>")}] * 50)
    (tmp_path / "in/a.json").write_text(whole[:-30])
    command = ["data", "import-release", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main([*command, "--without-audio"]) == 2
    assert "a.json" in capsys.readouterr().err and not list(tmp_path.glob("out/data/*/*"))
    (tmp_path / "in/a.json").write_text("")
    assert main([*command, "--without-audio"]) == 2
    assert "is empty" in capsys.readouterr().err
    assert main(command) == 2
    assert "--audio-root" in capsys.readouterr().err
