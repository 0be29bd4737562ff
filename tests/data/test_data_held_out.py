"""What is held out: the benchmark's size and strata, its separation from training, limits; and no row vanishes."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from support.tiny_corpus import GENDERS, SOURCE, VOICES, write_public_corpora, write_recordings

from dataset_scripts import corpus_plan
from dataset_scripts.build import build
from dataset_scripts.sources.base import Fact, Item, Note, Recording, Reject, Source
from llaso.cli import main

CORPORA = ("align", "instruct", "eval")
SETTINGS: dict[str, Any] = {"voices": VOICES, "rows_per_shard": 12, "eval_rows": 24, "validation_rows": 6}


def rows_of(folder: Path) -> list[dict]:
    columns = ["id", "split", "task", "target", "choices", "modality", "source", "sha256"]
    return [
        row for file in sorted(folder.glob("data/*/*")) for row in pq.read_table(file, columns=columns).to_pylist()
    ]


def noise(file: Path, seed: int, seconds: float = 0.05) -> str:
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.3, 0.3, int(8_000 * seconds)), 8_000)
    return str(file)


def tangled(root: Path, seed: int) -> list[Item]:
    """Items whose speakers, sentences and recordings cross the splits, as corpora's own splits may."""
    root.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    files = [noise(root / f"{n}.wav", 1000 * seed + n) for n in range(150)]
    items = []
    for n in range(160):
        facts = [Fact("ASR", f"said {n}", modality="text_audio"), Fact("PP", f"{n % 60}", modality="text_audio")]
        facts.append(Fact("SGC", chance.choice(GENDERS), GENDERS, modality="text_audio"))
        items.append(
            Item(
                f"{n}", tuple(chance.sample(facts, chance.randint(1, 3))), (Recording(files[n % 150]),),
                speaker=f"s{chance.randint(0, 60)}", sentence=f"Said, {chance.randint(0, 400)}!",
                split=chance.choices(("train", "validation", "test", ""), (75, 8, 10, 7))[0],
            )
        )  # fmt: skip
    return items


def source_of(items: list[Item | Reject], **changes: Any) -> Source:
    return replace(SOURCE, needs=(), tasks=("ASR", "SGC", "PP"), read=lambda root: iter(items), **changes)


# --- separation ---------------------------------------------------------------------------------------------------


def test_nothing_held_out_is_in_training(tmp_path: Path):
    """Over several tangled sources: no speaker, sentence, recording or sound in common; the report counts as we do."""
    dropped = Counter[str]()
    for seed in range(4):
        items = tangled(tmp_path / f"audio-{seed}", seed)
        source, folders = source_of(items), {name: tmp_path / f"{seed}" / name for name in CORPORA}
        for corpus, folder in folders.items():
            against = [folders["align"], folders["instruct"]] if corpus == "eval" else []
            build(corpus, [source], folder, seed=seed, against=against, **SETTINGS)
        of = {item.id: item for item in items}
        rows = {corpus: rows_of(folder) for corpus, folder in folders.items()}

        def keys(rows: list[dict], of: dict[str, Item] = of) -> dict[str, set[str]]:
            about = [of[row["id"].split("/")[1]] for row in rows]
            return {
                "sha256": {row["sha256"] for row in rows},
                "speaker": {item.speaker for item in about},
                "sentence": {corpus_plan.sentence_key(item.sentence) for item in about},
                "recording": {item.sound[0].path for item in about if isinstance(item.sound[0], Recording)},
            }

        held, report = keys(rows["eval"]), json.loads((folders["eval"] / "leakage.json").read_text())
        assert report["clean"] and report["held_out"]["rows"] == len(rows["eval"]) == 24
        assert {kind: report["held_out"][kind] for kind in held} == {kind: len(found) for kind, found in held.items()}
        for corpus in ("align", "instruct"):
            train = [row for row in rows[corpus] if row["split"] == "train"]
            validation = keys([row for row in rows[corpus] if row["split"] == "validation"])
            for kind, found in keys(train).items():
                assert found and found.isdisjoint(held[kind] | validation[kind]), (seed, corpus, kind)
            entry = report["compared"][corpus]
            assert entry["drawn_alike"] and entry["rows_checked"] == len(rows[corpus])
            assert entry["keys_checked"]["sentence"] >= len(rows[corpus])
            assert entry["shared"] == dict.fromkeys(("sha256", "speaker", "sentence", "recording"), 0)
            dropped.update(json.loads((folders[corpus] / "build.json").read_text())["dropped"])
    assert all(dropped[kind] for kind in ("speaker", "sentence", "recording")), dropped


