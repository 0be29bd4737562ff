"""Plan and build: the same bytes whatever the workers and kills, quotas, separation, and every kind of bad input."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny_corpus import SOURCE, VOICES, held_up, write_public_corpora, write_recordings

from dataset_scripts import conversations, corpus_plan, leakage
from dataset_scripts.build import _Shard, _sweep, build
from dataset_scripts.quotas import allocate
from dataset_scripts.sources.base import Fact, Item, Note, Recording, Reject, Speech
from dataset_scripts.validate import validate
from llaso_common.atomic_write import part_of
from llaso_common.folder_lock import LOCK
from llaso_common.schema import FEATURES

SETTINGS = {"voices": VOICES, "rows_per_shard": 20, "eval_rows": 30, "validation_rows": 10}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny source built into all three corpora."""
    root = tmp_path_factory.mktemp("corpora")
    source = SOURCE.at(write_recordings(root / "tiny"))
    built = {}
    for corpus in ("align", "instruct", "eval"):
        against = list(built.values()) if corpus == "eval" else []
        built[corpus] = build(corpus, [source], root / corpus, clips=root / "clips", against=against, **SETTINGS)
    return built


def text_of(file: Path) -> str:
    """What a file says; nothing while it is not there."""
    with contextlib.suppress(FileNotFoundError):
        return file.read_text()
    return ""


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]


def digests(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("data/*/*"))}


# --- quotas -----------------------------------------------------------------------------------------------------


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine draws slowly
@given(st.integers(0, 5000), st.lists(st.tuples(st.floats(0.01, 1e3), st.integers(0, 400)), min_size=1, max_size=20))
def test_quotas_add_up(total: int, pools: list[tuple[float, int]]):
    weights = {n: weight for n, (weight, _) in enumerate(pools)}
    available = {n: count for n, (_, count) in enumerate(pools)}
    quota = allocate(total, weights, available)
    assert sum(quota.values()) == min(total, sum(available.values()))
    assert all(0 <= quota[n] <= available[n] for n in quota)


def test_quotas_follow_weights():
    assert allocate(10, {"a": 3, "b": 1, "c": 1}, {"a": 99, "b": 99, "c": 99}) == {"a": 6, "b": 2, "c": 2}
    assert allocate(10, {"a": 3, "b": 1, "c": 1}, {"a": 2, "b": 99, "c": 99}) == {"a": 2, "b": 4, "c": 4}
    assert allocate(2, {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}) == {"a": 1, "b": 1, "c": 0}


# --- rows -------------------------------------------------------------------------------------------------------


def test_rows_follow_the_schema(corpora: dict[str, Path]):
    for corpus, folder in corpora.items():
        rows = rows_of(folder)
        assert rows and len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            assert set(row) == set(FEATURES) and row["corpus"] == corpus
            user, answer = row["messages"]
            assert (user["role"], answer["role"]) == ("user", "assistant")
            assert answer["content"] == [{"type": "text", "text": row["target"]}]
            kinds = [part["type"] for part in user["content"]]
            if row["modality"] == "text_audio":
                assert kinds == ["text", "audio"]
            elif row["modality"] == "audio_text":
                assert kinds == ["audio", "text"]
            else:
                assert kinds in (["audio"], ["text", "audio"])
            samples, rate = soundfile.read(io.BytesIO(row["audio"][0]["bytes"]))
            assert rate == 16_000 and samples.ndim == 1 and abs(samples.size / rate - row["duration"]) < 1e-3
            assert row["sha256"] == sha256(row["audio"][0]["bytes"]).hexdigest()
            assert not row["choices"] or row["target"] in row["choices"]
            if row["task"] == "SGC" and row["modality"] == "text_audio":
                assert conversations.enumerate_choices(row["choices"]) in user["content"][0]["text"]


