"""The authors' release both ways: every field comes back, hostile files do no harm, and memory does not grow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.tiny_corpus import DYING, SOURCE, VOICES, write_recordings

from dataset_scripts import release_import
from dataset_scripts.build import build
from dataset_scripts.checks import faults_of
from dataset_scripts.release import RELEASE_FEATURES
from dataset_scripts.release_export import export_release
from dataset_scripts.release_import import import_release
from dataset_scripts.validate import validate
from llaso.cli import main

SETTINGS = {"voices": VOICES, "rows_per_shard": 20, "eval_rows": 30, "validation_rows": 10}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaSO-Instruct of the tiny source, not to be changed."""
    root = tmp_path_factory.mktemp("built")
    source = SOURCE.at(write_recordings(root / "tiny"), notes=12, questions=6)
    return build("instruct", [source], root / "llaso-instruct", clips=root / "clips", **SETTINGS)


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]


def turn(prompt: Any, answer: Any = "Yes.") -> list[dict]:
    return [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


# --- there and back -----------------------------------------------------------------------------------------------


def test_round_trip_keeps_every_field(tmp_path: Path):
    files = {
        "text_audio/vctk_gender_classification.json": [
            {
                "voice": ["vctk\\p1\\a.flac"],
                "metadata": {"age": 24, "score": 1.5},
                "conversations": turn("Who?\n<audio>"),
            },
            {"voice": "b.wav", "conversations": turn("Which: a or b? <audio> ")},
        ],
        "audio_text/dolly.json": {"id": 3, "voice": ["c.wav"], "conversations": turn("<audio>the text"), "x": None},
        "pure_audio/asr.json": [
            {
                "voice": ["d.wav", "e.wav"],
                "conversations": [*turn("<audio><audio>", "One."), *turn("And then?", "Two.")],
                "meta-data": {"é": [1, {"x": False}]},
            }
        ],
    }
    report = import_release(write(tmp_path / "in", files), tmp_path / "corpus", audio_root=None)
    assert report["rows"] == 4 and not report["rejects"]
    rows = {row["id"]: row for row in rows_of(tmp_path / "corpus")}
    row = rows["text_audio/vctk_gender_classification/00000001"]
    assert (row["task"], row["modality"], row["target"]) == ("SGC", "text_audio", "Yes.")
    assert row["audio"] == [{"bytes": None, "path": "vctk\\p1\\a.flac"}]
    assert [m["role"] for m in rows["pure_audio/asr/00000001"]["messages"]] == ["user", "assistant"] * 2
    checked = validate(tmp_path / "corpus")
    assert checked["found"] == 0 and checked["notes"][0].startswith("a manifest")
    assert checked["labels"]["SGC"] == {"Yes.": 2}  # of a closed set every label is counted, known or not
    assert rows["audio_text/dolly/00000001"]["messages"][0]["content"][0]["type"] == "audio"
    assert export_release(tmp_path / "corpus", tmp_path / "back") == 4
    assert {name: json.loads((tmp_path / "back" / name).read_text()) for name in files} == files


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
TURN = st.fixed_dictionaries({"from": st.sampled_from(["human", "system"]), "value": TEXT}, optional={"extra": JSON})


@st.composite
def released(draw: Any) -> dict:
    """A row with any further fields, in any order, and as many paths as placeholders."""
    paths = draw(st.lists(TEXT, max_size=3))
    prompt = "<audio>".join(draw(st.lists(TEXT, min_size=len(paths) + 1, max_size=len(paths) + 1)))
    assume(prompt.count("<audio>") == len(paths))
    turns = [*draw(st.lists(TURN, max_size=2)), {"from": "human", "value": prompt}, {"from": "gpt", "value": "Yes. "}]
    fields = draw(st.dictionaries(TEXT.filter(lambda name: name not in ("conversations", "voice")), JSON, max_size=3))
    voice = paths[0] if len(paths) == 1 and draw(st.booleans()) else paths
    items = draw(st.permutations([*fields.items(), ("voice", voice), ("conversations", turns)]))
    return dict(items)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(released(), min_size=1, max_size=6), shape=st.sampled_from(["list", "object", "lines"]))