def test_leaks_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Training drawn with another seed holds out other rows: the report says so and the command fails."""
    write_public_corpora(tmp_path)
    command = ["data", "build", "--sources", str(tmp_path / "sources.yaml")]
    assert main([*command, "instruct", "--seed", "5", "--out", str(tmp_path / "instruct")]) == 0
    against = ["--seed", "6", "--out", str(tmp_path / "eval"), "--against", str(tmp_path / "instruct")]
    assert main([*command, "eval", *against]) == 1
    entry = json.loads((tmp_path / "eval" / "leakage.json").read_text())["compared"]["instruct"]
    assert not entry["drawn_alike"] and sum(entry["shared"].values()) and entry["examples"]
    said = capsys.readouterr().err
    assert "training and evaluation share" in said and "instruct was built with another seed" in said


def test_validation_is_full_though_its_lowest_rows_clash(tmp_path: Path):
    """Rows that the evaluation excludes take no place in the draw."""
    items: list[Item | Reject] = []
    file = noise(tmp_path / "a.wav", 0)
    for n in range(400):
        sound = Recording(file, n / 8_000)
        items.append(Item(f"v{n}", (Fact("PP", "60"),), (sound,), sentence=f"{n % 98}", split="validation"))
    for n in range(95):
        items.append(Item(f"t{n}", (Fact("PP", "60"),), (Recording(file),), sentence=f"{n}", split="test"))
    settings = corpus_plan.Settings("instruct", voices=VOICES, eval_rows=95, validation_rows=8)
    planned = corpus_plan.make_plan(settings, [source_of(items)], tmp_path / "plan")
    assert planned["held_out"]["drawn"] == 8 == planned["rows"]


# --- the benchmark's size -------------------------------------------------------------------------------------------


def faulty(root: Path, good: int, bad: int) -> list[Item | Reject]:
    """Test items of two labels, among which bad ones of every kind."""
    root.mkdir()
    items: list[Item | Reject] = []
    for n in range(good + bad):
        file = root / f"{n}.wav"
        label, end = GENDERS[n % 2], None
        noise(file, n)
        if n >= good:
            kind = n % 7
            if kind == 0:
                file.write_bytes(b"")
            elif kind == 1:
                file.write_bytes(b"RIFF and no more")
            elif kind == 2:
                file.unlink()
            elif kind == 3:  # the build alone finds it
                soundfile.write(file, np.zeros(400), 8_000)
            elif kind == 4:
                noise(file, n, 31.0)
            elif kind == 5:
                end = 7.5
            else:
                label = "mail"
        fact = Fact("SGC", label, GENDERS, modality="text_audio")
        items.append(Item(f"{n:03d}", (fact,), (Recording(str(file), 0.0, end),), speaker=f"s{n}", split="test"))
    items.append(replace(items[0]))  # a duplicate id
    items.append(Reject("list.tsv:7", "no transcript"))
    return items


def test_the_benchmark_keeps_its_size(tmp_path: Path):
    """Rows that cannot be built are replaced, whether planning or the build finds out; all are listed."""
    source = source_of(faulty(tmp_path / "audio", 40, 56)).at(tmp_path / "audio")
    out = build("eval", [source], tmp_path / "out", **{**SETTINGS, "eval_rows": 30})
    built = json.loads((out / "build.json").read_text())
    rows = rows_of(out)
    assert len(rows) == 30 == built["held_out"]["built"] and built["held_out"]["short"] == {}
    assert Counter(row["target"] for row in rows) == {"female": 15, "male": 15}
    assert built["offered"] == 98 == len(rows) + sum(built["rejects"].values()) + sum(built["held_back"].values())
    assert built["held_back"] == {"tiny/SGC/test": 98 - 30 - sum(built["rejects"].values())}
    listed = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert Counter(entry["reason"] for entry in listed) == built["rejects"]
    reasons = {"the recording is silent", "there is no such file", "the file is empty"}
    reasons |= {"the audio ends before its stretch does"}
    assert reasons | {"longer than 30 s", "no transcript", "duplicate id"} < set(built["rejects"])
    of_files = [entry for entry in listed if not entry["reason"].startswith(("no transcript", "SGC: label"))]
    assert of_files and all(entry["file"].endswith(".wav") for entry in of_files)
    assert not any(str(tmp_path) in line for line in (out / "rejects.jsonl").read_text().splitlines())
    again = build("eval", [source], tmp_path / "again", workers=2, **{**SETTINGS, "eval_rows": 30})
    assert rows_of(again) == rows


def test_what_is_missing_is_stated_by_stratum(tmp_path: Path):
    items = faulty(tmp_path / "audio", 9, 14)
    items.append(Item("only", (Fact("ASR", "one"),), (Recording(noise(tmp_path / "one.wav", 7)),), split="train"))
    source = replace(source_of(items), benchmark={"SGC": 100, "ASR": 50})
    out = build("eval", [source], tmp_path / "out", **{**SETTINGS, "eval_rows": 30})
    held = json.loads((out / "build.json").read_text())["held_out"]
    good = Counter(row["target"] for row in rows_of(out))
    assert held["asked"] == 30 and held["built"] == 9 and good == {"female": 5, "male": 4}
    assert held["short"] == {"tiny/ASR": 10, "tiny/SGC/female/text_audio": 5, "tiny/SGC/male/text_audio": 6}


def test_others_make_up_for_a_short_stratum(tmp_path: Path):
    files = [noise(tmp_path / f"{n}.wav", n) for n in range(60)]
    items: list[Item | Reject] = []
    for n, file in enumerate(files):
        label = GENDERS[n < 4]  # four male speakers
        items.append(
            Item(f"{n}", (Fact("SGC", label, GENDERS, modality="text_audio"),), (Recording(file),), split="test")
        )
    planned = corpus_plan.make_plan(
        corpus_plan.Settings("eval", eval_rows=20, voices=VOICES), [source_of(items)], tmp_path / "plan"
    )
    assert planned["held_out"]["quotas"] == {"tiny/SGC/female/text_audio": 16, "tiny/SGC/male/text_audio": 4}
    assert planned["held_out"]["short"] == {"tiny/SGC/male/text_audio": 6} and planned["rows"] == 20


def test_candidates_are_kept_on_disk_not_in_memory(tmp_path: Path):
    """Two thousand kept candidates of 20 kB take little memory."""
    labels = tuple("abcdefghijkl")

    def read(root: Path) -> Iterator[Item]:
        for n in range(3_000):
            fact = Fact("ER", labels[n % 12], labels, instruction="say " * 5_000, modality="text_audio")
            yield Item(f"{n}", (fact,), (Note("organ", 60, 75),), split="test")

    source = replace(SOURCE, needs=(), tasks=("ER",), read=read)
    tracemalloc.start()
    try:
        planned = corpus_plan.make_plan(
            corpus_plan.Settings("eval", eval_rows=60, voices=VOICES), [source], tmp_path / "plan"
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert planned["rows"] == 60 and set(planned["held_out"]["quotas"].values()) == {5}
    assert peak < 12e6, peak  # the drawn rows and their spares; all candidates would be 35 MB


# --- nothing vanishes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("limit", [None, 15])
def test_every_row_is_accounted_for(corpus: str, limit: int | None, tmp_path: Path):
    """Rows of the source = built + rejected + dropped + held back (+ beyond the limit)."""
    items: list[Item | Reject] = [*faulty(tmp_path / "more", 10, 28), *tangled(tmp_path / "audio", 3)]
    for n, item in enumerate(items[10:38], start=10):
        if isinstance(item, Item):
            items[n] = replace(item, split=("train", "validation", "test")[n % 3])
    items.append(Item("silence", (), (Recording("x"),)))
    source = source_of(items)
    out = build(corpus, [source], tmp_path / "out", limit=limit, **SETTINGS)
    built = json.loads((out / "build.json").read_text())
    there = sum(isinstance(item, Reject) for item in source.items())  # a fact at fault comes as one
    for item in source.items():
        for fact in item.facts if isinstance(item, Item) else ():
            ours = corpus in corpus_plan.corpora_of(source, item, fact, 0)
            there += ours and (corpus != "eval" or corpus_plan.split_of(source, item, 0) == "test")
    counted = {name: sum(built[name].values()) for name in ("rejects", "dropped", "held_back")}
    if limit is None:
        assert built["offered"] == there and built["without_facts"] == {"tiny": 1}
    assert built["rows"] + sum(counted.values()) + built["beyond_limit"] == built["offered"] <= there
    assert counted["rejects"] == len((out / "rejects.jsonl").read_text().splitlines()) > 0
    assert built["rows"] == len(rows_of(out)) and (limit is None or built["rows"] <= limit)
    assert bool(built["beyond_limit"]) == (limit is not None and corpus == "instruct")


# --- limits ---------------------------------------------------------------------------------------------------------


def test_a_limit_draws_the_same_rows_equally_from_each_source(tmp_path: Path):
    """At most N rows in all, as many as there are, equally from each source; the same ones every time."""
    root = write_recordings(tmp_path / "tiny")
    sources = [replace(SOURCE.at(root), name=name) for name in ("one", "two")]
    for limit in (1, 3, 16):
        for corpus in CORPORA:
            settings = corpus_plan.Settings(corpus, voices=VOICES, eval_rows=500, validation_rows=500, limit=limit)
            planned = corpus_plan.make_plan(settings, sources, tmp_path / f"{corpus}-{limit}")
            assert planned["rows"] == limit
            assert planned["held_out"]["asked"] == (limit if corpus == "eval" else limit // 10)
            if corpus != "eval" and limit == 16:
                train = Counter(
                    {
                        name: sum(n for key, n in planned["counts"].items() if key.startswith(name))
                        for name in ("one", "two")
                    }
                )
                assert max(train.values()) - min(train.values()) <= 1
    one, two = (build("instruct", sources, tmp_path / f"{n}", limit=16, workers=n, **SETTINGS) for n in (1, 2))
    assert rows_of(one) == rows_of(two) and len(rows_of(one)) == 16
    assert "limit of 16 rows" in (one / "README.md").read_text()


def test_a_limit_does_not_read_everything(tmp_path: Path):
    def read(root: Path) -> Iterator[Item]:
        for n in range(10**9):
            yield Item(f"{n}", (Fact("PP", "60"),), (Recording(file),), split="train")

    file = noise(tmp_path / "a.wav", 0)
    source = replace(SOURCE, needs=(), tasks=("PP",), read=read)
    planned = corpus_plan.make_plan(
        corpus_plan.Settings("instruct", voices=VOICES, limit=5), [source], tmp_path / "plan"
    )
    assert planned["rows"] == 5 and planned["items"] == 5 * corpus_plan.READ_PER_LIMITED_ROW < 1000


@pytest.mark.parametrize(
    "wrong",
    [{"limit": 0}, {"limit": -3}, {"limit": 2.5}, {"eval_rows": "many"}, {"rows_per_shard": 0}, {"max_seconds": 0}],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        corpus_plan.Settings("eval", **wrong)


def test_missing_held_out_rows_are_explained_by_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A manifest whose test rows come after more training rows than a limited build reads."""
    noise(tmp_path / "a.wav", 0)
    with open(tmp_path / "rows.jsonl", "w") as manifest:
        for n in range(45):
            row = {"audio": "a.wav", "text": f"row {n}", "speaker": f"{n}", "split": "test" if n > 40 else "train"}
            manifest.write(json.dumps(row) + "\n")
    sources = tmp_path / "sources.yaml"
    sources.write_text("sources: {mine: {manifest: rows.jsonl, license: CC0-1.0}}\n")
    asked = ["data", "plan", "eval", "--sources", str(sources), "--limit"]
    reason = "limit 1 reads at most the first 40 items of each source; raise it if the rows come later"
    assert main([*asked, "1"]) == 2
    assert reason in capsys.readouterr().err
    sources.write_text("sources: {mine: {manifest: rows.jsonl}, other: {manifest: {test: other.jsonl}}}\n")
    (tmp_path / "other.jsonl").write_text('{"audio": "a.wav", "text": "one more"}\n')
    with open(tmp_path / "rows.jsonl", "w") as manifest:
        manifest.writelines(json.dumps({**row, "split": "train", "text": f"row {n}"}) + "\n" for n in range(80))
        manifest.write(json.dumps({**row, "text": "the last"}) + "\n")
    assert main([*asked, "2"]) == 0
    assert reason.replace("1", "2").replace("40", "80") in capsys.readouterr().out
    assert main([*asked, "3"]) == 0
    assert "2 rows in" in capsys.readouterr().out


def test_limit_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write_public_corpora(tmp_path)
    assert main(["data", "plan", "align", "--sources", str(file), "--limit", "0"]) == 2
    assert "argument --limit: '0' is not a whole number from 1" in capsys.readouterr().err
    assert main(["data", "plan", "instruct", "--sources", str(file), "--limit", "7"]) == 0
    out = capsys.readouterr().out
    assert "7 rows in" in out and "left out by the limit: " in out