def test_splits_and_corpora(corpora: dict[str, Path]):
    found = {
        corpus: Counter((row["split"], row["task"]) for row in rows_of(folder)) for corpus, folder in corpora.items()
    }
    assert {split for split, _ in found["eval"]} == {"test"}
    assert {split for split, _ in found["instruct"]} == {"train", "validation"}
    assert {task for _, task in found["align"]} == {"ASR"}
    assert {row["modality"] for row in rows_of(corpora["align"])} == {"text_audio"}
    assert {row["template_id"].split("/")[0] for row in rows_of(corpora["align"])} == {"ASR.align"}
    assert {task for _, task in found["instruct"]} >= {"SGC", "PP", "AQA"}
    modalities = {row["modality"] for row in rows_of(corpora["instruct"])}
    assert modalities == {"text_audio", "audio_text", "audio"}


def test_evaluation_and_training_share_no_row(corpora: dict[str, Path]):
    """By the report, and by an independent look at the rows."""
    report = json.loads((corpora["eval"] / "leakage.json").read_text())
    assert report["clean"] and report["held_out"]["rows"] == len(rows_of(corpora["eval"]))
    assert report["compared"]["instruct"]["rows_checked"] > 0
    test = rows_of(corpora["eval"])
    train = [row for corpus in ("align", "instruct") for row in rows_of(corpora[corpus]) if row["split"] == "train"]
    for column in ("sha256", "speaker", "voice"):
        assert not ({row[column] for row in test} & {row[column] for row in train}) - {""}
    said = {row["target"] for row in test if row["task"] == "ASR"}
    assert not said & {row["target"] for row in train if row["task"] == "ASR"}


def test_leakage_is_found(corpora: dict[str, Path]):
    report = leakage.compare(corpora["instruct"], [corpora["instruct"]])
    assert report["clean"]
    # Taking the training corpus for held-out shows everything as shared.
    rows = leakage.compare(corpora["align"], [corpora["instruct"]])["compared"]["instruct"]["rows_checked"]
    assert rows == len(rows_of(corpora["instruct"]))


def test_load_dataset_reads_every_row(corpora: dict[str, Path]):
    from datasets import Audio, load_dataset

    folder = str(corpora["instruct"])
    whole = load_dataset(folder)
    assert set(whole) == {"train", "validation"}
    assert len(whole["train"]) + len(whole["validation"]) == len(rows_of(corpora["instruct"]))
    assert isinstance(whole["train"].features["audio"].feature, Audio)
    assert whole["train"].features["audio"].feature.sampling_rate == 16_000
    row = next(iter(load_dataset(folder, "audio", split="train", streaming=True)))
    assert row["modality"] == "audio" and row["audio"][0]["bytes"][:4] == b"fLaC"
    assert set(load_dataset(folder, "semantic", split="train")["task"]) == {"AQA"}


def test_folders_of_one_name_give_their_own_rows(tmp_path: Path):
    """datasets tells folders apart by their base name alone; the card tells it what each holds."""
    from datasets import load_dataset

    def read(folder: Path) -> set[str]:
        return set(load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))["sha256"])

    folders = []
    for low in (30, 60):
        items = [
            Item(f"{n}", (Fact("PP", "60"),), (Note("organ", low + n, 75, 0.2),), split="train") for n in range(9)
        ]
        source = replace(SOURCE, needs=(), tasks=("PP",), read=lambda root, items=items: iter(items))
        folders.append(build("instruct", [source], tmp_path / str(low) / "llaso-instruct", **SETTINGS))
    heads = [(folder / "README.md").read_text().split("---")[1] for folder in folders]
    assert [re.sub("content [0-9a-f]+", "", head) for head in heads] == [re.sub("content [0-9a-f]+", "", heads[0])] * 2
    own = [{row["sha256"] for row in rows_of(folder)} for folder in folders]
    assert own[0].isdisjoint(own[1])
    assert [read(folder) for folder in folders] == own
    # Rebuilt in the same place, it is read anew.
    shutil.rmtree(folders[0])
    shutil.copytree(folders[1], folders[0])
    assert read(folders[0]) == own[1]