def test_any_row_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, rows: list[dict], shape: str):
    """With the order of its fields, the order of the rows, and the shape of the file."""
    rows = rows[:1] if shape == "object" else rows
    name = "alpaca.jsonl" if shape == "lines" else "alpaca.json"
    texts = {
        "list": json.dumps(rows), "object": json.dumps(rows[0]), "lines": "\n".join(map(json.dumps, rows)),
    }  # fmt: skip
    root = tmp_path_factory.mktemp("any")
    report = import_release(write(root / "in", {name: texts[shape]}), root / "corpus", audio_root=None)
    assert report["rows"] == len(rows) and not report["rejects"]
    export_release(root / "corpus", root / "back")
    text = (root / "back" / name).read_text(encoding="utf-8")
    back = [json.loads(line) for line in text.rstrip("\n").split("\n")] if shape == "lines" else json.loads(text)
    assert json.dumps(back) == json.dumps(rows[0] if shape == "object" else rows)
    shutil.rmtree(root)


def test_files_of_mixed_formats_come_back_in_order(tmp_path: Path):
    """Outside the format folders a row's format is its own, and its shard another's."""
    rows = [
        {"id": n, "voice": ["a.wav"], "conversations": turn(prompt)}
        for n, prompt in enumerate(["Who?<audio>", "<audio>the text", "And?<audio>", "<audio>more", "Who?<audio>"])
    ]
    files = {f"{name}_dolly.json": rows[n:] for n, name in enumerate("ab")}
    import_release(write(tmp_path / "in", files), tmp_path / "corpus", audio_root=None, rows_per_shard=2)
    assert len({row["modality"] for row in rows_of(tmp_path / "corpus")}) == 2
    export_release(tmp_path / "corpus", tmp_path / "back")
    assert {name: json.loads((tmp_path / "back" / name).read_text()) for name in files} == files


def test_objects_one_after_the_other_and_byte_order_marks(tmp_path: Path):
    """Files named .json may hold an object a line."""
    rows = [{"id": n, "voice": ["a.wav"], "conversations": turn("Who?<audio>")} for n in range(3)]
    lines, listed = "\n".join(map(json.dumps, rows)) + "\n", json.dumps(rows)
    source = write(
        tmp_path / "in", {"orca.json": lines, "dolly.json": "\ufeff" + listed, "alpaca.json": "\n " + listed}
    )
    assert import_release(source, tmp_path / "corpus", audio_root=None)["rows"] == 9
    export_release(tmp_path / "corpus", tmp_path / "back")
    assert (tmp_path / "back/orca.json").read_text() == lines
    assert json.loads((tmp_path / "back/dolly.json").read_text()) == rows


def test_files_of_one_name_stay_apart(tmp_path: Path):
    files = {
        name: [{"voice": [name], "conversations": turn("?<audio>")}]
        for name in ("x/text_audio/orca.json", "y/text_audio/orca.json", "orca.json", "pure_audio/orca.json")
    }
    import_release(write(tmp_path / "in", files), tmp_path / "corpus", audio_root=None)
    assert len({row["id"] for row in rows_of(tmp_path / "corpus")}) == 4
    export_release(tmp_path / "corpus", tmp_path / "back")
    assert {name: json.loads((tmp_path / "back" / name).read_text()) for name in files} == files


def test_our_rows_as_a_release_and_back(built: Path, tmp_path: Path):
    """Rows built here, exported with their audio and imported again, have other ids and clips' names, and no more."""
    assert main(["data", "export-release", str(built), "--out", str(tmp_path / "release")]) == 0
    root = tmp_path / "release/audio"
    report = import_release(tmp_path / "release", tmp_path / "back", audio_root=root)
    assert report["rows"] == len(rows_of(built)) and not report["rejects"]

    def kept(rows: list[dict]) -> list[str]:
        changed = ("id", "audio", "sha256", "release")
        return sorted(json.dumps({**{k: v for k, v in row.items() if k not in changed}}) for row in rows)

    assert kept(rows_of(tmp_path / "back")) == kept(rows_of(built))
    assert validate(tmp_path / "back")["found"] == 0
    with pytest.raises(ValueError, match="is not empty"):
        export_release(built, tmp_path / "release")