def gear_chunks(data: bytes) -> list[bytes]:
    """Content-defined chunks of about 36 kB, cut where a rolling hash of 32 bytes ends in zeros, as xet cuts files."""
    table = np.random.default_rng(0).integers(0, 2**63, 256, dtype=np.uint64)[np.frombuffer(data, np.uint8)]
    rolling = np.zeros(table.size, np.uint64)
    for age in range(32):
        rolling[age:] += table[: table.size - age] << np.uint64(age)
    cuts = [0]
    for cut in np.flatnonzero((rolling >> np.uint64(20)) & np.uint64((1 << 15) - 1) == 0) + 1:
        if cut - cuts[-1] >= 4096:
            cuts.append(int(cut))
    return [data[start:stop] for start, stop in itertools.pairwise([*cuts, len(data)])]


def test_an_inserted_row_leaves_most_bytes_as_they_were(tmp_path: Path):
    """Parquet's pages follow the content: what the Hub has of a shard need not be sent again."""
    noise = np.random.default_rng(0)
    rows = [
        {
            **dict.fromkeys(FEATURES),
            "id": f"{n:03d}",
            "audio": [{"bytes": noise.bytes(int(noise.integers(20_000, 60_000))), "path": f"{n}.flac"}],
        }
        for n in range(121)
    ]

    def sent_again(write: Callable[[list[dict], Path], bytes]) -> float:
        before = {sha256(chunk).digest() for chunk in gear_chunks(write(rows[:3] + rows[4:], tmp_path / "before"))}
        after = gear_chunks(write(rows, tmp_path / "after"))
        new = sum(len(chunk) for chunk in after if sha256(chunk).digest() not in before)
        return new / sum(map(len, after))

    def ours(rows: list[dict], folder: Path) -> bytes:
        shard = _Shard(folder, "audio.train-semantic-00000-of-00001", {})
        for start in range(0, len(rows), 100):
            shard.write(rows[start : start + 100])
        shard.close()
        return shard.file.read_bytes()

    def plain(rows: list[dict], folder: Path) -> bytes:
        table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
        pq.write_table(table, folder / "plain.parquet", compression="zstd", row_group_size=100)
        return (folder / "plain.parquet").read_bytes()

    assert sent_again(ours) < 0.4 < sent_again(plain)


def test_rows_do_not_depend_on_what_else_is_built(tmp_path: Path, corpora: dict[str, Path]):
    """The same item alone gives the same row."""
    root = corpora["align"].parent
    alone = SOURCE.at(root / "tiny", notes=5, recordings=0, questions=0)
    few = build("instruct", [alone], tmp_path / "few", clips=root / "clips", **SETTINGS)
    every = {row["id"]: row for row in rows_of(corpora["instruct"])}
    assert all(row == every[row["id"]] for row in rows_of(few) if row["split"] == every.get(row["id"], row)["split"])
    assert any(row["id"] in every for row in rows_of(few))


# --- plan -------------------------------------------------------------------------------------------------------


def test_benchmark_quotas(tmp_path: Path):
    """Strata sum to the total, groups follow the benchmark's weights, labels are even."""
    source = replace(SOURCE, needs=(), benchmark={"ASR": 300, "SGC": 100, "PP": 100, "AQA": 100}, eval_share=1.0)
    made = source.at(write_recordings(tmp_path, 400), recordings=400, notes=80, questions=200)
    settings = corpus_plan.Settings("eval", eval_rows=120, voices=VOICES)
    planned = corpus_plan.make_plan(settings, [made], tmp_path / "plan")
    quotas = planned["held_out"]["quotas"]
    assert sum(quotas.values()) == 120 == planned["rows"]
    tasks = Counter[str]()
    for name, count in quotas.items():
        tasks[name.split("/")[1]] += count
    assert tasks == {"ASR": 60, "SGC": 20, "PP": 20, "AQA": 20}
    assert {quotas[f"tiny/SGC/{g}/{m}"] for g in ("female", "male") for m in ("text_audio", "audio")} == {5}