def test_released_outputs_round_trip(official_outputs: Path, tmp_path: Path):
    """Every row of LLaSO-Base's 44 published files comes back as it was."""
    folder = official_outputs / "LLaSO-Base"
    command = ["data", "import-release", str(folder), "--without-audio", "--corpus", "eval"]
    assert main([*command, "--out", str(tmp_path / "in")]) == 0
    export_release(tmp_path / "in", tmp_path / "back")
    files = sorted(folder.glob("*.json"))
    assert len(files) >= 44
    for file in files:
        back, was = json.loads((tmp_path / "back" / file.name).read_text()), json.loads(file.read_text())
        assert json.dumps(back) == json.dumps(was), file.name
    tasks = {row["source"]: row["task"] for row in rows_of(tmp_path / "in")}
    manifest = json.loads((official_outputs.parent / "golden" / "eval_manifest.json").read_text())
    for name, entry in manifest.items():
        if name != "_meta":
            assert tasks[name.removesuffix("_test")] == entry["task"], name


# --- bad input ----------------------------------------------------------------------------------------------------


def test_paths_that_climb_out_and_rows_that_cannot_be(tmp_path: Path):
    root = write_recordings(tmp_path / "audio/deep", 3).parent
    outside = write_recordings(tmp_path / "outside", 1)
    (root / "link.wav").symlink_to(outside / "000.wav")
    (root / "folder").symlink_to(outside)
    (root / "inner.wav").symlink_to(root / "deep/000.wav")
    (root / "circle").symlink_to(root / "circle")
    (root / "empty.wav").touch()
    (root / "notes.txt").write_text("no audio")
    os.mkfifo(root / "pipe")
    good = ["deep\\000.wav", "deep/001.wav", "deep/../deep\\002.wav", "inner.wav"]
    climbing = [
        "../outside/000.wav", "deep/../../outside/000.wav", "..\\outside\\000.wav", str(outside / "000.wav"),
        "C:\\x.wav", "c:x.wav", "\\\\server\\share\\x.wav", "link.wav", "folder/000.wav",
    ]  # fmt: skip
    absent = ["deep/009.wav", "", ".", "deep", "pipe", "file:///etc/passwd"]
    no_paths = ["a\0b.wav", "x" * 5000]
    rows = [{"voice": v, "conversations": turn("What?<audio>")} for v in good + climbing + absent + no_paths]
    rows += [{"voice": v, "conversations": turn("What?<audio>")} for v in ("circle", "empty.wav", "notes.txt")]
    voices = [["deep/000.wav", "deep/001.wav"], 7, None, {}, [7]]
    rows += [{"voice": v, "conversations": turn("What?<audio>")} for v in voices]
    rows += [{"voice": "x", "conversations": c} for c in (None, {}, "x", [7], [{"from": ["human"], "value": "x"}])]
    rows += [{"voice": "deep/002.wav", "conversations": turn("What?<audio>", answer)} for answer in (" ", 7)]
    rows += [{}, {"voice": "deep/002.wav"}, {"voice": "\ud800", "conversations": turn("What?<audio>")}]
    lines = [*map(json.dumps, rows), "{oops", "[]", "7", b"\xff\xfe".decode("latin-1")]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/voxceleb_gender_test.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    report = import_release(tmp_path / "in", tmp_path / "corpus", audio_root=root)
    reasons = Counter({reason.split(":")[0]: count for reason, count in report["rejects"].items()})
    assert reasons == {
        "the path climbs out of its folder": len(climbing),
        "there is no such file": len(absent) + 1,  # one name is too long for any file
        "not a path": len(no_paths),
        "the file is empty": 1,
        "not readable as audio": 1,
        "1 <audio> for 2 audio files": 1,
        "1 <audio> for 0 audio files": 3,
        "voice is neither a path nor a list of paths": 1,
        "conversations are missing, or are no list of {from, value}": 8,
        "no answer": 1,
        "text is not Unicode (half of a surrogate pair)": 1,
        "not JSON": 1,
        "not a JSON object": 2,
        "text is not UTF-8": 1,
    }
    listed = [json.loads(line) for line in (tmp_path / "corpus/rejects.jsonl").read_text().splitlines()]
    assert len(listed) == sum(report["rejects"].values())
    assert listed[0]["where"] == f"voxceleb_gender_test.jsonl:{len(good) + 1}"  # a machine's folders stay out of it
    found = rows_of(tmp_path / "corpus")
    assert [row["audio"][0]["path"] for row in found] == good
    assert all((row["split"], row["duration"]) == ("test", 0.2) for row in found)
    assert [fault for row in found for fault in faults_of(row)] == []


def test_what_cannot_be_imported_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()

    def refused(match: str, *options: str) -> None:
        command = ["data", "import-release", str(source), "--out", str(out), *(options or ["--without-audio"])]
        assert main(command) == 2
        assert match in capsys.readouterr().err and not (out / "data").exists() and not (out / "build.json").exists()

    refused("no .json")
    rows = [{"voice": "a", "conversations": turn("<audio>")}] * 50
    whole = json.dumps(rows)
    for content, match in (
        (whole[:-30], "dolly.json: broken or truncated JSON in row 50, before byte "),
        (whole[:-1], "dolly.json: broken or truncated JSON in row 51, before byte "),
        (whole + "x", "dolly.json: broken or truncated JSON in row 51, before byte "),
        (json.dumps(rows[0])[:-1], "dolly.json: broken or truncated JSON in row 1, before byte "),
        ("", "dolly.json is empty"),
        ("hello", "dolly.json is not JSON: it begins with b'h'"),
        ("[]", "no row can be used: the files are empty"),
        ("[7, []]", "no row can be used: 2 × not a JSON object"),
    ):
        (source / "dolly.json").write_text(content)
        refused(match)
    (source / "dolly.json").write_bytes(whole.replace("Yes", "\xff\xff").encode("latin-1"))
    refused("dolly.json: broken or truncated JSON in row 1")
    (source / "dolly.json").write_text(whole)
    refused("--audio-root", "--corpus", "eval")
    refused("not both", "--without-audio", "--audio-root", str(source))
    refused("there is no such folder of audio", "--audio-root", str(tmp_path / "nowhere"))
    (source / "dolly.json").rename(source / "mystery.json")
    refused("the file's name tells no task")
    (source / "mystery.json").rename(source / "dolly.json")
    command = ["data", "import-release", str(source), "--out", str(out), "--without-audio"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 2 and "holds a corpus already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../evil.json", "/evil.json", "a/../../evil.json", "..\\evil.json", "C:\\evil.json"])
def test_export_writes_nothing_outside(built: Path, tmp_path: Path, name: str):
    """Rows are data: a file or a clip that they name is written below the folder, or not at all."""
    import_release(
        write(tmp_path / "in", {"dolly.json": [{"voice": [], "conversations": turn("Hi")}]}),
        tmp_path / "imported",
        audio_root=None,
    )
    file = next((tmp_path / "imported").glob("data/*/*"))
    rows = pq.read_table(file).to_pylist()
    rows[0]["release"] = json.dumps({**json.loads(rows[0]["release"]), "file": name})
    pq.write_table(pa.Table.from_pylist(rows, schema=RELEASE_FEATURES.arrow_schema), file)
    with pytest.raises(ValueError, match="climbs out of its folder"):
        export_release(tmp_path / "imported", tmp_path / "sub/back")
    own = Path(shutil.copytree(built, tmp_path / "own"))
    file = next(own.glob("data/text_audio/train-*"))
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[0]["audio"][0]["path"], rows[0]["source"] = name, ".."
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    with pytest.raises(ValueError, match="climbs out of its folder"):
        export_release(own, tmp_path / "sub/back")
    assert not list(tmp_path.rglob("evil.json")) and not list(tmp_path.glob("sub/*"))


# --- kills and memory ---------------------------------------------------------------------------------------------