def test_held_out_speakers_and_sentences_leave_training(tmp_path: Path):
    def read(root: Path) -> Iterator[Item | Reject]:
        for n in range(20):
            yield Item(
                f"a{n}", (Fact("PP", "60"),), (Note("organ", 60, 75),), speaker="x", sentence=f"S {n}", split="test"
            )
        yield Item("same-speaker", (Fact("PP", "60"),), (Note("organ", 61, 75),), speaker="x", split="train")
        yield Item("same-sentence", (Fact("PP", "60"),), (Note("organ", 62, 75),), sentence="s, 3.", split="train")
        yield Item("apart", (Fact("PP", "60"),), (Note("organ", 63, 75),), speaker="y", sentence="else", split="train")

    source = replace(SOURCE, needs=(), tasks=("PP",), read=read)
    planned = corpus_plan.make_plan(corpus_plan.Settings("instruct", voices=VOICES), [source], tmp_path / "plan")
    assert planned["rows"] == 1 and planned["dropped"] == {"recording": 0, "speaker": 1, "sentence": 1}
    shared = replace(source, shared=("sentence",))
    assert (
        corpus_plan.make_plan(corpus_plan.Settings("instruct", voices=VOICES), [shared], tmp_path / "shared")["rows"]
        == 2
    )


def test_nothing_is_lost_in_silence(tmp_path: Path):
    """Every fact of every item is a row, dropped, held back, or rejected, and counted as such."""
    source = SOURCE.at(write_recordings(tmp_path / "tiny", 200), recordings=200, notes=80, questions=60)
    facts = [
        (corpus_plan.corpora_of(source, item, fact, 0), corpus_plan.split_of(source, item, 0))
        for item in source.items()
        for fact in item.facts
    ]
    for corpus in ("align", "instruct", "eval"):
        settings = corpus_plan.Settings(corpus, voices=VOICES, eval_rows=30, validation_rows=10)
        planned = corpus_plan.make_plan(settings, [source], tmp_path / corpus)
        splits = ("test",) if corpus == "eval" else ("train", "validation", "test")
        there = sum(corpus in into and split in splits for into, split in facts)
        dropped = 0 if corpus == "eval" else sum(planned["dropped"].values())
        assert planned["rows"] + dropped + sum(planned["held_back"].values()) == there
        assert planned["held_back"] and all(count > 0 for count in planned["held_back"].values())
    out = build("eval", [source], tmp_path / "out", clips=tmp_path / "clips", **SETTINGS)
    held_back = sum(json.loads((out / "build.json").read_text())["held_back"].values())
    assert f"{held_back:,} rows of held-out speakers and sentences are in no split" in (out / "README.md").read_text()


def test_plan_is_flat_in_rows(tmp_path: Path):
    """Five times the rows need about the same memory."""

    def read(root: Path, rows: int) -> Iterator[Item]:
        for n in range(rows):
            yield Item(f"{n}", (Fact("PP", "60"),), (Note("organ", 60, 75),), sentence=f"{n}")

    peaks = {}
    for rows in (400, 2_000):
        source = replace(SOURCE, needs=(), tasks=("PP",), read=read, options={"rows": rows}, eval_share=0.3)
        settings = corpus_plan.Settings("instruct", voices=VOICES, eval_rows=10, validation_rows=10)
        buffer, corpus_plan._BUFFER_BYTES = corpus_plan._BUFFER_BYTES, 1 << 16
        try:
            tracemalloc.start()
            planned = corpus_plan.make_plan(settings, [source], tmp_path / str(rows))
            peaks[rows] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            corpus_plan._BUFFER_BYTES = buffer
        assert planned["rows"] > 0.5 * rows
    assert peaks[2_000] < 1.5 * peaks[400] + 100_000, peaks