KILL = """
{dying}
from dataset_scripts import release_import as release
{patch}
release.import_release(Path(sys.argv[1]), Path(sys.argv[2]), audio_root=Path(sys.argv[3]), rows_per_shard=3)
"""


@pytest.mark.parametrize(
    "patch",
    [
        "release.encode = dying(release.encode, 12)",  # in the second file
        "release._place = dying(release._place, 0)",  # the files are done
        "Path.replace = dying(Path.replace, 8)",  # while parts are moved into their places
        "release.corpus_card.write = dying(release.corpus_card.write, 0)",  # before the card
    ],
)
def test_a_killed_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: str):
    """And gives what it would have given."""
    audio = write_recordings(tmp_path / "audio", 20)
    rows = [{"voice": f"{n:03d}.wav", "conversations": turn("What?<audio>")} for n in range(20)]
    files = {"asr.json": rows[:8], "dolly.json": rows[8:15], "orca_test.json": [*rows[15:], {}]}
    source, out, whole = write(tmp_path / "in", files), tmp_path / "out", tmp_path / "whole"
    done = subprocess.run(
        [sys.executable, "-c", KILL.format(dying=DYING, patch=patch), str(source), str(out), str(audio)], timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    if (out / "data").exists():
        with pytest.raises(ValueError, match="a corpus already, or part of one"):
            import_release(source, out, audio_root=None, rows_per_shard=3)
    # Files that were done are not read again.
    whose = {sha256(name.encode()).hexdigest()[:16]: name for name in files}
    finished = {whose[file.stem] for file in out.glob(".build/import/*.json") if file.stem in whose}
    assert finished == (set(files) if "encode" not in patch else {"asr.json"})
    read, original = [], release_import._import_file

    def noted(file: Path, *rest: Any) -> Any:
        read.append(file.name)
        return original(file, *rest)

    monkeypatch.setattr(release_import, "_import_file", noted)
    import_release(source, out, audio_root=audio, rows_per_shard=3)
    assert set(read) == set(files) - finished
    import_release(source, whole, audio_root=audio, rows_per_shard=3)

    def contents(folder: Path) -> dict[str, bytes]:
        return {
            str(f.relative_to(folder)): f.read_bytes()
            for f in sorted(folder.rglob("*"))
            if f.is_file() and f.name != "lock"
        }

    assert contents(out) == contents(whole)


def test_a_full_disk(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing half is left, and the same command goes on."""
    audio = write_recordings(tmp_path / "audio", 20)
    rows = [{"voice": f"{n:03d}.wav", "conversations": turn("What?<audio>")} for n in range(20)]
    source = write(tmp_path / "in", {"asr.json": rows, "dolly.json": rows[:3]})

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dataset_scripts.release_import.pq.ParquetWriter.write_table", full)
        with pytest.raises(OSError, match="No space left"):
            import_release(source, tmp_path / "out", audio_root=audio)
    assert not (tmp_path / "out/data").exists() and not (tmp_path / "out/build.json").exists()
    assert import_release(source, tmp_path / "out", audio_root=audio)["rows"] == 23
    with monkeypatch.context() as patch:
        patch.setattr("dataset_scripts.release_export.write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            export_release(built, tmp_path / "sub/back")
    assert not list(tmp_path.glob("sub/*"))


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    """A list of many rows is read row by row, there and back."""

    def peak(rows: int) -> tuple[int, int]:
        folder = tmp_path / str(rows)
        folder.mkdir()
        with (folder / "dolly.json").open("w") as file:
            for n in range(rows):
                row = {"id": n, "voice": [f"{n}.wav"], "conversations": turn(f"{n} {'word ' * 100}<audio>")}
                file.write((",\n" if n else "[") + json.dumps(row))
            file.write("]")
        found = []
        for step in (
            lambda: import_release(folder, folder / "corpus", audio_root=None, rows_per_shard=500),
            lambda: export_release(folder / "corpus", folder / "back"),
        ):
            tracemalloc.start()
            step()
            found.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return found[0], found[1]

    few, many = peak(500), peak(4_000)
    assert many[0] < 1.3 * few[0] and many[1] < 1.3 * few[1], (few, many)