def test_the_benchmark_of_building_runs():
    command = [sys.executable, "-m", "benchmarks", "data", "--rows", "2000", "--spoken", "100", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "| 2,000 | " in done.stdout and "of ideal." in done.stdout and done.stdout.count("\n| 1 | ") == 1


def test_plan_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from llaso.cli import main

    file = write_public_corpora(tmp_path)
    assert main(["data", "plan", "instruct", "--sources", str(file)]) == 0
    out = capsys.readouterr().out
    assert "fsdd" in out and "rows in" in out and "of 4 asked for" in out
    assert "dolly: 12 AQA found, of 15,011 that the whole corpus is said to have" in out and "held back: " in out
    assert main(["data", "plan", "eval", "--sources", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_progress_says_how_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Time left is reckoned from this run's work; what an earlier run has done took no time."""
    from llaso.commands.data_commands import _Progress

    now = 1000.0
    monkeypatch.setattr("llaso.commands.data_commands.time.monotonic", lambda: now)
    built, read = _Progress("built"), _Progress("read")
    built(500, 1_000)
    read(10)
    assert capsys.readouterr().err == ""
    now += 100
    built(600, 1_000)
    read(2_000)
    assert capsys.readouterr().err == "built 600 of 1,000 rows (60%), 0:06:40 left\nread 2,000 rows\n"


# --- the same bytes -----------------------------------------------------------------------------------------------


def run(*arguments: str, command: Sequence[str] = ("build",), **options) -> subprocess.Popen:
    """`llaso data build` in a process of its own."""
    words = [sys.executable, "-m", "llaso.cli", "data", *command, *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def kill_when(ready: Callable[[], bool], *arguments: str) -> None:
    """Start a build in a session of its own, and kill all of it once it has come so far."""
    process = run(*arguments, start_new_session=True)
    deadline = time.monotonic() + 180
    while not (come := ready()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert come and process.returncode == -signal.SIGKILL, errors


def finished(out: Path, *arguments: str) -> dict[str, str]:
    """Digests of all that a build leaves, once it has run to its end."""
    done = run(*arguments, "--out", str(out))
    assert done.wait() == 0, done.stderr.read()
    # A clip that was being stored may leave a part behind, which does no harm.
    assert not [part for part in out.rglob(".*.part") if "clips" not in part.parts]
    files = [*out.glob("data/*/*"), *out.glob("*.jsonl"), *out.glob("*.md"), *out.glob("*.json")]
    return {str(file.relative_to(out)): sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], dict[str, str]]:
    """A build's arguments, and the digests of what an undisturbed one leaves."""
    root = tmp_path_factory.mktemp("uninterrupted")
    arguments = ("instruct", "--sources", str(write_public_corpora(root)))
    digests = finished(root / "out", *arguments, "--workers", "4")
    assert len(digests) > 12
    return arguments, digests


def test_same_bytes_after_kills_in_every_part(uninterrupted, tmp_path: Path):
    """Killed while planning, speaking, writing a shard and at the end; then run through, and run again."""
    arguments, expected = uninterrupted
    out, corpus = tmp_path / "out", Path(arguments[2]).parent
    work, to_out = out / ".build", (*arguments, "--out", str(out))

    questions = corpus / "dolly" / "databricks-dolly-15k.jsonl"
    with held_up(questions, *questions.read_text().splitlines(keepends=True)[:5]):
        kill_when((work / "plan" / "train.jsonl").exists, *to_out)
    assert not (work / "plan" / "plan.json").exists()

    assert run(*to_out, command=["plan"]).wait() == 0
    shards = [shard["name"] for shard in json.loads((work / "plan" / "plan.json").read_text())["shards"]]

    first: dict[str, int] = {}  # in which shard each recording is read first
    for number, name in enumerate(shards):
        rows = (work / "plan" / "rows" / f"{name}.jsonl").read_text()
        first = {**dict.fromkeys(re.findall(r'"path": "([^"]+wav)"', rows), number), **first}
    with held_up(Path(min(first, key=lambda path: first[path]))):
        kill_when(lambda: any((work / "clips").rglob("*.flac")), *to_out)
    late = max(first, key=lambda path: first[path])
    assert first[late] > 3
    with held_up(Path(late)):
        kill_when(lambda: len(list(work.glob("shards/*.json"))) > 3 and any(out.glob("data/*/.*.part")), *to_out)
    assert 3 < len(list(work.glob("shards/*.json"))) < len(shards)
    with held_up(work / "plan" / "rejects.jsonl"):  # the last step reads it
        kill_when(lambda: len(list(work.glob("shards/*.json"))) == len(shards), *to_out)
    assert not (out / "build.json").exists()

    assert finished(out, *arguments) == expected
    before = (out / "build.json").stat().st_mtime_ns
    assert finished(out, *arguments) == expected and (out / "build.json").stat().st_mtime_ns == before


def test_same_bytes_after_kills_at_random(uninterrupted, tmp_path: Path):
    """Four workers, killed with their parent or without it, at any moment of the build."""
    arguments, expected = uninterrupted
    out, chance = tmp_path / "out", random.Random(0)
    for _ in range(4):
        process = run(*arguments, "--out", str(out), "--workers", "4", start_new_session=True)
        lock, deadline = out / LOCK, time.monotonic() + 120
        while process.poll() is None and f"process {process.pid} " not in text_of(lock):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 1.5))
        group, running = chance.random() < 0.5, process.poll() is None
        if group and running:  # on a fast machine it may have come to its end
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL), process.stderr.read()
    assert finished(out, *arguments, "--workers", "4") == expected


def test_two_builds_into_one_folder_are_refused(tmp_path: Path):
    """The second of two is refused at once; when the first is killed, nothing is left to unlock."""
    file, out = write_public_corpora(tmp_path), tmp_path / "out"
    first = run("align", "--sources", str(file), "--out", str(out))
    deadline = time.monotonic() + 120
    while not text_of(out / LOCK):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    try:
        assert not (out / "build.json").exists()
        for command in (["build"], ["plan"]):
            second = run("align", "--sources", str(file), "--out", str(out), command=command)
            _, errors = second.communicate(timeout=120)
            assert second.returncode == 2 and f"is in use by process {first.pid} on" in errors
    finally:
        first.kill()
        first.wait()
    assert run("align", "--sources", str(file), "--out", str(out)).wait() == 0
    assert rows_of(out) and not list(out.rglob(".*.part"))


def test_a_corpus_from_elsewhere_is_not_taken_for_this_build(
    tmp_path: Path, corpora: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    """One that was downloaded and validated has all that a finished build has, but for its plan."""
    from llaso.cli import main

    there = tmp_path / "there"
    shutil.copytree(corpora["eval"], there, ignore=shutil.ignore_patterns(".build"))
    validate(there)
    before = digests(there)
    for command in ("build", "plan"):
        asked = ["align", "--sources", str(write_public_corpora(tmp_path / command)), "--out", str(there)]
        assert main(["data", command, *asked]) == 2
        assert "rejects.jsonl, leakage.json that no build has made there" in capsys.readouterr().err
    assert digests(there) == before and not (there / ".build" / "plan").exists()


def test_files_have_the_usual_mode(tmp_path: Path):
    """What is built for a group can be read by it."""
    source = SOURCE.at(write_recordings(tmp_path / "tiny", 1), recordings=0, notes=20, questions=4)
    before = os.umask(0o027)
    try:
        out = build("instruct", [source], tmp_path / "out", **SETTINGS)
    finally:
        os.umask(before)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".parquet", ".json", ".jsonl", ".md", ".flac"}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path):
    """Not those of other machines' runs, until the corpus is whole; a shard that was deleted is built again."""
    source = SOURCE.at(write_recordings(tmp_path / "tiny", 1), recordings=0, notes=20, questions=0)
    folder = tmp_path / "out" / "data" / "text_audio"
    folder.mkdir(parents=True)
    (tmp_path / "out" / ".build" / "shards").mkdir(parents=True)
    ours, theirs = part_of(folder / "x.parquet"), folder / ".x.parquet.node7-12.part"
    ended = ours.with_name(ours.name.replace(f"-{os.getpid()}.", "-999999999."))
    for part in (ours, theirs, ended):
        part.write_bytes(b"half")
    _sweep(tmp_path / "out", anybodys=False)
    assert ours.exists() and theirs.exists() and not ended.exists()
    out = build("instruct", [source], tmp_path / "out", **SETTINGS)
    assert not list(out.rglob(".*.part"))
    expected = digests(out)
    (out / "build.json").unlink()
    next(iter(out.glob("data/*/train-*.parquet"))).unlink()
    shutil.rmtree(out / ".build" / "plan")
    assert digests(build("instruct", [source], out, **SETTINGS)) == expected


FULL_DISK = """
set -e
mount -t tmpfs -o size=$1 none "$2"
build="$3 -m llaso.cli data build instruct --sources $4 --out $2/out --workers 2"
if $build 2> "$5"; then exit 9; fi
find "$2" -name '*.part' >> "$5"
mount -o remount,size=64m "$2"
$build
cp -r "$2/out" "$6"
"""


@pytest.mark.parametrize("size", ["64k", "1200k"], ids=["planning", "shards"])
def test_a_full_disk_ends_with_a_clear_line_and_the_build_resumes(size: str, uninterrupted, tmp_path: Path):
    """A disk really full, then made larger: a clear line, nothing half-written, and the same bytes in the end."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mount of a small disk")
    arguments, expected = uninterrupted
    (tmp_path / "disk").mkdir()
    process = subprocess.run(
        ["unshare", "-rm", "bash", "-c", FULL_DISK, "bash", size, str(tmp_path / "disk"), sys.executable, arguments[2],
         str(tmp_path / "said"), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    said = (tmp_path / "said").read_text()
    assert said.startswith("llaso: error: ") and len(said.splitlines()) == 1
    assert "the disk is full" in said and "the same command goes on" in said
    assert digests(tmp_path / "out") == {name: value for name, value in expected.items() if name.startswith("data/")}


# --- bad input ----------------------------------------------------------------------------------------------------


def test_bad_recordings_are_set_aside(tmp_path: Path):
    root = write_recordings(tmp_path / "tiny", 8)
    (root / "001.wav").write_bytes(b"")
    (root / "002.wav").write_bytes(b"RIFF but no wave")
    (root / "003.wav").unlink()
    soundfile.write(root / "004.wav", [0.0] * 800, 8_000)
    soundfile.write(root / "005.wav", [0.3, -0.3] * 300_000, 16_000)

    def read(root: Path) -> Iterator[Item | Reject]:
        male = (Fact("SGC", "male", ("female", "male")),)
        for n in (*range(8), 7):
            yield Item(f"{n}", male, (Recording(str(root / f"{n:03d}.wav")),), split="train")
        yield Item("7", male, (Recording(str(root / "007.wav")),), split="train")
        yield Item("late", male, (Recording(str(root / "006.wav"), 9.0),), split="train")
        yield Item("label", (Fact("SGC", "mail", ("female", "male")),), (Recording("x"),), split="train")
        yield Item("number", (Fact("PP", "128"),), (Note("organ", 60, 75),), split="train")
        yield Item("task", (Fact("XYZ", "1"),), (Note("organ", 60, 75),), split="train")
        yield Item("empty", (Fact("ASR", " ", corpora=("instruct",)),), (Note("organ", 60, 75),), split="train")
        yield Item(
            "half", (Fact("ASR", "half a smile: \ud83d", corpora=("instruct",)),), (Recording("x"),), split="train"
        )
        yield Reject("line 3", "no transcript")

    def read_twice(root: Path) -> Iterator[Item | Reject]:
        for _ in range(2):
            yield Item("same", (Fact("PP", "60"),), (Note("organ", 60, 75),), split="test")

    twice = replace(SOURCE, name="twice", needs=(), tasks=("PP",), read=read_twice)
    out = build("eval", [twice], tmp_path / "twice", clips=tmp_path / "clips", **SETTINGS)
    assert [row["id"] for row in rows_of(out)] == ["twice/same/PP"]
    assert json.loads((out / "build.json").read_text())["rejects"] == {"duplicate id": 1}

    source = replace(SOURCE, tasks=("SGC",), read=read).at(root)
    out = build("instruct", [source], tmp_path / "out", clips=tmp_path / "clips", **SETTINGS)
    assert sorted(row["id"] for row in rows_of(out)) == [f"tiny/{n}/SGC" for n in (0, 6, 7)]
    reasons = json.loads((out / "build.json").read_text())["rejects"]
    listed = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert len(listed) == sum(reasons.values()) == 14
    assert {reason.split(":")[0] for reason in reasons} >= {
        "the file is empty", "not readable as audio", "there is no such file", "the recording is silent",
        "longer than 30 s", "duplicate id", "no transcript", "there is no audio in this stretch", "SGC", "PP", "ASR",
        "unknown task 'XYZ'", "text is not Unicode",
    }  # fmt: skip


def test_settings_out_of_range_are_refused(tmp_path: Path):
    source = SOURCE.at(write_recordings(tmp_path / "tiny", 40))
    out = build("align", [source], tmp_path / "out", **SETTINGS)
    with pytest.raises(ValueError, match="holds another build .seed 0, not 1, eval_rows 30, not 9"):
        build("align", [source], out, seed=1, **{**SETTINGS, "eval_rows": 9})
    told = build("instruct", [source], tmp_path / "told", transcript_first=0.5, **SETTINGS)
    with pytest.raises(ValueError, match="holds another build .transcript_first 0.5, not None"):
        build("instruct", [source], told, **SETTINGS)
    with pytest.raises(ValueError, match="holds another build .sources"):
        build("align", [replace(source, options={"recordings": 3})], out, **SETTINGS)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="holds README.md that no build has made there"):
        build("align", [source], tmp_path / "project", **SETTINGS)
    assert [file.name for file in (tmp_path / "project").iterdir()] == ["README.md"]
    with pytest.raises(ValueError, match="no corpus 'aline'"):
        build("aline", [source], out)
    with pytest.raises(ValueError, match="no executor 'cloud'"):
        build("align", [source], tmp_path / "other", executor="cloud", **SETTINGS)
    with pytest.raises(ValueError, match="slurm: say partition and time"):
        build("align", [source], tmp_path / "other", executor="slurm", **SETTINGS)
    with pytest.raises(
        ValueError, match="slurm: cannot be told partitionn, tasks in the sources file; there are .*qos"
    ):
        wrong = {"partitionn": "cpu", "time": "1:00", "tasks": 3}
        build("align", [source], tmp_path / "other", executor="slurm", executor_options=wrong, **SETTINGS)
    assert not (tmp_path / "other").exists()
    for executor, workers in (("local", 0), ("local", -1), ("slurm", -2)):
        with pytest.raises(ValueError, match=f"{workers} workers: give one or more"):
            build("align", [source], tmp_path / "other", executor=executor, workers=workers, **SETTINGS)
    with pytest.raises(ValueError, match="nothing to build"):
        build("align", [replace(source, options={"recordings": 0})], tmp_path / "none", **SETTINGS)
    with pytest.raises(ValueError, match="say which voices of some/model"):
        build("align", [source], tmp_path / "model", speech="some/model")
    with pytest.raises(ValueError, match="voice en-us.f1 is in train and in test"):
        build("align", [source], tmp_path / "voices", voices={**VOICES, "test": ["en-us+f1"]})


def test_unknown_voice_stops_the_build(tmp_path: Path):
    def read(root: Path) -> Iterator[Item]:
        yield Item("x", (Fact("ASR", "hello"),), (Speech("hello", "en-gb+f3"),), split="train")

    source = replace(SOURCE, needs=(), read=read)
    with pytest.raises(ValueError, match="no voice 'en-gb.f3'"):
        build("align", [source], tmp_path / "out", **SETTINGS)
